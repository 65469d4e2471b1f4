#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Start processes in VM b as the tests in VM a ask for it; the command of VM b.

The two talk through files in $LAB_SHARE/far, which both VMs see whatever becomes
of the wire between them.  toolbox.Far is the other end.  Files appear by renaming,
so they are whole when they are there:

    N.start     a: start this: {"argv": [...], "environ": {...}}
    N.pid       b: it runs; N.out and N.err get its output
    N.signal    a: send it this signal
    N.status    b: it has ended, with this exit status as of a shell
    reset       a: kill all that runs; b removes the file when all have ended
"""

import json
import os
import subprocess
import sys
import time

FOLDER = os.path.join(os.environ["LAB_SHARE"], "far")
POLL_SECONDS = 0.05


def put(name, text):
    """Make a file appear, whole."""
    path = os.path.join(FOLDER, name)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(f"{path}.new", path)


def take(name):
    """Read a file and remove it."""
    path = os.path.join(FOLDER, name)
    with open(path, encoding="utf-8") as file:
        text = file.read()
    os.unlink(path)
    return text


def start(number):
    """Start what N.start says; the process."""
    order = json.loads(take(f"{number}.start"))
    with open(f"{FOLDER}/{number}.out", "wb") as out, open(f"{FOLDER}/{number}.err", "wb") as err:
        process = subprocess.Popen(order["argv"], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                   env={**os.environ, **order["environ"]})
    put(f"{number}.pid", str(process.pid))
    return process


def reap(running):
    """Tell of those that have ended, and forget them."""
    for number, process in list(running.items()):
        status = process.poll()
        if status is not None:
            put(f"{number}.status", str(status if status >= 0 else 128 - status))
            del running[number]


def look(running):
    """Do what the files ask for."""
    for name in sorted(os.listdir(FOLDER)):
        number, _, what = name.partition(".")
        if what == "start":
            running[number] = start(number)
        elif what == "signal":
            signal = int(take(name))
            if number in running:
                running[number].send_signal(signal)
        elif name == "reset":
            for process in running.values():
                process.kill()
                process.wait()
            running.clear()
            os.unlink(os.path.join(FOLDER, name))


def main():
    """For ever: the lab ends us."""
    running = {}
    os.makedirs(FOLDER, exist_ok=True)
    while True:
        look(running)
        reap(running)
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
