#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Run the tests that need an RDMA device, in the lab: run_suite.py [OPTION]... [PATTERN]...

The tests are listed in suite.py.  This program starts the lab once for each
machine of the list; inside.py runs the machine's tests in the VM.  A test that
gave no result, because the VM did not boot or died or anything else, has failed.

Results go to LOGS/results.json in the form of meson's testlog.json, for
tests/results.py to count; what each test wrote is in LOGS/MACHINE/TEST.log.
"""

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import threading

sys.dont_write_bytecode = True

import suite    # noqa: E402

LAB = os.path.join(suite.HERE, "lab")
BOOT_SECONDS = 180      # and the first fetch of a kernel
ERROR_LINES = 60


def parse_arguments():
    """The options; exits with status 2 if they are wrong."""
    parser = argparse.ArgumentParser(description="Run the tests that need an RDMA device.")
    add = parser.add_argument
    add("--build", default="build", metavar="DIR", help="folder of the build (default: build)")
    add("--logs", default="", metavar="DIR", help="where logs go (default: BUILD/lab-logs)")
    add("--list", action="store_true", help="only say what there is")
    add("pattern", nargs="*", help="run the tests of these names only ('wire.*'); default: all")
    options = parser.parse_args()
    options.build = os.path.abspath(options.build)
    options.logs = os.path.abspath(options.logs or os.path.join(options.build, "lab-logs"))
    if not options.list and not os.path.exists(os.path.join(options.build, "build.ninja")):
        parser.error(f"{options.build} is no build folder")
    return options


def chosen(machine, patterns):
    """The machine's tests that are asked for."""
    return [test for test in machine.tests
            if not patterns or any(fnmatch.fnmatch(test.name, each) for each in patterns)]


def copy_lines(source):
    """Thread: show what a lab writes to its standard output."""
    for line in source:
        print(f"   {line}", end="", flush=True)


def run_lab(machine, tests, build, folder):
    """Start the lab for these tests; returns its exit status and standard error."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    seconds = BOOT_SECONDS + sum(test.seconds for test in tests)
    command = [LAB, "--timeout", str(seconds), *machine.options, "--", "python3",
               os.path.join(suite.HERE, "inside.py"), build, machine.name,
               *(test.name for test in tests)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, errors="replace",
                          env={**os.environ, "LAB_SHARE": folder}) as lab:
        reader = threading.Thread(target=copy_lines, args=(lab.stdout,))
        reader.start()
        err = lab.stderr.read()
        reader.join()
        status = lab.wait()
    with open(os.path.join(folder, "lab.err"), "w", encoding="utf-8") as file:
        file.write(err)
    return status, err


def read_results(folder):
    """What inside.py wrote: {name: result}; a last line that is cut short is no result."""
    found = {}
    try:
        with open(os.path.join(folder, "results"), encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    result = json.loads(line)
                    found[result["name"]] = result
    except FileNotFoundError:
        pass
    return found


def run_machine(machine, tests, options):
    """Run a machine's tests: a result for each of them."""
    print(f"== lab, machine {machine.name}: {len(tests)} tests", flush=True)
    folder = os.path.join(options.logs, machine.name)
    status, err = run_lab(machine, tests, options.build, folder)
    results = read_results(folder)
    tail = "\n".join(err.splitlines()[-ERROR_LINES:])
    for test in tests:
        if test.name not in results:
            print(f"   ERROR            {test.name}: did not run", flush=True)
            results[test.name] = {
                "name": test.name, "result": "ERROR", "returncode": status, "duration": 0,
                "stdout": "", "stderr": f"did not run: the lab ended with status {status}\n{tail}"}
    return [results[test.name] for test in tests]


def main():
    """The program; returns its exit status."""
    options = parse_arguments()
    plan = [(machine, chosen(machine, options.pattern)) for machine in
            suite.machines(options.build)]
    if options.list:
        for machine, tests in plan:
            for test in tests:
                print(f"{machine.name:10} {test.name}")
        return 0
    if not any(tests for _, tests in plan):
        print("run_suite.py: no test of that name; --list shows what there is", file=sys.stderr)
        return 2
    os.makedirs(options.logs, exist_ok=True)
    results = [result for machine, tests in plan if tests
               for result in run_machine(machine, tests, options)]
    with open(os.path.join(options.logs, "results.json"), "w", encoding="utf-8") as out:
        for result in results:
            out.write(json.dumps(result) + "\n")
    bad = [result["name"] for result in results if result["result"] != "OK"]
    print(f"lab: {len(results) - len(bad)} passed, {len(bad)} failed {' '.join(bad)}".rstrip())
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
