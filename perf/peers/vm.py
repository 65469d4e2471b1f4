# SPDX-License-Identifier: BSD-2-Clause
"""A guest of tern-vm (dirty, src/vmm/guests) under KVM, moved by tern-vm or by QEMU.

Both run the same image with the same arguments; what stood still is what the guest
itself has seen.  It prints the longest times between two looks at its clock, with when
they ended, on its serial port; source and destination print into one pipe, which a
thread here reads, giving each line the time of its arrival.

    harness   ──lines, with arrival──────────────────────────────────────────►
    guest     ···|line·····|line··[ gap ]···|line·····   gaps by the guest's clock
    VMM                    STOP ┄┄┄┄┄ RESUME             events by the host's clock

The difference between a line's arrival and the guest's clock when it had printed it (the
next line says how long that took) connects the two clocks: a quarter of the lines have a
smaller one, since a line may come late, and a guest that loses its CPU right behind a line
takes it for longer to print than it was.  It is taken before and after the move: by how
much it grows the guest's clock stood still, which a VMM may let it do and the guest
cannot see.  That is added to the gap.  The gap of the switchover is the one that goes on
shortly after STOP, when the vCPUs have stopped; if there is none, the guest was printing
just then, or stood still for longer so often that it does not tell of this one; the guest is
moved once more then, between new processes, and the figure is missing if that does not help.

Options of a Spec: dirty (--dirty of tern-vm), multifd (channels of QEMU; 0: single
stream), halt (the guest halts when it has nothing to write, and looks at its clock so
often per second).
"""

import dataclasses
import os
import re
import shutil
import statistics
import threading
import time

from peers import qemu
from peers.base import MIB, PAGE, PeerError, Result, size_text
from peers.qmp import Qmp

LINE = re.compile(r"dirty: vcpu 0 line \d+ pages (\d+) gap_us \d+ longest_us \d+ gaps (\S+) "
                  r"said_us (\d+) back (\d+) clock_us (\d+)")
INTERVAL_MS = 100  # between lines of the guest
LINES_BEFORE, LINES_AFTER = 20, 20  # the clocks are compared over
START_TIMEOUT_S = 120
LINES_TIMEOUT_S = 30
COMPLETE_TIMEOUT_S = 120
ATTEMPTS = 4  # to find the guest not printing at the switchover
AFTER_STOP_US = 400  # surely within the switchover, although a line needs time to come
NOISE_MS = 1.0  # between two comparisons of the clocks


@dataclasses.dataclass
class Line:
    """What the guest says, times in us; @arrival by the host's clock, the others by its own."""

    arrival: int
    pages: int
    gaps: list  # of (length, end)
    said: int  # how long the line before took to be printed, from its clock on
    clock: int

    @classmethod
    def parse(cls, text, arrival):
        """None if it is another line."""
        m = LINE.fullmatch(text)
        if not m:
            return None
        if m.group(4) != "0":
            raise PeerError(f"the guest's time stamp counter went back: {text}")
        gaps = [tuple(map(int, pair.split("@"))) for pair in m.group(2).split(",")]
        return cls(arrival, int(m.group(1)), gaps, int(m.group(3)),
                   int(m.group(5)))


class Output:
    """What a guest prints, wherever it runs: a pipe, and the thread that reads it."""

    def __init__(self, path):
        self.path = path
        self.lines = []  # appended to by the thread
        self.error = None
        os.mkfifo(path)
        self.fd = os.open(path, os.O_RDWR)  # never at its end
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        with os.fdopen(os.dup(self.fd), "rb") as f:
            for line in iter(f.readline, b"end\n"):
                try:
                    got = Line.parse(line.decode("ascii", "replace").strip(),
                                     time.time_ns() // 1000)
                except PeerError as e:
                    self.error = e
                    return
                if got:
                    self.lines.append(got)

    def wait(self, done, timeout, what):
        """Until done(lines)."""
        end = time.monotonic() + timeout
        while not done(self.lines):
            if self.error:
                raise self.error
            if time.monotonic() > end:
                raise PeerError(f"{what}: not within {timeout} s")
            time.sleep(INTERVAL_MS / 4000)

    def close(self):
        """End the thread."""
        os.write(self.fd, b"end\n")
        self.thread.join()
        os.close(self.fd)
        os.unlink(self.path)


def event_us(event):
    """When it was, by the host's clock."""
    return event["timestamp"]["seconds"] * 1000000 + event["timestamp"]["microseconds"]


@dataclasses.dataclass
class Seen:
    """What the guest has seen of a move, in ms."""

    longest: float  # the longest gap of all
    switchover: float  # the gap of the switchover; None: it was not told
    clock: float  # what its clock did not count, which is in the gaps if it is no noise


def gaps_seen(lines, begin, stop, resume):
    """Seen in @lines of a move that began at @begin."""
    printed = [(x.arrival, x.arrival - x.clock - y.said) for x, y in zip(lines, lines[1:])]
    before = [apart for arrival, apart in printed if arrival < stop]
    after = [apart for arrival, apart in printed if arrival > resume]
    if not before or not after:
        raise PeerError("the guest printed nothing before or nothing after the switchover")
    first, then = sorted(before)[len(before) // 4], sorted(after)[len(after) // 4]
    lost = then - first if then - first > NOISE_MS * 1000 else 0
    within = stop + min(AFTER_STOP_US, (resume - stop) / 2)
    gaps = [(end + first - length, end + then, length)
            for x in lines if x.arrival > stop for length, end in x.gaps]
    covering = [length + lost for start, end, length in gaps if start < within < end]
    others = [length for x in lines if x.arrival > begin for length, _ in x.gaps]
    switchover = max(covering) / 1000 if covering else None
    return Seen(max(others + covering) / 1000, switchover, (then - first) / 1000)


class Vmm:
    """A process that runs the guest, or waits for it; a subclass says which VMM."""

    name = None

    def __init__(self, work, role):
        self.work = work
        self.role = role
        self.path = os.path.join(work.dir, f"{role}.control")
        self.process = self.qmp = None

    def start(self, argv, stdout=None):
        """Start it, with its control socket at self.path; its log gets what stdout does not."""
        if os.path.exists(self.path):
            os.unlink(self.path)
        with open(os.path.join(self.work.dir, f"{self.role}.log"), "wb") as log:
            self.process = self.work.start(argv, stdout=stdout or log, stderr=log)
        try:
            self.qmp = Qmp(self.path, self.process, who=self.name)
            self.set_up()
        except PeerError:
            self.close()
            raise

    def set_up(self):
        """Set the parameters of migrations."""
        raise NotImplementedError

    def close(self):
        """End the process."""
        self.work.stop(self.process)


class TernVm(Vmm):
    """One tern-vm; its control socket talks like QMP."""

    name = "tern-vm"

    def __init__(self, work, role, spec, arguments, output):
        super().__init__(work, role)
        self.spec = spec
        argv = [os.path.join(work.build, "src", "vmm", "tern-vm"), "run", "--control", self.path,
                "--mem", size_text(spec.ram), "--dirty", spec.options.get("dirty", "log")]
        argv += ["--incoming", "defer"] if role == "destination" else [
            "--guest", "dirty", "--guest-args", arguments]
        self.start(argv, output.fd)

    def set_up(self):
        self.qmp.command("migrate-set-parameters", downtime_limit=self.spec.downtime_ms,
                         channels=self.spec.channels)

    def listen(self):
        """Wait for a guest; the URI."""
        self.qmp.command("migrate-incoming", uri="tcp:127.0.0.1:0")
        return self.qmp.command("query-migrate")["uri"]

    def figures(self):
        """Those of a Result, after the migration; and what may explain them."""
        got = self.qmp.command("query-migrate")["tern"]
        ledger = {k: v / 1000 for k, v in got["downtime_ledger_us"].items()}
        if abs(sum(ledger.values()) - got["downtime_ms"]) > 0.01:
            raise PeerError(f"the downtime ledger sums up to {sum(ledger.values()):.3f} ms, the "
                            f"downtime is {got['downtime_ms']:.3f} ms")
        return {"total_ms": got["total_ms"], "downtime_ms": got["downtime_ms"],
                "rounds": len(got["round_list"]), "ledger_ms": ledger}, {
                    k: got.get(k) for k in ("dirty_provider", "sent_bytes", "pages", "round_list")}


class QemuVm(Vmm):
    """One QEMU with a PC as far as the guest needs one."""

    name = "QEMU"

    def __init__(self, work, role, spec, arguments, output):
        super().__init__(work, role)
        self.spec = spec
        image = os.path.join(work.build, "src", "vmm", "dirty.elf")
        argv = [qemu.BINARY, "-name", f"tern-compare-{role}", "-nodefaults", "-no-user-config",
                "-display", "none", "-machine", "pc,memory-backend=ram", "-accel", "kvm",
                "-object", f"memory-backend-memfd,id=ram,size={spec.ram},share=on",
                "-m", f"{spec.ram // MIB}M", "-serial", f"file:{output.path}",
                "-kernel", image, "-append", arguments, "-qmp", f"unix:{self.path},server=on,wait=off"]
        if role == "destination":
            argv += ["-incoming", "defer"]
        self.start(argv)

    def set_up(self):
        qemu.setup_migration(self.qmp, self.spec)

    def listen(self):
        """Wait for a guest; the URI."""
        return qemu.listen_tcp(self.qmp)

    def figures(self):
        """Those of a Result, after the migration; and what may explain them."""
        got = qemu.final_figures(self.qmp)
        return {"total_ms": got["total-time"], "downtime_ms": got["downtime"],
                "rounds": got["ram"]["dirty-sync-count"]}, {
                    "transferred": got["ram"]["transferred"]}


class Vm:
    """The peer; a subclass says which VMM."""

    name = None
    part = None
    needs = ("kvm",)
    machine = None

    def __init__(self, work):
        self.work = work

    def available(self):
        """None, or why not."""
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            return "there is no /dev/kvm that may be used"
        for built in ("tern-vm", "dirty.elf"):
            path = os.path.join(self.work.build, "src", "vmm", built)
            if not os.path.exists(path):
                return f"{path} is not built; run meson compile -C {self.work.build}"
        return None

    def version(self):
        """Said by the peers that move RAM without a guest."""
        return None

    def arguments(self, spec):
        """The guest's: all of RAM that it can use is filled."""
        text = f"rate={spec.dirty_rate} fill={spec.ram} interval={INTERVAL_MS}"
        if spec.working_set:
            text += f" ws={spec.working_set}"
        if spec.options.get("halt"):
            text += f" halt={spec.options['halt']}"
        return text

    def run(self, spec):
        """Move until the guest tells of the switchover."""
        for attempt in range(1, ATTEMPTS + 1):
            result = self._run_once(spec)
            result.detail["attempts"] = attempt
            if result.switchover_gap_ms:
                break
        return result

    def _run_once(self, spec):
        """One migration between two fresh processes."""
        output = Output(os.path.join(self.work.dir, "serial"))
        machines = []
        try:
            for role in ("destination", "source"):
                machines.append(self.machine(self.work, role, spec, self.arguments(spec), output))
            return self._migrate(spec, machines[1], machines[0], output)
        finally:
            for machine in machines:
                machine.close()
            output.close()

    def _warm_up(self, spec, output):
        """Wait until the guest has gone through its working set; its rate (bytes/s)."""
        pages = spec.working_set // PAGE if spec.dirty_rate else 0
        output.wait(lambda lines: len(lines) > LINES_BEFORE and lines[-1].pages >= pages,
                    START_TIMEOUT_S, "start the guest, and have it go through its working set")
        first, last = output.lines[-LINES_BEFORE], output.lines[-1]
        return (last.pages - first.pages) * PAGE * 1e6 / (last.clock - first.clock) or None

    def _migrate(self, spec, source, destination, output):
        """Move it while it runs, and watch it run on."""
        rate = self._warm_up(spec, output)
        nr = len(output.lines) - LINES_BEFORE
        uri, begin = destination.listen(), time.time_ns() // 1000
        source.qmp.command("migrate", uri=uri)
        for machine in (source, destination):
            wait_completed(machine)
        done = len(output.lines)
        output.wait(lambda lines: len(lines) >= done + LINES_AFTER, LINES_TIMEOUT_S,
                    "see the guest run on at the destination")
        stop, resume = last_event(source.qmp, "STOP"), last_event(destination.qmp, "RESUME")
        seen = gaps_seen(output.lines[nr:], begin, stop, resume)
        figures, detail = source.figures()
        detail.update({"stopped_ms": (resume - stop) / 1000, "clock_lost_ms": seen.clock,
                       "gap_median_us": statistics.median(
                           x.gaps[0][0] for x in output.lines[nr:nr + LINES_BEFORE])})
        return Result(ram=spec.ram, dirty_rate=rate, gap_ms=seen.longest,
                      switchover_gap_ms=seen.switchover, detail=detail, **figures)


def wait_completed(machine):
    """Wait for the migration's end; anything but completed is an error."""
    ends = ("completed", "failed", "cancelled")
    event = machine.qmp.event(lambda e: e["event"] == "MIGRATION"
                              and e["data"]["status"] in ends, COMPLETE_TIMEOUT_S, keep=True)
    if event["data"]["status"] != "completed":
        got = machine.qmp.command("query-migrate")
        raise PeerError(f"{machine.name}: the migration {event['data']['status']}: "
                        f"{got.get('error-desc', 'no reason given')}")


def last_event(qmp, name):
    """When the last event of that name was."""
    qmp.command("query-status")  # those from before have come when it is answered
    times = [event_us(e) for e in qmp.events if e["event"] == name]
    if not times:
        raise PeerError(f"there was no event {name}")
    return times[-1]


class TernVmPeer(Vm):
    """tern-vm."""

    name = "tern-vm"
    machine = TernVm


class QemuVmPeer(Vm):
    """QEMU with KVM."""

    name = "qemu-vm"
    part = "qemu"
    machine = QemuVm

    def available(self):
        """None, or why not."""
        if not shutil.which(qemu.BINARY):
            return f"{qemu.BINARY} is not installed (package qemu-system-x86)"
        return super().available()
