#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""A guest under KVM counts, moves from one tern-vm to another, and goes on counting.

    demo_vm.py TERN-VM

What the guest prints is shown with the process it runs in.  Exit status 1 if a number is
missing or comes twice.
"""

import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
sys.dont_write_bytecode = True

from peers.qmp import Qmp  # noqa: E402

TICKS = 8  # to be seen on each side
TICK = re.compile(r"counter: vcpu 0 tick (\d+)")


class Side:
    """One tern-vm."""

    def __init__(self, name, tern_vm, folder, *arguments):
        self.name = name
        control = os.path.join(folder, name)
        self.process = subprocess.Popen([tern_vm, "run", "--mem", "1G", "--control", control,
                                         *arguments], stdout=subprocess.PIPE, text=True)
        self.qmp = Qmp(control, self.process, who="tern-vm")

    def show(self, last, ticks):
        """Show what the guest prints until @ticks more have come after @last; the new last."""
        for line in self.process.stdout:
            print(f"{self.name:>12} | {line.rstrip()}", flush=True)
            match = TICK.match(line)
            if not match:
                continue
            if int(match.group(1)) != last + 1:
                sys.exit(f"demo: tick {match.group(1)} follows {last}")
            last, ticks = last + 1, ticks - 1
            if not ticks:
                break
        return last


def migrate(source, destination, link):
    """Move the guest, say how it went."""
    source.qmp.command("migrate", uri=link)
    ends = ("completed", "failed", "cancelled")
    for side in (source, destination):
        side.qmp.event(lambda e: e["event"] == "MIGRATION" and e["data"]["status"] in ends, 60)
    got = source.qmp.command("query-migrate")
    if got["status"] != "completed":
        sys.exit(f"demo: the migration {got['status']}: {got.get('error-desc')}")
    tern = got["tern"]
    print(f"\n  moved in {tern['total_ms']:.1f} ms, of which it stood still for "
          f"{tern['downtime_ms']:.1f} ms\n", flush=True)


def main():
    """The demonstration."""
    sides = []
    with tempfile.TemporaryDirectory() as folder:
        link = "unix:" + os.path.join(folder, "link")
        try:
            sides.append(Side("destination", sys.argv[1], folder, "--incoming", link))
            sides.append(Side("source", sys.argv[1], folder, "--guest", "counter",
                              "--guest-args", "rate=4 pit=0"))
            destination, source = sides
            last = source.show(0, TICKS)
            migrate(source, destination, link)
            source.qmp.command("quit")
            last = source.show(last, 0)  # what it printed meanwhile
            destination.show(last, TICKS)
        finally:
            for side in sides:
                side.process.kill()
                side.process.wait()


if __name__ == "__main__":
    main()
