#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Run the tests of one machine of suite.py; in VM a, started by run_suite.py.

    inside.py BUILD MACHINE TEST...

Each test is a process of its own in a session of its own, which is killed when
its time is over or when it has ended and left others behind.  What it writes
goes to $LAB_SHARE/TEST.log, and its result, as soon as it is known, as a line to
$LAB_SHARE/results: the same object that meson writes to testlog.json.  Tests
that have no line there did not run.
"""

import json
import os
import re
import select
import signal
import sys
import time
import traceback

sys.dont_write_bytecode = True

import suite    # noqa: E402

LOG_BYTES = 200000      # of a log, as much as goes into the result


def processes_of(session):
    """The processes of a session, without those that ended."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(name))
    return found


def end_session(session):
    """Kill what is left of a session, and wait for its end; returns how many there were."""
    count = len(processes_of(session))
    while left := processes_of(session):
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.02)
    return count


def be_test(test, log):
    """The process of a test; does not return."""
    status = 1
    try:
        os.setsid()
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(test.environ)
        if test.command:
            os.execvp(test.command[0], test.command)
        test.function()
        status = 0
    except BaseException:       # whatever it is, it is to be seen, and ends here
        traceback.print_exc()
        sys.stderr.flush()
        sys.modules["toolbox"].tell_of_vms()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait_for(pid, seconds):
    """Wait for a child; its status as of a shell, or None if the time is over."""
    fd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    ended = poll.poll(seconds * 1000)
    os.close(fd)
    if not ended:
        return None
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return 128 - status if status < 0 else status


def host_seconds():
    """The host's clock: it dates the files of the shared folder."""
    path = os.path.join(os.environ["LAB_SHARE"], "now")
    with open(path, "w", encoding="ascii") as file:
        file.write("x")
    return os.stat(path).st_mtime


def run_test(test):
    """Run one test: its result as an object."""
    path = os.path.join(os.environ["LAB_SHARE"], f"{test.name}.log")
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    begin, host_begin = time.monotonic(), host_seconds()
    pid = os.fork()
    if pid == 0:
        be_test(test, log)
    status = wait_for(pid, test.seconds)
    duration, host_duration = time.monotonic() - begin, host_seconds() - host_begin
    left = end_session(pid)
    if status is None:
        os.waitpid(pid, 0)
        os.write(log, f"\nnot done after {test.seconds} s\n".encode())
    elif left:
        os.write(log, f"\nleft {left} processes behind\n".encode())
    if abs(duration - host_duration) > 1 + duration / 10:
        os.write(log, f"\nthe clock of this VM ran {duration:.1f} s, the host's "
                      f"{host_duration:.1f} s\n".encode())
    os.close(log)
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()[-LOG_BYTES:]
    empty = re.search(r"^\[=+\] (Running )?0 test\(s\)", text, re.MULTILINE)
    if empty:
        text += "\nran no test: what is the filter?\n"
    result = "TIMEOUT" if status is None else "FAIL" if status or left or empty else "OK"
    return {"name": test.name, "result": result, "returncode": 124 if status is None else status,
            "duration": duration, "stdout": text, "command": test.command or [test.name]}


def main():
    """Run the tests named; returns the exit status."""
    build, machine, *names = sys.argv[1:]
    os.environ["LAB_BUILD"] = build     # for toolbox.py, which the cases import
    tests = {test.name: test for each in suite.machines(build) if each.name == machine
             for test in each.tests}
    failed = 0
    with open(os.path.join(os.environ["LAB_SHARE"], "results"), "a", encoding="utf-8") as out:
        for name in names:
            result = run_test(tests[name])
            failed += result["result"] != "OK"
            out.write(json.dumps(result) + "\n")
            out.flush()
            print(f"{result['result']:8}{result['duration']:6.1f} s  {name}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
