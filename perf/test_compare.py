#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Tests of the harness itself: its arithmetic, its verdicts, and that it cleans up."""

import argparse
import contextlib
import glob
import importlib.machinery
import importlib.util
import io
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, HERE)
sys.dont_write_bytecode = True

from peers import faults, perftest, qemu, rdma, report, scenarios, tern, vm  # noqa: E402
from peers.base import GIB, MIB, PeerError, Result, Spec  # noqa: E402

COMPARE = os.path.join(HERE, "compare")


def load_compare():
    """The harness as a module; its file has no .py."""
    loader = importlib.machinery.SourceFileLoader("compare", COMPARE)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("compare", loader))
    loader.exec_module(module)
    return module


def runs_of(**values):
    """Run records from label=[total_ms per round]."""
    return [{"entry": label, "round": i + 1, "result": {"total_ms": v}}
            for label, series in values.items() for i, v in enumerate(series)]


class Statistics(unittest.TestCase):
    """Medians, ratios, verdicts."""

    def test_spread(self):
        self.assertEqual(report.spread([4, 1, 3, 2, 5]),
                         {"median": 3, "min": 1, "max": 5, "iqr": 2.0, "runs": 5})
        self.assertIsNone(report.spread([]))

    def test_speed_ratio_is_time_of_the_other_over_ours(self):
        target = scenarios.Ratio("a", ("b",), at_least=1.25)
        got = report.judge_ratio(target, runs_of(a=[100, 200, 100], b=[130, 130, 260]))
        self.assertAlmostEqual(got["ratio_of_medians"], 1.3)
        self.assertAlmostEqual(got["paired"]["median"], 1.3)
        self.assertAlmostEqual(got["paired"]["min"], 0.65)
        self.assertEqual(got["verdict"], "met")

    def test_missed_by_a_little_is_missed(self):
        target = scenarios.Ratio("a", ("b",), at_least=1.25)
        self.assertEqual(report.judge_ratio(target, runs_of(a=[100], b=[124.9]))["verdict"],
                         "missed")

    def test_best_median_of_several_counts(self):
        target = scenarios.Ratio("a", ("b", "c"), at_least=1)
        got = report.judge_ratio(target, runs_of(a=[100], b=[300], c=[90]))
        self.assertEqual((got["against"], got["verdict"]), ("c", "missed"))

    def test_inverse_ratio_has_a_ceiling(self):
        target = scenarios.Ratio("big", ("small",), at_most=1.15, inverse=True)
        self.assertEqual(report.judge_ratio(target, runs_of(big=[115], small=[100]))["verdict"],
                         "met")
        self.assertEqual(report.judge_ratio(target, runs_of(big=[116], small=[100]))["verdict"],
                         "missed")

    def test_worst_run_counts_where_it_is_asked_for(self):
        runs = [{"entry": "a", "round": i, "result": {"locked_peak": n * MIB}}
                for i, n in enumerate((60, 61, 65))]
        for worst, verdict in ((False, "met"), (True, "missed")):
            target = scenarios.Limit("a", "locked_peak", 64, worst=worst)
            self.assertEqual(report.judge_limit(target, runs, Spec(ram=GIB))["verdict"], verdict)

    def test_inverse_ratio_of_rates_has_a_floor(self):
        target = scenarios.Ratio("busy", ("idle",), at_least=0.5, inverse=True,
                                 metric="background_mib_s")
        for rate, verdict in ((500, "met"), (499, "missed")):
            runs = [{"entry": label, "round": 1, "result": {"background_mib_s": n}}
                    for label, n in (("busy", rate), ("idle", 1000))]
            self.assertEqual(report.judge_ratio(target, runs)["verdict"], verdict)

    def test_limit_without_a_bound_is_reported(self):
        target = scenarios.Limit("a", "fault_spread", None, unit="times the median")
        runs = [{"entry": "a", "round": 1, "result": {"fault_spread": 3.0}}]
        got = report.judge_limit(target, runs, Spec(ram=MIB))
        self.assertEqual((got["verdict"], got["value"]["median"]), ("reported", 3.0))
        self.assertNotIn("wanted", got)

    def test_fault_figures_without_a_total(self):
        got = Result(ram=MIB, fault_p50_us=20, fault_p99_us=50).as_dict()
        self.assertEqual(got["fault_spread"], 2.5)
        self.assertNotIn("mib_s", got)
        self.assertNotIn("fault_spread", Result(ram=MIB, fault_p50_us=20).as_dict())

    def test_tables_of_faults_and_of_the_ledger(self):
        entries = [scenarios.Entry("a", "tern", Spec(ram=MIB)),
                   scenarios.Entry("b", "faults", Spec(ram=MIB))]
        scenario = scenarios.Scenario("s", "a test", MIB, entries, [], ledger=True)
        results = [("a", Result(ram=MIB, total_ms=5, fault_p50_us=us, fault_p99_us=90,
                                ledger_ms={"pause": us / 1000})) for us in (30, 40, 32)]
        results.append(("b", Result(ram=MIB, fault_p50_us=21)))
        runs = [{"entry": label, "round": i, "result": result.as_dict()}
                for i, (label, result) in enumerate(results)]
        text = report.markdown({}, [report.summarise(scenario, runs)], {}, True)
        self.assertIn("| 32.0 (30.0–40.0) | 90.0 | 2.8 |", text)
        self.assertIn("| b | 1 | – | – | – | – | 21.0 (21.0–21.0) | – | – |", text)
        self.assertIn("| pause | 0.032 | – |", text)

    def test_failed_runs_are_no_measurement(self):
        target = scenarios.Ratio("a", ("b",), at_least=1)
        runs = runs_of(a=[100]) + [{"entry": "b", "round": 1, "error": "broke"}]
        self.assertEqual(report.judge_ratio(target, runs)["verdict"], "not measured")

    def test_limit_in_mib(self):
        target = scenarios.Limit("a", "source_growth", lambda spec: spec.touched / MIB + 64)
        for growth, verdict in ((GIB + 64 * MIB, "met"), (GIB + 65 * MIB, "missed")):
            runs = [{"entry": "a", "round": 1, "result": {"source_growth": growth}}]
            got = report.judge_limit(target, runs, Spec(ram=64 * GIB, touched=GIB))
            self.assertEqual(got["verdict"], verdict)

    def test_result_figures(self):
        got = Result(ram=2 * GIB, total_ms=500, cpu_s=3).as_dict()
        self.assertEqual((got["mib_s"], got["cpu_s_per_gib"]), (4096.0, 1.5))


class Scaling(unittest.TestCase):
    """--quick and --size."""

    def test_all_sizes_scale_alike(self):
        live = scenarios.scaled(scenarios.SCENARIOS["live-1g"], 1 / 4)
        spec = live.entries[0].spec
        self.assertEqual((spec.ram, spec.touched, spec.working_set),
                         (256 * MIB, 128 * MIB, 64 * MIB))

    def test_full_size_is_untouched(self):
        live = scenarios.SCENARIOS["live-1g"]
        self.assertEqual(scenarios.scaled(live, 1).entries[0].spec, live.entries[0].spec)

    def test_default_group_needs_no_device(self):
        for s in scenarios.SCENARIOS.values():
            needs = any(e.peer == "perftest" or e.spec.options.get("rdma") or
                        e.spec.options.get("transport") == "rdma" for e in s.entries)
            self.assertEqual(s.group == "rdma", needs)

    def test_rate_of_touches_does_not_scale(self):
        for name, same in (("postcopy-fault", True), ("postcopy-live-1g", False)):
            full = scenarios.SCENARIOS[name]
            small = scenarios.scaled(full, 1 / 4)
            self.assertEqual(small.entries[0].spec.dirty_rate == full.entries[0].spec.dirty_rate,
                             same)

    def test_targets_name_entries(self):
        for s in scenarios.SCENARIOS.values():
            labels = {e.label for e in s.entries}
            for t in s.targets:
                self.assertIn(t.of, labels)
                self.assertLessEqual(set(getattr(t, "to", ())), labels)


PERFTEST_OUTPUT = """
---------------------------------------------------------------------------------------
 #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]
 65536      2048             83.70              82.46  \t\t   0.001319
---------------------------------------------------------------------------------------
"""


LATENCY_OUTPUT = """
---------------------------------------------------------------------------------------
 #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    \
t_stdev[usec]   99% percentile[usec]   99.9% percentile[usec]
 4096    2000          43.10          261.07       51.25     \t       52.11     \t5.66        71.45\
                   201.13
---------------------------------------------------------------------------------------
"""


class FaultsPeer(unittest.TestCase):
    """What is taken from perf/faults."""

    def measure(self, text, **options):
        """The measurement if perf/faults printed @text, and how it was called."""
        calls = []

        class Work:
            def capture(self, argv):
                calls.append(argv)
                return text, ""
        return faults.measure(Work(), "/faults", Spec(ram=8 * MIB, options=options)), calls[0]

    def test_a_fault_for_every_page_on_the_cpus_asked_for(self):
        text = json.dumps({"minor_us": {"p50": 7}, "tcp_us": {"p50": 13.5},
                           "both_us": {"p50": 32, "p99": 90}})
        got, argv = self.measure(text, cpus="0")
        self.assertEqual((got["minor_us"]["p50"], got["tcp_us"]["p50"]), (7.0, 13.5))
        self.assertEqual(argv, ["taskset", "-c", "0", "/faults", "--pages", "2048"])
        self.assertEqual(self.measure(text)[1], ["/faults", "--pages", "2048"])

    def test_other_output_is_refused(self):
        for text in ("", "{}", '{"minor_us": 3, "tcp_us": 4}', '{"minor_us": {"p50": "x"}}'):
            with self.assertRaises(PeerError):
                self.measure(text)


class QemuGuest(unittest.TestCase):
    """The status page of dirty_guest.S."""

    def test_stall_is_read_in_ms_and_forgotten(self):
        path = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), "ram")
        with open(path, "wb") as f:
            f.truncate(4 * MIB)
            f.seek(qemu.GUEST_STATUS)
            f.write(struct.pack("<QIIQI", 77, 2, qemu.GUEST_MAGIC, 3 << 33, 1 << 30))
        status = qemu.GuestStatus(path)
        self.assertEqual((status.read(), status.stall_ms()), ((77, 2), 480.0))
        status.stall_forget()
        self.assertEqual((status.read(), status.stall_ms()), ((77, 2), 0.0))


class PerftestPeer(unittest.TestCase):
    """What ib_write_bw says, and how it is asked."""

    def test_average_is_taken_and_not_the_peak(self):
        self.assertEqual(perftest.parse(PERFTEST_OUTPUT), (65536, 2048, 82.46))

    def test_typical_latency_is_taken(self):
        text = LATENCY_OUTPUT
        self.assertEqual(perftest.parse_latency("ib_read_lat", text), 51.25)
        row = [line for line in text.splitlines() if line.startswith(" 4096")][0]
        for bad in (text.replace("t_typical", "other"), text.replace(row, ""),
                    text.replace("51.25", "0.00"), ""):
            with self.assertRaises(PeerError):
                perftest.parse_latency("ib_read_lat", bad)

    def test_other_units_are_refused(self):
        with self.assertRaises(PeerError):
            perftest.parse(PERFTEST_OUTPUT.replace("MB/sec", "Gb/sec"))

    def test_no_row_and_two_rows_are_refused(self):
        row = PERFTEST_OUTPUT.splitlines(keepends=True)[3]
        for text in (PERFTEST_OUTPUT.replace(row, ""), PERFTEST_OUTPUT + row):
            with self.assertRaises(PeerError):
                perftest.parse(text)

    def test_a_speed_of_zero_is_refused(self):
        with self.assertRaises(PeerError):
            perftest.parse(PERFTEST_OUTPUT.replace("82.46", "0.00"))

    def test_all_bytes_of_the_scenario_are_written(self):
        peer = object.__new__(perftest.Perftest)
        peer.port = rdma.Port("rxe0", 1, "192.0.2.1")
        argv = peer._argv(Spec(ram=256 * MIB, options={"message": MIB, "queue_pairs": 2}))
        self.assertEqual(argv[argv.index("-n") + 1], "128")
        self.assertEqual(argv[argv.index("-q") + 1], "2")
        argv = peer._argv(Spec(ram=64 * MIB, options={"message": 4096, "post_list": 32}))
        self.assertEqual(argv[argv.index("-n") + 1], "16384")
        self.assertEqual(argv[argv.index("--post_list") + 1], "32")

    def test_listening_port_is_found_in_the_kernels_table(self):
        table = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), "tcp")
        with open(table, "w", encoding="ascii") as f:
            f.write("  sl  local_address rem_address   st\n"
                    "   0: 0100007F:4853 00000000:0000 0A\n"
                    "   1: 0100007F:4854 0100007F:4853 01\n")
        self.assertTrue(perftest.listening(0x4853, (table,)))
        self.assertFalse(perftest.listening(0x4854, (table, table + ".absent")))


class RdmaPort(unittest.TestCase):
    """Which device the peers use."""

    def setUp(self):
        self.root = self.enterContext(tempfile.TemporaryDirectory())

    def port(self, device, state, interface):
        """Make a port as sysfs shows it."""
        path = os.path.join(self.root, device, "ports", "1")
        os.makedirs(os.path.join(path, "gid_attrs", "ndevs"))
        for name, text in (("state", state), ("gid_attrs/ndevs/0", interface)):
            with open(os.path.join(path, name), "w", encoding="ascii") as f:
                f.write(text + "\n")

    def test_first_active_port_with_an_address(self):
        self.port("a0", "1: DOWN", "eth0")
        self.port("b0", "4: ACTIVE", "bare0")
        self.port("c0", "4: ACTIVE", "rdma0")
        addresses = {"eth0": ["192.0.2.1"], "bare0": [], "rdma0": ["192.0.2.7"]}
        self.assertEqual(rdma.find_port(self.root, addresses.get),
                         rdma.Port("c0", 1, "192.0.2.7"))

    def test_no_device_is_no_port(self):
        self.assertIsNone(rdma.find_port(self.root, lambda interface: ["192.0.2.1"]))


def tern_json(**changes):
    """The JSON of a migration that went well."""
    return {"status": "completed", "verify": {"bad": 0, "guest_ran": True}, "downtime_ms": 3.0,
            "downtime_ledger_us": {"pause": 1000.0, "resume": 2000.0}, "ram_bytes": MIB,
            "connected_ms": 20.0, "first_byte_ms": 65.0, "round_list": [],
            "registration": {"locked_peak_bytes": 4 * MIB}, **changes}


class TernPeer(unittest.TestCase):
    """What must be so in a run of tern, and what is taken from it."""

    def test_good_run(self):
        tern.check(tern_json(), "whole")

    def test_ledger_that_does_not_add_up(self):
        with self.assertRaisesRegex(PeerError, "sums up to 3.000 ms, the downtime is 3.500"):
            tern.check(tern_json(downtime_ms=3.5), "whole")

    def test_bad_pages_and_a_guest_that_stands(self):
        for verify in ({"bad": 1, "guest_ran": True}, {"bad": 0, "guest_ran": False}, None):
            with self.assertRaises(PeerError):
                tern.check(tern_json(verify=verify), "whole")

    def test_cancelled_counts_only_where_it_is_meant_and_verified(self):
        cancelled = tern_json(status="cancelled", verify=None, downtime_ms=0.0,
                              downtime_ledger_us={}, source_verify={"bad": 0, "guest_ran": True})
        tern.check(cancelled, "first byte")
        with self.assertRaises(PeerError):
            tern.check(cancelled, "whole")
        cancelled["source_verify"]["bad"] = 1
        with self.assertRaises(PeerError):
            tern.check(cancelled, "first byte")

    def test_first_byte_counts_from_the_connection(self):
        got = tern.first_byte(Spec(ram=MIB), tern_json())
        self.assertEqual((got.total_ms, got.first_byte_ms, got.locked_peak),
                         (65.0, 45.0, 4 * MIB))
        with self.assertRaises(PeerError):
            tern.first_byte(Spec(ram=MIB), tern_json(first_byte_ms=None))

    def postcopy(self, **changes):
        """The measurement of a postcopy migration."""
        got = tern_json(
            total_ms=500, rounds=1, cpu={"source_s": 1, "destination_s": 1},
            guest={"source_longest_gap_us": 900.0, "destination_longest_gap_us": 4000.0,
                   "first_touch_us": {"nr": 300, "p50": 1.0},
                   "waited_us": {"nr": 200, "p50": 50.0, "p99": 150.0}},
            channels=[{"bytes": 30 * MIB}, {"bytes": 20 * MIB}, {"bytes": 7 * MIB}],
            postcopy={"total_ms": 400.0, "fault_us": {"p50": 45.0}, "threads": []}, **changes)
        return tern.postcopy(Spec(ram=MIB, options={"measure": "postcopy"}), got)

    def test_faults_are_what_the_guest_waited_for(self):
        got = self.postcopy()
        self.assertEqual((got.fault_p50_us, got.fault_spread, got.faults_s, got.stall_ms),
                         (50.0, 3.0, 500.0, 4.0))
        self.assertEqual(got.asked_p50_us, 45.0)
        self.assertEqual(got.ledger_ms, {"pause": 1.0, "resume": 2.0})

    def test_background_is_what_all_channels_but_the_last_brought(self):
        self.assertEqual(self.postcopy().background_mib_s, 125.0)

    def second_round(self, pages):
        """The measurement of a second round of @pages, 1,024 being due."""
        rounds = [{"normal_pages": 9999, "sent_bytes": 1, "duration_ms": 1.0},
                  {"normal_pages": pages, "sent_bytes": pages * 4096, "duration_ms": 50.0}]
        return tern.second_round(Spec(ram=64 * MIB, working_set=8 * MIB),
                                 tern_json(round_list=rounds))

    def test_second_round_is_what_is_measured(self):
        got = self.second_round(1024)
        self.assertEqual((got.ram, got.total_ms, got.mib_s), (4 * MIB, 50.0, 80.0))

    def test_second_round_of_other_pages_is_refused(self):
        for pages in (1000, 1025):
            with self.assertRaises(PeerError):
                self.second_round(pages)

    def test_lock_watch_sums_pinned_and_locked_of_parent_and_child(self):
        proc = self.enterContext(tempfile.TemporaryDirectory())
        for pid, pinned in ((7, 100), (8, 300)):
            os.makedirs(f"{proc}/{pid}/task/{pid}")
            with open(f"{proc}/{pid}/status", "w", encoding="ascii") as f:
                f.write(f"VmLck:\t 20 kB\nVmPin:\t {pinned} kB\nVmRSS:\t 9999 kB\n")
        with open(f"{proc}/7/task/7/children", "w", encoding="ascii") as f:
            f.write("8 9 ")
        watch = tern.LockWatch(7, proc)
        watch.look()
        self.assertEqual((watch.peak, watch.samples), (320 * 1024, 2))


GUEST_LINE = ("dirty: vcpu 0 line {n} pages {pages} gap_us 2000 longest_us 2500 gaps {gaps} "
              "said_us 900 back 0 clock_us {clock}")


class VmPeer(unittest.TestCase):
    """What a guest under KVM says of its own move."""

    @staticmethod
    def lines(*gaps, delay=1000, stands_still=0):
        """A line per 100 ms from 100 ms on, by the host's clock; the second one with @gaps.

        The guest's clock began at 0 and stood still at 150 ms; a line takes @delay.
        """
        out = []
        for i in range(1, 5):
            clock = i * 100_000 - (stands_still if i > 1 else 0)
            text = ",".join(f"{g}@{e}" for g, e in gaps) if i == 2 else f"10@{clock - 5}"
            out.append(vm.Line.parse(GUEST_LINE.format(n=i, pages=i, gaps=text, clock=clock),
                                     i * 100_000 + delay + 50 * i))
        return out

    def test_line_is_taken_apart(self):
        got = vm.Line.parse(GUEST_LINE.format(n=7, pages=9, gaps="2000@5000,30@4000", clock=6000),
                            123)
        self.assertEqual(got, vm.Line(123, 9, [(2000, 5000), (30, 4000)], 900, 6000))

    def test_other_lines_are_passed_over(self):
        self.assertIsNone(vm.Line.parse("dirty: vcpu 0 has filled 2048 pages", 1))

    def test_time_that_goes_back_is_an_error(self):
        line = GUEST_LINE.format(n=1, pages=1, gaps="1@1", clock=1).replace("back 0", "back 1")
        with self.assertRaisesRegex(PeerError, "went back"):
            vm.Line.parse(line, 1)

    def test_gap_of_the_switchover_is_the_one_that_goes_on_after_stop(self):
        seen = vm.gaps_seen(self.lines((9000, 190_000), (3000, 152_000)), 120_000, 150_500,
                            153_000)
        self.assertEqual((seen.longest, seen.switchover), (9, 3))
        self.assertLess(seen.clock, vm.NOISE_MS)

    def test_gap_right_behind_a_short_switchover_is_another_one(self):
        seen = vm.gaps_seen(self.lines((1000, 151_200), (5000, 156_300)), 120_000, 150_500,
                            151_400)
        self.assertEqual((seen.longest, seen.switchover), (5, 1))

    def test_printing_at_the_switchover_is_no_gap(self):
        seen = vm.gaps_seen(self.lines((9000, 190_000)), 120_000, 150_500, 153_000)
        self.assertEqual((seen.longest, seen.switchover), (9, None))

    def test_time_that_the_guests_clock_does_not_count_is_added(self):
        seen = vm.gaps_seen(self.lines((500, 150_200), stands_still=40_000), 120_000, 150_500,
                            191_000)
        self.assertAlmostEqual(seen.switchover, 40.5, delta=0.1)
        self.assertEqual(seen.longest, seen.switchover)

    def test_gaps_before_the_move_do_not_count(self):
        seen = vm.gaps_seen(self.lines((3000, 152_000)), 120_000, 150_500, 153_000)
        self.assertEqual(seen.longest, 3)

    def test_silent_guest_is_an_error(self):
        with self.assertRaisesRegex(PeerError, "printed nothing"):
            vm.gaps_seen(self.lines((3000, 152_000))[:1], 120_000, 150_500, 153_000)

    def test_output_is_read_as_it_comes(self):
        with tempfile.TemporaryDirectory() as folder:
            output = vm.Output(os.path.join(folder, "serial"))
            os.write(output.fd, b"dirty: vcpu 0 has filled 2 pages\n" +
                     GUEST_LINE.format(n=1, pages=4, gaps="7@8", clock=9).encode() + b"\n")
            output.wait(len, 10, "see a line")
            output.close()
            self.assertEqual([line.pages for line in output.lines], [4])

    def test_ledger_over_gap(self):
        got = Result(ram=MIB, downtime_ms=1.9, switchover_gap_ms=2).as_dict()
        self.assertEqual(got["explained_percent"], 95)
        got = Result(ram=MIB, downtime_ms=4, switchover_gap_ms=2).as_dict()
        self.assertEqual(got["explained_percent"], 50)
        self.assertNotIn("explained_percent", Result(ram=MIB, switchover_gap_ms=2).as_dict())
        target = scenarios.Limit("a", "explained_percent", None, unit="%", at_least=95)
        for percent, verdict in ((95, "met"), (94.9, "missed")):
            runs = [{"entry": "a", "round": 1, "result": {"explained_percent": percent}}]
            self.assertEqual(report.judge_limit(target, runs, Spec(ram=MIB))["verdict"], verdict)


class FakePeer:
    """Counts its runs; fails on demand."""

    name, part, fail = "fake", None, 0

    def __init__(self, work):
        pass

    def available(self):
        return None

    def version(self):
        return None

    def run(self, spec):
        if self.fail:
            self.fail -= 1
            raise PeerError("it broke")
        return Result(ram=spec.ram, total_ms=100)


class Rounds(unittest.TestCase):
    """Order of runs and the exit status, with a peer made for it."""

    def run_harness(self, fail=0, optional=False, part=None):
        """(exit status, run records) of three rounds of three entries."""
        compare = load_compare()
        entries = [scenarios.Entry(x, "fake", Spec(ram=MIB), optional) for x in "abc"]
        compare.SCENARIOS = {"s": scenarios.Scenario("s", "a test", MIB, entries, [])}
        compare.PEERS = {"fake": type("Fake", (FakePeer,), {"fail": fail, "part": part})}
        args = argparse.Namespace(build="/nonexistent", root=HERE, leave_out="", scenario=None,
                                  peer=None, group="tcp", size=None, quick=False, runs=3,
                                  warmup=1, json="-", markdown=os.devnull, strict=False)
        harness = compare.Harness(args)
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
                status = harness.run()
        finally:
            harness.work.close()
        lines = [json.loads(line) for line in out.getvalue().splitlines()]
        return status, [r for r in lines if r["kind"] == "run"]

    def test_rounds_interleave_and_rotate(self):
        status, runs = self.run_harness()
        self.assertEqual(status, 0)
        order = ["".join(r["entry"] for r in runs if r["round"] == i) for i in range(4)]
        self.assertEqual(order, ["abc", "bca", "cab", "abc"])

    def test_failed_run_fails_the_harness(self):
        self.assertEqual(self.run_harness(fail=1)[0], 1)

    def test_other_peoples_software_gets_two_tries(self):
        status, runs = self.run_harness(fail=1, part="qemu")
        self.assertEqual(status, 0)
        self.assertEqual([r["error"] for r in runs if "error" in r], [])
        self.assertEqual(self.run_harness(fail=2, part="qemu")[0], 1)

    def test_refused_optional_entry_does_not(self):
        status, runs = self.run_harness(fail=99, optional=True)
        self.assertEqual(status, 0)
        self.assertEqual({r["error"] for r in runs}, {"it broke"})


class CommandLine(unittest.TestCase):
    """The program as it is called."""

    def setUp(self):
        self.build = tempfile.TemporaryDirectory()
        self.addCleanup(self.build.cleanup)

    def call(self, *arguments):
        """Run compare to its end with an empty build directory."""
        return subprocess.run([COMPARE, "--quick", "--build", self.build.name, *arguments],
                              capture_output=True, text=True, check=False, timeout=60,
                              env={**os.environ, "TERN_TEST_LEAVE_OUT": ""})

    def pump(self, script):
        """Put a shell script where the pump is expected."""
        os.mkdir(os.path.join(self.build.name, "perf"))
        path = os.path.join(self.build.name, "perf", "pump")
        with open(path, "w", encoding="ascii") as f:
            f.write("#!/bin/sh\n" + script)
        os.chmod(path, 0o755)

    def test_unknown_scenario_is_wrong_usage(self):
        self.assertEqual(self.call("--scenario", "nonsense").returncode, 2)

    def test_missing_peer_fails_and_says_why(self):
        got = self.call("--scenario", "random-2g-idle", "--peer", "pump")
        self.assertEqual(got.returncode, 1)
        self.assertIn("pump cannot run here", got.stderr)
        self.assertIn("is not built", got.stderr)

    def test_peer_left_out_by_name_does_not_fail(self):
        got = self.call("--scenario", "zero-2g", "--peer", "qemu", "--leave-out", "kvm,qemu")
        self.assertEqual(got.returncode, 0, got.stderr)
        self.assertIn("qemu was left out by name", got.stdout)

    def test_failing_peer_is_reported(self):
        self.pump("echo out of luck >&2; exit 1\n")
        got = self.call("--scenario", "random-2g-idle", "--peer", "pump")
        self.assertEqual(got.returncode, 1)
        self.assertIn("out of luck", got.stdout)

    def test_termination_leaves_nothing_behind(self):
        pid_file = os.path.join(self.build.name, "pid")
        self.pump(f"echo $$ >{pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 600\n")
        tmp = os.path.join(self.build.name, "tmp")
        os.mkdir(tmp)
        process = subprocess.Popen([COMPARE, "--quick", "--build", self.build.name,
                                    "--peer", "pump", "--scenario", "random-2g-idle"],
                                   env={**os.environ, "TMPDIR": tmp},
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while not os.path.exists(pid_file) and time.monotonic() < end:
            time.sleep(0.01)
        with open(pid_file, encoding="ascii") as f:
            pid = int(f.read())
        mine = f"/dev/shm/tern-compare-{process.pid}-*"
        self.assertEqual(len(glob.glob(mine)), 1)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(30), 143)
        with self.assertRaises(ProcessLookupError):
            os.kill(pid, 0)
        self.assertEqual(os.listdir(tmp), [])
        self.assertEqual(glob.glob(mine), [])


if __name__ == "__main__":
    unittest.main()
