# SPDX-License-Identifier: BSD-2-Clause
"""What a peer is, and the few things all peers share.

A peer is a class with

    name             what --peer calls it
    part             the name --leave-out knows it by, or None
    needs            optional: more such names, of what it cannot do without
    available(work)  None, or a sentence: why it cannot run here
    run(spec)        move the memory once and return a Result; raise PeerError

One Work object per harness run holds directories, sizes and the files that
several runs share; it removes what it made, also after an error.
"""

import atexit
import ctypes
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20
GIB = 1 << 30
PAGE = 4096
PR_SET_PDEATHSIG = 1
RUN_TIMEOUT_S = 300


class PeerError(Exception):
    """A run failed; the text says what was attempted and what came back."""


@dataclasses.dataclass
class Spec:
    """One thing to measure: the memory, its load and how the peer is to move it."""

    ram: int  # bytes of guest RAM
    fill: str = "random"  # random, zero, text
    touched: int = 0  # bytes ever touched; 0: all
    prealloc: bool = False  # both sides populate RAM before the clock starts
    backing: str = "memfd"
    channels: int = 2
    dirty_rate: int = 0  # bytes of pages dirtied per second; 0: idle guest
    working_set: int = 0  # bytes the load goes over, over and over
    pattern: str = "sequential"  # how
    downtime_ms: int = 300
    options: dict = dataclasses.field(default_factory=dict)  # the peer's own


@dataclasses.dataclass
class Result:
    """What one run gave.  Fields a peer cannot know stay None."""

    ram: int
    total_ms: float = None
    cpu_s: float = None  # both sides
    downtime_ms: float = None
    rounds: int = None
    dirty_rate: float = None  # bytes/s the guest's load reached before the move
    source_growth: int = None  # bytes of RSS growth, source process
    destination_growth: int = None
    source_engine: int = None  # bytes the engine holds beyond guest RAM
    destination_engine: int = None
    first_byte_ms: float = None  # from the control connection to the first write on the wire
    locked_peak: int = None  # most bytes of guest RAM locked at once, by the engine's own count
    pinned_peak: int = None  # most bytes either process had locked, as the kernel says
    fault_p50_us: float = None  # a fault as the guest's thread sees it
    fault_p99_us: float = None
    asked_p50_us: float = None  # the engine's median of faults that had to be asked for
    faults_s: float = None  # waits of the guest for a page, per second of postcopy
    background_mib_s: float = None  # what came without being asked for
    stall_ms: float = None  # longest time in which a vCPU did nothing; downtime left out
    gap_ms: float = None  # longest time in which the guest did nothing, the switchover included
    switchover_gap_ms: float = None  # how long it did nothing at the switchover
    ledger_ms: dict = None  # steps of the downtime
    detail: dict = dataclasses.field(default_factory=dict)

    @property
    def mib_s(self):
        """RAM over total time in MiB/s, or None."""
        return self.ram / MIB / (self.total_ms / 1000) if self.total_ms else None

    @property
    def fault_spread(self):
        """The 99th percentile of faults over their median, or None."""
        return self.fault_p99_us / self.fault_p50_us if self.fault_p99_us else None

    @property
    def explained_percent(self):
        """How far the reported downtime and what the guest saw of it agree, in percent, or None.

        The smaller of the two over the larger: a report of too much explains nothing either.
        """
        if not self.switchover_gap_ms or self.downtime_ms is None:
            return None
        both = (self.downtime_ms, self.switchover_gap_ms)
        return 100 * min(both) / max(both)

    @property
    def cpu_s_per_gib(self):
        """CPU seconds of both sides per GiB of RAM, or None."""
        return None if self.cpu_s is None else self.cpu_s / (self.ram / GIB)

    def as_dict(self):
        """For JSON: all fields and the derived figures."""
        out = dataclasses.asdict(self)
        if self.total_ms:
            out["mib_s"] = round(self.mib_s, 1)
        if self.fault_spread:
            out["fault_spread"] = round(self.fault_spread, 2)
        if self.explained_percent:
            out["explained_percent"] = round(self.explained_percent, 1)
        if self.cpu_s is not None:
            out["cpu_s_per_gib"] = round(self.cpu_s_per_gib, 4)
        return out


def child_setup():
    """In a child before exec: die with the parent, lock memory at will where allowed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Work:
    """Directories, the build, processes and shared content files of one harness run."""

    def __init__(self, build, root, verbose=False):
        self.build = build
        self.root = root
        self.verbose = verbose
        self.processes = []
        self.contents = {}
        prefix = f"tern-compare-{os.getpid()}-"
        self.dir = tempfile.mkdtemp(prefix=prefix)
        self.shm = tempfile.mkdtemp(prefix=prefix, dir="/dev/shm")
        atexit.register(self.close)

    def log(self, text):
        """A line on stderr when verbose."""
        if self.verbose:
            print(f"compare: {text}", file=sys.stderr, flush=True)

    def start(self, argv, **kwargs):
        """Start a process that cannot outlive this one; Popen."""
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, preexec_fn=child_setup,
                                   start_new_session=True, **kwargs)
        self.processes.append(process)
        return process

    def stop(self, process):
        """Kill the process's group and collect it."""
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        if process in self.processes:
            self.processes.remove(process)

    def capture(self, argv, timeout=RUN_TIMEOUT_S, allowed=(0,), started=None):
        """Run to the end; (stdout, stderr) as text; PeerError on failure or time-out.

        Failure is any exit status but those @allowed.  @started(process) is called at once.
        """
        process = self.start(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        command = " ".join(argv)
        try:
            if started:
                started(process)
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise PeerError(f"{command}: not done after {timeout} s") from None
        finally:
            self.stop(process)
        if process.returncode not in allowed:
            tail = " ".join((err or out).strip().splitlines()[-3:])
            raise PeerError(f"{command}: exit status {process.returncode}: {tail}")
        return out, err

    def close(self):
        """Kill what still runs and remove all files; safe to call twice."""
        for process in list(self.processes):
            self.stop(process)
        for path in (self.dir, self.shm):
            shutil.rmtree(path, ignore_errors=True)


def process_cpu_s(pid):
    """CPU seconds process @pid has used, ended threads included (its CPU-time clock)."""
    return time.clock_gettime(((~pid) << 3) | 2)


def process_rss(pid):
    """Resident bytes of process @pid."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def on_cpus(spec, argv):
    """@argv, bound to the CPUs that the option cpus of @spec names."""
    cpus = spec.options.get("cpus")
    return ["taskset", "-c", cpus, *argv] if cpus else argv


def size_text(n):
    """512M, 2G: as the commands take it."""
    for unit, shift in (("G", 30), ("M", 20), ("K", 10)):
        if n and n % (1 << shift) == 0:
            return f"{n >> shift}{unit}"
    return str(n)
