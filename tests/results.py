#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Count the results in a meson testlog.json: prints "PASSED FAILED" on stdout.

Logs of failed tests go to stderr.  A skipped test counts as failed, because a
test that cannot run proves nothing, unless it says "left out: PART" (as
support/leave_out.h does) and PART was left out by name.  The same holds for the
single tests within a cmocka program, whose exit status does not tell of them.
A meson test skipped as a whole counts as neither passed nor failed.
"""

import argparse
import json
import re
import sys

PASSED = ("OK", "EXPECTEDFAIL")
LOG_LINES = 80


def output(test):
    """All the test wrote."""
    return (test.get("stdout") or "") + (test.get("stderr") or "")


def skips_unexplained(test, parts):
    """Does it skip more than the parts left out by name explain?"""
    skipped = len(set(re.findall(r"^\[  SKIPPED \] (\S+)", output(test), re.MULTILINE)))
    if test["result"] == "SKIP":
        skipped = max(skipped, 1)
    explained = [n for n in re.findall(r"left out: ([\w-]+)", output(test)) if n in parts]
    return skipped > len(explained)


def show(test):
    """The end of a failed test's output."""
    print(f"-- {test['name']}: {test['result']}, exit status {test.get('returncode')}, "
          f"{test.get('duration', 0):.1f} s", file=sys.stderr)
    for stream in ("stdout", "stderr"):
        lines = (test.get(stream) or "").rstrip().splitlines()
        if len(lines) > LOG_LINES:
            print(f"({len(lines) - LOG_LINES} lines of {stream} not shown)", file=sys.stderr)
        for line in lines[-LOG_LINES:]:
            print(f"   {line}", file=sys.stderr)


def main():
    """Read, count, show."""
    p = argparse.ArgumentParser(description="count the results of a meson test run")
    p.add_argument("--leave-out", default="", help="parts left out by name")
    p.add_argument("log", help="testlog.json")
    args = p.parse_args()
    parts = set(args.leave_out.replace(",", " ").split())
    passed = failed = 0
    with open(args.log, encoding="utf-8") as f:
        for line in f:
            test = json.loads(line)
            unexplained = skips_unexplained(test, parts)
            if test["result"] == "SKIP" and not unexplained:
                print(f"-- {test['name']}: left out", file=sys.stderr)
            elif test["result"] in PASSED and not unexplained:
                passed += 1
            else:
                failed += 1
                show(test)
                if unexplained:
                    print("   Something was skipped that was not left out by name "
                          "(--leave-out).", file=sys.stderr)
    print(passed, failed)


if __name__ == "__main__":
    main()
