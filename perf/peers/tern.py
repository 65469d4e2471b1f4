# SPDX-License-Identifier: BSD-2-Clause
"""tern itself, through `tern bench`, which verifies every byte or fails.

What is measured is an option of the Spec:

    whole          the migration, from the migrate call to STARTED (the default)
    second round   the round that sends what the guest scattered in the first one, and
                   nothing else: the guest writes nothing meanwhile (--pattern alternate).
                   ram and total_ms are those of that round
    postcopy       the same, and what the guest waited for its pages
    first byte     from the control connection to the first write on the wire; the
                   migration is cancelled after a while, and the source verified

The other options: transport, arguments (more of the command line), vcpus (of a guest with
a load; default 1), cpus (those that both processes may use), watch (look at the memory that
both processes have locked, in /proc, all the time).
"""

import json
import os
import subprocess
import threading

from peers.base import MIB, PAGE, PeerError, Result, RUN_TIMEOUT_S, on_cpus, size_text

FIRST_BYTE_TIMEOUT_S = 4
EXIT_CANCELLED = 3
WATCH_S = 0.01
SCATTER_LEAST = 0.99  # of the pages that may be dirty after the first round


class LockWatch:
    """A thread that looks at VmPin and VmLck of a process and its children."""

    def __init__(self, pid, proc="/proc"):
        self.pid = pid
        self.proc = proc
        self.peak = 0
        self.samples = 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.stop.set()
        self.thread.join()

    def _run(self):
        while not self.stop.wait(WATCH_S):
            self.look()

    def look(self):
        """Once."""
        for pid in [self.pid] + self._children():
            locked = self._locked(pid)
            if locked is not None:
                self.samples += 1
                self.peak = max(self.peak, locked)

    def _children(self):
        try:
            with open(f"{self.proc}/{self.pid}/task/{self.pid}/children", encoding="ascii") as f:
                return [int(word) for word in f.read().split()]
        except OSError:
            return []

    def _locked(self, pid):
        """Bytes process @pid has locked; None if it is gone."""
        total = 0
        try:
            with open(f"{self.proc}/{pid}/status", encoding="utf-8", errors="replace") as f:
                for line in f:
                    if line.startswith(("VmPin:", "VmLck:")):
                        total += int(line.split()[1]) * 1024
        except OSError:
            return None
        return total


class Tern:
    """`tern bench` with both roles on this machine."""

    name = "tern"
    part = None

    def __init__(self, work):
        self.work = work
        self.path = os.path.join(work.build, "src", "cli", "tern")

    def available(self):
        """None, or why not."""
        if os.access(self.path, os.X_OK):
            return None
        return f"{self.path} is not built; run meson compile -C {self.work.build}"

    def version(self):
        """Version line and, in a git checkout, the commit."""
        try:
            out, _ = self.work.capture([self.path, "--version"], timeout=10)
            version = out.strip()
        except PeerError:
            version = "unknown"
        git = subprocess.run(["git", "-C", self.work.root, "describe", "--always", "--dirty"],
                             capture_output=True, text=True, check=False)
        return f"{version} ({git.stdout.strip()})" if git.returncode == 0 else version

    def _argv(self, spec, json_path):
        """The command line for @spec."""
        short = spec.options.get("measure") == "first byte"
        argv = [self.path, "bench", "--json", json_path, "--size", size_text(spec.ram),
                "--fill", spec.fill, "--backing", spec.backing,
                "--transport", spec.options.get("transport", "tcp"),
                "--downtime-limit", str(spec.downtime_ms),
                "--timeout", str(FIRST_BYTE_TIMEOUT_S if short else RUN_TIMEOUT_S - 30)]
        if spec.channels:
            argv += ["--channels", str(spec.channels)]
        if spec.touched:
            argv += ["--touched", size_text(spec.touched)]
        if spec.prealloc:
            argv.append("--prealloc")
        if spec.dirty_rate:
            argv += ["--vcpus", str(spec.options.get("vcpus", 1)),
                     "--dirty-rate", size_text(spec.dirty_rate), "--working-set",
                     size_text(spec.working_set), "--pattern", spec.pattern]
        else:
            argv += ["--dirty-rate", "0"]
        return on_cpus(spec, argv + list(spec.options.get("arguments", [])))

    def run(self, spec):
        """One run; the figures from its JSON."""
        path = os.path.join(self.work.dir, "tern.json")
        if os.path.exists(path):
            os.unlink(path)
        measure = spec.options.get("measure", "whole")
        watch = self._bench(spec, path, measure)
        try:
            with open(path, encoding="utf-8") as f:
                got = json.load(f)
            check(got, measure)
            result = MEASURES[measure](spec, got)
        except (OSError, ValueError, KeyError) as e:
            raise PeerError(f"read the JSON of tern bench: {type(e).__name__} {e}") from e
        if watch:
            result.pinned_peak = watch.peak
            result.detail["lock_samples"] = watch.samples
        return result

    def _bench(self, spec, path, measure):
        """Run tern bench to its end, watched if asked for; the LockWatch or None."""
        argv = self._argv(spec, path)
        allowed = (0, EXIT_CANCELLED) if measure == "first byte" else (0,)
        if not spec.options.get("watch"):
            self.work.capture(argv, allowed=allowed)
            return None
        watches = []

        def begin(process):
            watches.append(LockWatch(process.pid).__enter__())
        try:
            self.work.capture(argv, allowed=allowed, started=begin)
        finally:
            for watch in watches:
                watch.__exit__()
        return watches[0]


def check(got, measure):
    """What must be so in every run: it ended well, all bytes are right, the ledger adds up."""
    status, verify = got["status"], got["verify"]
    if measure == "first byte" and status == "cancelled":
        verify = got["source_verify"]
    elif status != "completed":
        raise PeerError(f"tern bench ended as {status}: {got.get('error')}")
    if not verify or verify["bad"] != 0 or not verify["guest_ran"]:
        raise PeerError(f"tern bench ended as {status}, verify {verify}")
    ledger_ms = sum((got.get("downtime_ledger_us") or {}).values()) / 1000
    if abs(ledger_ms - got["downtime_ms"]) > 0.01:
        raise PeerError(f"the downtime ledger sums up to {ledger_ms:.3f} ms, the downtime is "
                        f"{got['downtime_ms']:.3f} ms")


def _detail(got):
    """What may explain a figure."""
    keys = ("transport", "sent_bytes", "pages", "downtime_ledger_us", "channels", "connected_ms",
            "setup_ms", "first_byte_ms", "registration", "round_list")
    return {k: got.get(k) for k in keys}


def whole(spec, got):
    """The migration."""
    cpu = got["cpu"]
    memory = got.get("memory", {})
    return Result(ram=got["ram_bytes"], total_ms=got["total_ms"],
                  cpu_s=cpu["source_s"] + cpu["destination_s"],
                  downtime_ms=got["downtime_ms"], rounds=_rounds(got["rounds"]),
                  dirty_rate=(got.get("dirty_rate_bytes_s") or None)
                  if spec.dirty_rate else None,
                  ledger_ms={k: v / 1000 for k, v in got["downtime_ledger_us"].items()},
                  source_growth=memory.get("source_rss_growth_bytes"),
                  destination_growth=memory.get("destination_rss_growth_bytes"),
                  source_engine=memory.get("source_engine_bytes"),
                  destination_engine=memory.get("destination_engine_bytes"),
                  detail=_detail(got))


def postcopy(spec, got):
    """The migration, and what the guest saw of it.

    Faults are those of the guest's first accesses to a page that took so long that
    somebody else must have resolved them; with the engine's own figures in the detail.
    The last channel is for pages that were asked for.
    """
    guest, figures = got["guest"], got["postcopy"]
    result, waited = whole(spec, got), guest["waited_us"] or {}
    seconds = figures["total_ms"] / 1000
    gaps = [guest[k] for k in ("source_longest_gap_us", "destination_longest_gap_us") if guest[k]]
    pushed = sum(c["bytes"] for c in got["channels"][:-1])
    result.fault_p50_us, result.fault_p99_us = waited.get("p50"), waited.get("p99")
    result.asked_p50_us = figures["fault_us"].get("p50") or None
    result.faults_s = waited["nr"] / seconds if waited else None
    if result.rounds == 1:  # else they sent what went before, too
        result.background_mib_s = pushed / MIB / seconds
    result.stall_ms = max(gaps) / 1000 if gaps else None
    result.detail["first_touch_us"], result.detail["waited_us"] = guest["first_touch_us"], waited
    result.detail["postcopy"] = {k: v for k, v in figures.items() if k != "threads"}
    return result


def second_round(spec, got):
    """The round that sends every other page of the working set, and only those."""
    rounds = got["round_list"]
    if len(rounds) < 2:
        raise PeerError("tern bench made no second round")
    second, pages = rounds[1], spec.working_set // PAGE // 2
    if not SCATTER_LEAST * pages <= second["normal_pages"] <= pages:
        raise PeerError(f"the second round sent {second['normal_pages']} pages, due were {pages}: "
                        "the guest was too slow, or wrote to others")
    return Result(ram=second["sent_bytes"], total_ms=second["duration_ms"],
                  rounds=len(rounds), downtime_ms=got["downtime_ms"], detail=_detail(got))


def first_byte(spec, got):
    """From the control connection to the first write; total_ms is until then."""
    if not got["connected_ms"] or not got["first_byte_ms"]:
        raise PeerError("tern bench sent nothing before it was cancelled")
    return Result(ram=got["ram_bytes"], total_ms=got["first_byte_ms"],
                  first_byte_ms=got["first_byte_ms"] - got["connected_ms"],
                  locked_peak=got["registration"]["locked_peak_bytes"], detail=_detail(got))


MEASURES = {"whole": whole, "postcopy": postcopy, "second round": second_round,
            "first byte": first_byte}


def _rounds(rounds):
    """A count, whether the JSON has a list of rounds or their number."""
    return len(rounds) if isinstance(rounds, list) else rounds
