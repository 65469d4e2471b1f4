# SPDX-License-Identifier: BSD-2-Clause
"""The scenarios as data: what is moved, by whom, and what must come out.

A Scenario holds entries (label, peer, Spec) measured side by side, and targets
over their results.  All byte sizes of a scenario scale together, so --quick and
--size change how much is moved and nothing else.
"""

import dataclasses

from peers.base import GIB, MIB, Spec


METRIC_NAMES = {"total_ms": "speed", "downtime_ms": "downtime", "stall_ms": "longest stall",
                "gap_ms": "longest gap",
                "fault_p50_us": "median fault",
                "asked_p50_us": "median fault that was asked for",
                "background_mib_s": "background rate"}


@dataclasses.dataclass
class Entry:
    """One column of a comparison."""

    label: str
    peer: str
    spec: Spec
    optional: bool = False  # a refusal by this peer is a note, not a failure


@dataclasses.dataclass
class Ratio:
    """time(to) / time(of) as a speed ratio, or time(of) / time(to) when inverse.

    @to names one entry or several, of which the one with the best median counts.
    Without a limit it is reported and not judged.
    """

    of: str
    to: tuple
    at_least: float = None
    at_most: float = None
    inverse: bool = False
    metric: str = "total_ms"

    def text(self):
        """For tables."""
        to = "best of " + ", ".join(self.to) if len(self.to) > 1 else self.to[0]
        name = METRIC_NAMES[self.metric]
        if self.inverse:
            name = {"speed": "total time"}.get(name, name)
        return f"{name} of {self.of} against {to}"


@dataclasses.dataclass
class Limit:
    """The median of @metric of @of must not pass @at_most (a number, or a function of Spec),
    or must reach @at_least.

    With @worst no run may pass it.  Without a bound it is reported and not judged.
    """

    of: str
    metric: str
    at_most: object
    unit: str = "MiB"
    worst: bool = False
    at_least: float = None

    def text(self):
        """For tables."""
        worst = ", every run" if self.worst else ""
        return f"{self.metric.replace('_', ' ')} of {self.of}{worst}"

    def bound(self, spec):
        """The limit for this spec."""
        return self.at_most(spec) if callable(self.at_most) else self.at_most


@dataclasses.dataclass
class Scenario:
    """A named comparison."""

    name: str
    about: str
    ram: int
    entries: list
    targets: list
    quick_scale: float = 1 / 32
    group: str = "tcp"  # or postcopy; rdma, which needs an RDMA device; vm, which needs KVM
    scale_rate: bool = True  # the dirty rate scales like the sizes
    ledger: bool = False  # show the steps of the downtime


def _idle(**kwargs):
    """Spec of 2 GiB, both sides populated, guest idle."""
    return Spec(ram=2 * GIB, prealloc=True, **kwargs)


def _qemu(make, zero_copy=True):
    """QEMU at its possible best settings; compare prints all and counts the best."""
    entries = [Entry("qemu multifd 2", "qemu", make(options={"multifd": 2})),
               Entry("qemu multifd 4", "qemu", make(options={"multifd": 4})),
               Entry("qemu single", "qemu", make(options={"multifd": 0}))]
    if zero_copy:
        entries.append(Entry("qemu multifd 2 zero-copy", "qemu",
                             make(options={"multifd": 2, "zero_copy": True}), optional=True))
    return entries


def _pump(make):
    """The ceiling with each chunk size; the best median counts."""
    return [Entry(f"pump {chunk}", "pump", make(options={"chunk": chunk}))
            for chunk in ("256K", "1M", "4M")]


def _labels(entries):
    """The labels as a tuple, for Ratio.to."""
    return tuple(e.label for e in entries)


def _random_idle():
    qemu, pump = _qemu(_idle), _pump(_idle)
    return Scenario(
        "random-2g-idle", "2 GiB of random content, guest idle, both sides populated beforehand",
        2 * GIB,
        [Entry("tern", "tern", _idle())] + pump + qemu,
        [Ratio("tern", _labels(pump), at_least=0.92), Ratio("tern", _labels(qemu), at_least=1.25)])


def _random_fresh():
    def spec(**kwargs):
        return Spec(ram=2 * GIB, **kwargs)
    qemu, pump = _qemu(spec, zero_copy=False), _pump(spec)
    return Scenario(
        "random-2g-fresh", "2 GiB of random content, guest idle, destination never touched before",
        2 * GIB,
        [Entry("tern", "tern", spec())] + pump + qemu,
        [Ratio("tern", _labels(pump)), Ratio("tern", _labels(qemu))])


def _zero():
    def spec(**kwargs):
        return _idle(fill="zero", **kwargs)
    qemu = _qemu(spec)
    return Scenario(
        "zero-2g", "2 GiB of written zeros, guest idle, both sides populated beforehand", 2 * GIB,
        [Entry("tern", "tern", spec())] + qemu,
        [Ratio("tern", _labels(qemu), at_least=1.5)])


def _text():
    def spec(**kwargs):
        return _idle(fill="text", **kwargs)
    qemu = _qemu(spec, zero_copy=False)
    return Scenario(
        "text-2g", "2 GiB of words, guest idle, both sides populated beforehand", 2 * GIB,
        [Entry("tern", "tern", spec())] + qemu, [Ratio("tern", _labels(qemu))])


def _sparse():
    big = Spec(ram=64 * GIB, touched=GIB)
    limit = [Limit("tern 64 GiB", metric, lambda spec: (spec.touched + 64 * MIB) / MIB)
             for metric in ("source_growth", "destination_growth")]
    return Scenario(
        "sparse-64g", "64 GiB of which 1 GiB was ever touched, against 1 GiB all touched: "
        "untouched RAM costs nothing", 64 * GIB,
        [Entry("tern 64 GiB", "tern", big), Entry("tern 1 GiB", "tern", Spec(ram=GIB))],
        [Ratio("tern 64 GiB", ("tern 1 GiB",), at_most=1.15, inverse=True)] + limit,
        quick_scale=1 / 16)


def _live():
    def spec(**kwargs):
        return Spec(ram=GIB, touched=512 * MIB, dirty_rate=400_000_000, working_set=256 * MIB,
                    **kwargs)
    qemu = _qemu(spec, zero_copy=False)
    return Scenario(
        "live-1g", "1 GiB of which 512 MiB random, 256 MiB rewritten in order over and over at "
        "400 MB/s, downtime limit 300 ms", GIB,
        [Entry("tern", "tern", spec())] + qemu,
        [Limit("tern", "downtime_ms", lambda spec: spec.downtime_ms, unit="ms"),
         Ratio("tern", _labels(qemu)), Ratio("tern", _labels(qemu), inverse=True,
                                             metric="downtime_ms")],
        quick_scale=1 / 4)


def _engine():
    def bound(spec):
        return (spec.ram * 0.0005 + 4 * MIB * spec.channels) / MIB
    entries = [Entry(f"tern {n} channel" + "s" * (n > 1), "tern",
                     Spec(ram=4 * GIB, touched=GIB, channels=n))
               for n in (1, 2, 4)]
    return Scenario(
        "engine-memory", "what the engine holds beyond guest RAM: at most 0.05 % of RAM and "
        "4 MiB per channel", 4 * GIB, entries,
        [Limit(e.label, metric, bound) for e in entries
         for metric in ("source_engine", "destination_engine")])


# Postcopy.  Nothing but what is asked for: so little may be sent besides that the
# migration ends because the guest has touched everything.
QUIET = ("--max-postcopy-bandwidth", "256K")
TOUCH_RATE = 100 * MIB  # bytes of pages per second that a guest tries to touch


def _postcopy(label, ram, *arguments, mode="postcopy", touch=TOUCH_RATE, **kwargs):
    """One entry of tern in postcopy, whose guest touches all of its random RAM at random."""
    options = {"measure": "postcopy", "arguments": ["--mode", mode, *arguments],
               **kwargs.pop("options", {})}
    return Entry(label, "tern", Spec(ram=ram, dirty_rate=touch, options=options,
                                     **{"working_set": ram if touch else 0, "pattern": "uniform",
                                        **kwargs}))


def _postcopy_fault():
    ram, big = 64 * MIB, GIB
    one, both = {"cpus": "0"}, {"measure": "both"}
    return Scenario(
        "postcopy-fault", "a page fault as the guest's thread sees it, with nothing else going "
        "on and with the background at full speed, against the resolution of a minor fault plus "
        "a round trip over TCP", big,
        [_postcopy("tern", ram, *QUIET), Entry("bare", "faults", Spec(ram=ram)),
         Entry("bare both", "faults", Spec(ram=ram, options=both)),
         _postcopy("tern, one CPU", ram, *QUIET, options=one),
         Entry("bare, one CPU", "faults", Spec(ram=ram, options=one)),
         Entry("bare both, one CPU", "faults", Spec(ram=ram, options={**one, **both})),
         _postcopy("tern, background", big)],
        [Ratio("tern", ("bare",), at_most=1.3, inverse=True, metric="fault_p50_us"),
         Limit("tern", "fault_spread", 4, unit="times the median"),
         Ratio("tern, background", ("tern",), at_most=2, inverse=True, metric="fault_p50_us"),
         Ratio("tern", ("bare both",), inverse=True, metric="fault_p50_us"),
         Ratio("tern, one CPU", ("bare both, one CPU",), inverse=True, metric="fault_p50_us"),
         Ratio("tern, one CPU", ("bare, one CPU",), inverse=True, metric="fault_p50_us"),
         Limit("tern, one CPU", "fault_spread", None, unit="times the median")],
        quick_scale=1 / 16, group="postcopy", scale_rate=False)


def _postcopy_live():
    load = {"touched": 512 * MIB, "working_set": 256 * MIB, "pattern": "sequential"}
    qemu = [Entry(f"qemu postcopy{suffix}", "qemu",
                  Spec(ram=GIB, dirty_rate=400_000_000, options={"postcopy": kind}, **load),
                  optional=kind == "preempt")  # once in 30 runs its guest did not go on
            for kind, suffix in (("ram", ""), ("preempt", "-preempt"))]
    return Scenario(
        "postcopy-live-1g", "1 GiB of which 512 MiB random, 256 MiB rewritten in order over and "
        "over at 400 MB/s; one round of precopy, then postcopy", GIB,
        [_postcopy("tern", GIB, "--precopy-rounds", "1", mode="hybrid", touch=400_000_000,
                   **load)] + qemu,
        [Ratio("tern", _labels(qemu)),
         Ratio("tern", _labels(qemu), inverse=True, metric="stall_ms"),
         Ratio("tern", _labels(qemu), inverse=True, metric="downtime_ms")],
        quick_scale=1 / 4, group="postcopy")


def _postcopy_background():
    def entry(label, touch=TOUCH_RATE, **options):
        return _postcopy(label, GIB, touch=touch, prealloc=True, options=options)
    return Scenario(
        "postcopy-64-vcpus", "1 GiB of random content: how quickly pages come that nobody asked "
        "for, while 64 threads touch random pages and while nobody does", GIB,
        [entry("tern, no faults", touch=0), entry("tern, 64 threads", vcpus=64)],
        [Ratio("tern, 64 threads", ("tern, no faults",), at_least=0.5, inverse=True,
               metric="background_mib_s")],
        quick_scale=1 / 16, group="postcopy", scale_rate=False)


def _postcopy_downtime():
    sizes = (("tern, 256 MiB missing", 256 * MIB), ("tern, 4 GiB missing", 4 * GIB))
    return Scenario(
        "postcopy-downtime", "the downtime of a guest that lacks all of its RAM, by how much that "
        "is; 16 MiB of random content, guest idle", 4 * GIB,
        # Filling and freeing gigabytes keeps the kernel busy for seconds afterwards, and is
        # not what is compared: missing are all pages, whatever was in them.
        [_postcopy(label, ram, "--run-before", "300", touch=0, touched=16 * MIB)
         for label, ram in sizes],
        [Ratio(sizes[1][0], (sizes[0][0],), at_most=1.25, inverse=True, metric="downtime_ms")],
        quick_scale=1 / 32, group="postcopy", ledger=True)


def _postcopy_threads():
    entries = [_postcopy(f"{n} vCPU{'s' * (n > 1)}, {t} fault thread{'s' * (t > 1)}", 128 * MIB,
                         *QUIET, "--fault-threads", str(t), touch=4 * TOUCH_RATE,
                         pattern="sequential", options={"vcpus": n})
               for n in (1, 8, 64, 256) for t in (1, 2)]
    return Scenario(
        "postcopy-threads", "so many threads of the guest wait for pages at once, each going "
        "through a part of 128 MiB of random content", 128 * MIB, entries, [],
        quick_scale=1 / 16, group="postcopy", scale_rate=False)


# Guests under KVM; the same guest in tern-vm and in QEMU.
VM_QEMU_DOWNTIME_MS = 20  # QEMU takes the limit at its word; one that still converges


def _vm_entries(tern, **load):
    """tern-vm with each of the ways to track writes in @tern, and QEMU."""
    options = load.pop("options", {})
    entries = [Entry(label, "tern-vm", Spec(ram=GIB, options={"dirty": dirty, **options}, **load))
               for label, dirty in tern]
    return entries + [Entry(label, "qemu-vm",
                            Spec(ram=GIB, options={"multifd": n, **options}, **load))
                      for label, n in (("qemu single", 0), ("qemu multifd 2", 2))]


def _vm_dirty():
    entries = _vm_entries((("tern", "log"), ("tern uffd", "uffd")), dirty_rate=200_000_000,
                          working_set=256 * MIB)
    quick = dataclasses.replace(entries[-1].spec, downtime_ms=VM_QEMU_DOWNTIME_MS)
    entries.append(Entry(f"qemu multifd 2, {VM_QEMU_DOWNTIME_MS} ms", "qemu-vm", quick))
    others = _labels(entries[2:])
    return Scenario(
        "vm-dirty-1g", "a guest under KVM with 1 GiB of random content, which writes to the pages "
        "of 256 MiB in order, over and over, 200 MB of pages per second, and looks at its clock "
        "all the time; precopy, downtime limit 300 ms, or as it says", GIB, entries,
        [Limit("tern", "explained_percent", None, unit="%", at_least=95),
         Ratio("tern", others),
         Ratio("tern", others, inverse=True, metric="downtime_ms"),
         Ratio("tern", others, inverse=True, metric="gap_ms")],
        quick_scale=1 / 8, group="vm", ledger=True)


def _vm_idle():
    entries = _vm_entries((("tern", "log"), ("tern uffd", "uffd")), options={"halt": 1000},
                          downtime_ms=5)
    others = _labels(entries[2:])
    return Scenario(
        "vm-idle-1g", "a guest under KVM with 1 GiB of random content, which halts and looks at "
        "its clock 1000 times a second; precopy, downtime limit 5 ms", GIB, entries,
        [Limit("tern", "gap_ms", 5, unit="ms"), Limit("tern uffd", "gap_ms", 5, unit="ms"),
         Ratio("tern", others), Ratio("tern", others, inverse=True, metric="gap_ms")],
        quick_scale=1 / 8, group="vm", ledger=True)


# What follows needs an RDMA device; both ends use one port of it.

def _rdma(label, peer="tern", options=None, **kwargs):
    """One entry of tern over RDMA; @channels None: its default."""
    return Entry(label, peer, Spec(options={"transport": "rdma", **(options or {})},
                                   **{"channels": None, **kwargs}))


def _rdma_tern(**kwargs):
    """tern over RDMA at several settings; the first is what users get, and what is judged."""
    return [_rdma("tern", **kwargs),
            _rdma("tern 1 channel", **{**kwargs, "channels": 1}),
            _rdma("tern pin all", options={"arguments": ["--pin", "all"]}, **kwargs)]


def _rdma_qemu(**kwargs):
    """QEMU over RDMA at both of its settings."""
    return [Entry(f"qemu {pin}", "qemu", Spec(options={"rdma": pin}, **kwargs))
            for pin in ("pin-all", "on-demand")]


def _perftest(ram, sizes, **options):
    """ib_write_bw at several message sizes."""
    return [Entry(f"ib_write_bw {name}", "perftest",
                  Spec(ram=ram, options={"message": message, **options}))
            for name, message in sizes]


def _rdma_random():
    ram = 256 * MIB
    ceiling = _perftest(ram, (("64K", 64 << 10), ("256K", 256 << 10), ("1M", MIB),
                              ("4M", 4 * MIB)))
    two = [Entry(f"ib_write_bw 1M, 2 {what.replace('_', ' ')}", "perftest",
                 Spec(ram=ram, options={"message": MIB, what: 2}))
           for what in ("queue_pairs", "processes")]
    qemu = _rdma_qemu(ram=ram, prealloc=True)
    return Scenario(
        "rdma-random-256m", "256 MiB of random content, guest idle, both sides populated "
        "beforehand", ram, _rdma_tern(ram=ram, prealloc=True) + ceiling + two + qemu,
        [Ratio("tern", _labels(ceiling), at_least=0.95),
         Ratio("tern", ("qemu pin-all",), at_least=1.3),
         Ratio("tern", _labels(qemu)),
         Ratio("tern 1 channel", _labels(ceiling)),
         Ratio("tern", _labels(two))], quick_scale=1 / 8, group="rdma")


def _rdma_zero():
    ram = 256 * MIB
    qemu = _rdma_qemu(ram=ram, fill="zero", prealloc=True)
    return Scenario(
        "rdma-zero-256m", "256 MiB of written zeros, guest idle, both sides populated beforehand",
        ram, [_rdma("tern", ram=ram, fill="zero", prealloc=True)] + qemu,
        [Ratio("tern", ("qemu pin-all",), at_least=10), Ratio("tern", _labels(qemu))],
        quick_scale=1 / 8, group="rdma")


def _rdma_scatter():
    ram, working_set = 512 * MIB, 128 * MIB
    ceiling = [e for n in (16, 32, 64) for e in
               _perftest(working_set // 2, ((f"4K, lists of {n}", 4096),), post_list=n)]
    two = _perftest(working_set // 2, (("4K, lists of 32, 2 processes", 4096),), post_list=32,
                    processes=2)
    return Scenario(
        "rdma-scatter-128m", "every other page of 128 MiB was written during the first round: "
        "the second round, which sends those 64 MiB and nothing else, against ib_write_bw of "
        "as many 4 KiB messages", ram,
        [_rdma(label, ram=ram, prealloc=True, dirty_rate=100 * MIB, working_set=working_set,
               pattern="alternate", options={"measure": "second round"}, channels=channels)
         for label, channels in (("tern", None), ("tern 1 channel", 1))] + ceiling + two,
        [Ratio("tern", _labels(ceiling), at_least=0.90),
         Ratio("tern 1 channel", _labels(ceiling)), Ratio("tern", _labels(two))],
        quick_scale=1, group="rdma")  # a smaller first round would leave the guest no time


def _rdma_first_byte():
    ram, budget = 4 * GIB, 64 * MIB
    options = {"measure": "first byte"}
    # Watching takes CPU from those who are watched: not where time is measured.
    few = {**options, "watch": True, "arguments": ["--lock-budget", "64M"]}
    memory = {"ram": ram, "touched": 2 * GIB}
    # The kernel counts what else is registered too: the channels' own buffers.
    return Scenario(
        "rdma-first-byte-4g", "4 GiB of RAM of which 2 GiB touched, guest idle: from the control "
        "connection to the first write on the wire; then cancelled", ram,
        [_rdma("tern", options=options, **memory),
         _rdma("tern lock-budget 64M", options=few, **memory)],
        [Limit("tern", "first_byte_ms", 50, unit="ms"),
         Limit("tern lock-budget 64M", "locked_peak", budget / MIB, worst=True),
         Limit("tern lock-budget 64M", "pinned_peak", budget / MIB + 2, worst=True)],
        quick_scale=1 / 32, group="rdma")


def _rdma_live():
    ram = 512 * MIB
    return Scenario(
        "rdma-live-512m", "512 MiB of random content, 64 MiB rewritten in order over and over at "
        "10 MB/s, downtime limit 300 ms", ram,
        [_rdma("tern", ram=ram, dirty_rate=10_000_000, working_set=64 * MIB)],
        [Limit("tern", "downtime_ms", lambda spec: spec.downtime_ms, unit="ms")],
        quick_scale=1 / 8, group="rdma")


def _rdma_fault():
    ram = 16 * MIB
    return Scenario(
        "rdma-fault", "a page fault that has to be asked for, with nothing else going on, against "
        "the resolution of a minor fault plus two ib_read_lat of a page and an ib_send_lat", ram,
        [_postcopy("tern", ram, *QUIET, channels=None, options={"transport": "rdma"}),
         Entry("bare", "perftest", Spec(ram=ram, options={"measure": "fault"}))],
        [Ratio("tern", ("bare",), at_most=1.5, inverse=True, metric="fault_p50_us")],
        quick_scale=1 / 4, group="rdma", scale_rate=False)


SCENARIOS = {s.name: s for s in (_random_idle(), _random_fresh(), _zero(), _text(), _sparse(),
                                 _live(), _engine(), _postcopy_fault(), _postcopy_live(),
                                 _postcopy_background(), _postcopy_downtime(),
                                 _postcopy_threads(), _vm_dirty(), _vm_idle(),
                                 _rdma_random(), _rdma_zero(),
                                 _rdma_scatter(), _rdma_first_byte(), _rdma_live(),
                                 _rdma_fault())}
GROUPS = tuple(dict.fromkeys(s.group for s in SCENARIOS.values()))


def scaled(scenario, factor):
    """The same scenario with every byte size times @factor, in whole MiB."""
    def mib(n):
        return max(MIB, int(n * factor) // MIB * MIB) if n else 0
    entries = []
    for e in scenario.entries:
        spec = dataclasses.replace(e.spec, ram=mib(e.spec.ram), touched=mib(e.spec.touched),
                                   working_set=mib(e.spec.working_set),
                                   dirty_rate=mib(e.spec.dirty_rate)
                                   if factor != 1 and scenario.scale_rate
                                   else e.spec.dirty_rate)
        entries.append(dataclasses.replace(e, spec=spec))
    return dataclasses.replace(scenario, ram=mib(scenario.ram), entries=entries)
