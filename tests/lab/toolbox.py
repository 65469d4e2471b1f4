# SPDX-License-Identifier: BSD-2-Clause
"""What the case_*.py files share: starting tern bench, and judging it.

Checks raise AssertionError with all that is known.
"""

import json
import os
import re
import signal
import subprocess
import tempfile
import time

BUILD = os.environ.get("LAB_BUILD", "build")
TERN = os.path.join(BUILD, "src/cli/tern")
HERE = "192.168.77.1"
# What a small guest needs here: it writes all the time, but leaves CPU to the rest.
GUEST = ("--size", "32M", "--dirty-rate", "1M", "--working-set", "4M", "--vcpus", "1")


def until(condition, seconds, what):
    """Wait for a condition; fails if it does not come true.  Returns its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return value


class Run:
    """A process of this VM, its output in files."""

    def __init__(self, *command, environ=None, json_file=None):
        self.command = command
        self.json_file = json_file
        self.folder = tempfile.mkdtemp(dir="/run")
        self.begin = time.monotonic()
        self.seconds = None
        with open(f"{self.folder}/out", "wb") as out, open(f"{self.folder}/err", "wb") as err:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out,
                                            stderr=err, env={**os.environ, **(environ or {})})

    def text(self, name):
        """What it wrote: "out" or "err"."""
        with open(f"{self.folder}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read()

    def poll(self):
        """The exit status as of a shell, or None."""
        status = self.process.poll()
        return status if status is None or status >= 0 else 128 - status

    def wait(self, seconds):
        """Wait for the end: the exit status.  Fails if it does not come."""
        until(lambda: self.poll() is not None, seconds, f"the end of {self}")
        self.seconds = time.monotonic() - self.begin
        print(f"{self}: status {self.poll()} after {self.seconds:.1f} s\n{self.text('err')}")
        return self.poll()

    def kill(self, number=signal.SIGKILL):
        """Send a signal."""
        self.process.send_signal(number)

    def report(self):
        """The JSON it wrote."""
        path = self.json_file
        with open(path, encoding="utf-8") as file:
            return json.load(file)

    def __str__(self):
        return " ".join(self.command)


def bench(*options, prefix=()):
    """Start tern bench with a report, through the command prefix; a Run."""
    path = tempfile.mktemp(dir="/run", suffix=".json")
    return Run(*prefix, TERN, "bench", *options, "--json", path, json_file=path)


def listening_uri(run, seconds=30):
    """Where a bench --listen listens, as it says on standard error."""
    def said():
        assert run.poll() is None, f"{run} ended with {run.poll()}:\n{run.text('err')}"
        return re.search(r"listening on (\S+)", run.text("err"))
    return until(said, seconds, f"{run} listening")[1]


def has_state(run, state):
    """Has a bench been in the state, as it says on standard error?"""
    return re.search(rf"^state {re.escape(state)}$", run.text("err"), re.MULTILINE) is not None


def reached(run, state, seconds=60):
    """Wait until a bench is in the state; fails if it ends before."""
    def there():
        if has_state(run, state):
            return True
        assert run.poll() is None, f"{run} ended before {state}:\n{run.text('err')}"
        return False
    until(there, seconds, f"state {state} of {run}")


def rdma_objects():
    """What the kernel holds of RDMA objects, without its own."""
    text = subprocess.run(["rdma", "resource", "show"], capture_output=True, text=True,
                          check=True).stdout
    return re.sub(r"^\d+: ", "", text, flags=re.MULTILINE).strip()


def check_verified(report):
    """The migration is complete, and every page was looked at and is right."""
    assert report["status"] == "completed", report
    assert report["error"] is None, report["error"]
    verify = report["verify"]
    pages = report["ram_bytes"] // 4096
    assert verify and verify["bad"] == 0 and verify["pages"] == pages, verify
    assert verify["guest_ran"], "the destination's guest did not run on"


def check_source_runs_on(report):
    """The migration failed, and the source's guest runs on with all its RAM right."""
    verify = report["source_verify"]
    assert report["status"] != "completed", report
    assert report["outcome"] == "source", report["outcome"]
    assert verify and verify["bad"] == 0 and verify["pages"], verify
    assert verify["guest_ran"], "the source's guest does not run on"


def check_sentence(run, *words):
    """Standard error has one sentence of the error, prefixed, with these words in it."""
    said = re.findall(r"^tern: (.*)$", run.text("err"), re.MULTILINE)
    assert len(said) == 1, f"{len(said)} sentences: {said}"
    for word in words:
        assert re.search(word, said[0]), f"no '{word}' in: {said[0]}"
