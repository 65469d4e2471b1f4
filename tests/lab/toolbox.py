# SPDX-License-Identifier: BSD-2-Clause
"""What the case_*.py files share: starting tern bench, here and in VM b, and judging it.

A Run is a process, here; a Far is one in VM b (agent.py starts it).  Both have
start, poll, wait, kill and the same attributes, so a check does not care where
its process ran.  Checks raise AssertionError with all that is known.
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
TOOLS = os.path.dirname(os.path.abspath(__file__))
HERE = "192.168.77.1"       # VM a
THERE = "192.168.77.2"      # VM b
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

    started = []        # all of them

    def __init__(self, *command, environ=None, json_file=None):
        self.command = command
        self.json_file = json_file
        self.folder = tempfile.mkdtemp(dir="/run")
        self.begin = time.monotonic()
        self.seconds = None
        with open(f"{self.folder}/out", "wb") as out, open(f"{self.folder}/err", "wb") as err:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out,
                                            stderr=err, env={**os.environ, **(environ or {})})
        Run.started.append(self)

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


class Far(Run):
    """A process in VM b; agent.py there does what the files ask for."""

    folder = os.path.join(os.environ.get("LAB_SHARE", "/nowhere"), "far")
    is_clean = False        # nothing of an earlier test runs in VM b

    def __init__(self, *command, environ=None, json_file=None):
        self.command = command
        self.json_file = json_file
        self.number = time.monotonic_ns()
        self.begin = time.monotonic()
        self.seconds = None
        if not Far.is_clean:
            self.reset()
        self.put(f"{self.number}.start", json.dumps({"argv": command, "environ": environ or {}}))
        until(lambda: os.path.exists(f"{self.folder}/{self.number}.pid"), 60,
              f"the start of {self} in VM b")

    def put(self, name, text):
        """Make a file appear, whole."""
        with open(f"{self.folder}/{name}.new", "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(f"{self.folder}/{name}.new", f"{self.folder}/{name}")

    def reset(self):
        """End what runs in VM b."""
        os.makedirs(self.folder, exist_ok=True)
        self.put("reset", "")
        until(lambda: not os.path.exists(f"{self.folder}/reset"), 60, "VM b ending processes")
        Far.is_clean = True

    def text(self, name):
        """What it wrote: "out" or "err"."""
        with open(f"{self.folder}/{self.number}.{name}", encoding="utf-8",
                  errors="replace") as file:
            return file.read()

    def poll(self):
        """The exit status as of a shell, or None."""
        try:
            with open(f"{self.folder}/{self.number}.status", encoding="ascii") as file:
                return int(file.read())
        except FileNotFoundError:
            return None

    def kill(self, number=signal.SIGKILL):
        """Send a signal."""
        self.put(f"{self.number}.signal", str(int(number)))

    def __str__(self):
        return "b: " + " ".join(self.command)


def far_bench(*options):
    """Start tern bench with a report in VM b; a Far."""
    path = os.path.join(os.environ["LAB_SHARE"], f"{time.monotonic_ns()}.json")
    return Far(TERN, "bench", *options, "--json", path, json_file=path)


class Wire:
    """The wire between the VMs, for a test that cuts it; whole again at the end, come what may."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.do("restore")
        end_all()
        renew()

    @staticmethod
    def do(*words):
        """lab-wire WORDS: cut, restore, flap MILLISECONDS."""
        subprocess.run([f"{TOOLS}/lab-wire", *words], check=True)


# What may tell why a connection was not made or broke.
TELL = """
rdma statistic show
ip -s link show rdma0
ip neigh show
cat /sys/class/infiniband/rxe0/ports/1/state
rdma resource show
dmesg | tail -n 20
"""


def tell_of_vms():
    """Print the state of RDMA and of the network, here and there; of a test that failed."""
    try:
        command = ("sh", "-xc", TELL)
        print("VM a:", flush=True)
        subprocess.run(command, check=False)
        if os.path.isdir(Far.folder):       # the agent of VM b made it
            far = Far(*command)
            far.wait(60)
            print("VM b:", far.text("out"), far.text("err"), sep="\n")
    except (AssertionError, OSError) as error:
        print(f"cannot tell more: {error}")


def end_all():
    """Kill what a test has started, here and there."""
    for run in Run.started:
        if run.poll() is None:
            run.kill()
            run.process.wait()
    Far.is_clean = False


def renew():
    """Make the RDMA devices of both VMs anew, see lab-renew; and wait for the wire."""
    subprocess.run([f"{TOOLS}/lab-renew"], check=True)
    assert Far(f"{TOOLS}/lab-renew").wait(60) == 0
    ping = ("ping", "-q", "-c", "1", "-W", "1", THERE)
    until(lambda: subprocess.run(ping, stdout=subprocess.DEVNULL, check=False).returncode == 0,
          60, "a ping to VM b")


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


def cm_ids():
    """The connection manager's identifiers, as text."""
    return subprocess.run(["rdma", "resource", "show", "cm_id"], capture_output=True, text=True,
                          check=True).stdout


def port_state():
    """Of rxe0: "ACTIVE", "DOWN", ..."""
    with open("/sys/class/infiniband/rxe0/ports/1/state", encoding="ascii") as file:
        return file.read().split()[1]


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
    """The error on standard error is one sentence, prefixed, with these words in it."""
    said = [text for text in re.findall(r"^tern: (.*)$", run.text("err"), re.MULTILINE)
            if not re.match(r"listening on |destination: .* cancelled$|.*: cancelling$", text)]
    assert len(said) == 1, f"{len(said)} sentences: {said}"
    for word in words:
        assert re.search(word, said[0]), f"no '{word}' in: {said[0]}"
