#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""What the operator of a tern-vm has a say in while its guest moves.

TERN_TEST_VMM_URI: where the destinations listen (tcp:127.0.0.1:0).
"""
import time

from case import Case, main
from vmmtool import TIMEOUT, URI, CommandError

# Writes far more than the bandwidth that these tests allow.
WILD = ("--mem", "64M", "--vcpus", "2", "--guest", "dirty", "--guest-args",
        "rate=419430400 ws=33554432")
SLOW = 16 << 20


class Switchover(Case):
    """Pausing before it, postcopy when asked for, auto-converge."""

    def begin(self, args, **parameters):
        """A migration that has begun: source and destination."""
        a, b = self.vm(*args), self.vm(*args[:4], "--incoming", "defer")
        self.serial.wait_more()
        a.command("migrate-set-parameters", **parameters)
        b.command("migrate-incoming", uri=URI)
        a.command("migrate", uri=b.command("query-migrate")["uri"])
        return a, b

    def ends(self, *vms):
        """All have completed."""
        for vm in vms:
            self.assertEqual(vm.wait_migration("completed", "failed", "cancelled"), "completed",
                             vm.command("query-migrate"))

    def until(self, condition, what):
        """Wait for a condition."""
        end = time.monotonic() + TIMEOUT
        while not condition():
            self.assertLess(time.monotonic(), end, what)
            time.sleep(0.02)

    def test_pause_before_switchover(self):
        a, b = self.begin(("--mem", "64M", "--vcpus", "2", "--guest", "check"),
                          pause_before_switchover=True)
        self.refused(b, "GenericError", ["continue the source"], "migrate-continue",
                     state="pre-switchover")
        a.wait_migration("pre-switchover")
        self.assertEqual(a.status(), "finish-migrate")
        self.assertTrue(self.serial.is_silent())
        with self.assertRaises(CommandError):
            a.command("migrate-continue", state="device")
        with self.assertRaises(CommandError):
            a.command("migrate-continue")
        a.command("migrate-continue", state="pre-switchover")
        self.ends(a, b)
        ledger = a.command("query-migrate")["tern"]["downtime_ledger_us"]
        self.assertGreater(ledger["pre_switchover"], 0)
        self.refused(a, "GenericError", ["state is completed"], "migrate-continue",
                     state="pre-switchover")
        self.serial.wait_more()

    def test_cancel_before_switchover(self):
        a, _ = self.begin(("--mem", "64M", "--vcpus", "2", "--guest", "check"),
                          pause_before_switchover=True)
        a.wait_migration("pre-switchover")
        a.command("migrate_cancel")
        self.assertEqual(a.wait_migration("completed", "failed", "cancelled"), "cancelled")
        self.assertEqual(a.status(), "running")
        self.serial.wait_more()

    def test_blockers(self):
        """While there is a reason the guest does not move, and everybody can see why."""
        a = self.vm("--mem", "64M", "--vcpus", "2", "--guest", "check")
        b = self.vm("--mem", "64M", "--vcpus", "2", "--incoming", "defer")
        self.assertNotIn("blocked-reasons", a.command("query-migrate"))
        first = a.command("x-blocker-add", reason="device gpu0 cannot migrate")["id"]
        second = a.command("x-blocker-add", reason="a backup is being made")["id"]
        self.assertNotEqual(first, second)
        self.assertEqual(a.command("query-migrate")["blocked-reasons"],
                         ["device gpu0 cannot migrate", "a backup is being made"])
        b.command("migrate-incoming", uri=URI)
        uri = b.command("query-migrate")["uri"]
        self.refused(a, "GenericError",
                     ["cannot migrate now", "device gpu0 cannot migrate; a backup is being made"],
                     "migrate", uri=uri)
        self.assertEqual(a.status(), "running")
        a.command("x-blocker-del", id=first)
        self.refused(a, "GenericError", ["now: a backup is being made"], "migrate", uri=uri)
        self.refused(a, "GenericError", [f"id {first}"], "x-blocker-del", id=first)
        a.command("x-blocker-del", id=second)
        self.assertNotIn("blocked-reasons", a.command("query-migrate"))
        self.serial.wait_more()
        a.command("migrate", uri=uri)
        self.ends(a, b)
        self.serial.wait_more()

    def test_blockers_and_a_migration_that_runs(self):
        """One comes too late then, and in time as soon as it has ended."""
        a, b = self.begin(("--mem", "64M", "--vcpus", "2", "--guest", "check"),
                          pause_before_switchover=True)
        a.wait_migration("pre-switchover")
        self.refused(a, "GenericError", ["under way (pre-switchover)", "cancel"],
                     "x-blocker-add", reason="too late")
        a.command("migrate_cancel")
        a.wait_migration("cancelled")
        a.command("x-blocker-add", reason="in time")
        self.refused(a, "GenericError", ["now: in time"], "migrate", uri="tcp:127.0.0.1:1")
        # A destination has reasons too.
        b.command("x-blocker-add", reason="no further")
        self.assertEqual(b.command("query-migrate")["blocked-reasons"], ["no further"])
        for vm, argument, words in ((a, {}, "reason"), (a, {"reason": ""}, "1 to 159 bytes"),
                                    (a, {"reason": "x" * 160}, "this one has 160"),
                                    (a, {"reason": 7}, "reason"), (a, {"why": "x"}, "why")):
            self.refused(vm, "GenericError", [words], "x-blocker-add", **argument)
        for argument in ({}, {"id": "1"}, {"id": 0}, {"id": -1}, {"id": 1 << 40}):
            self.refused(a, "GenericError", ["\"id\""], "x-blocker-del", **argument)

    def test_blocked_destination(self):
        """A reason at a destination stays there: the guest can come, and goes no further."""
        a = self.vm("--mem", "64M", "--vcpus", "2", "--guest", "check")
        b = self.vm("--mem", "64M", "--vcpus", "2", "--incoming", "defer")
        self.serial.wait_more()
        b.command("x-blocker-add", reason="no further")
        a.migrate_to(b)
        self.refused(b, "GenericError", ["now: no further"], "migrate", uri="tcp:127.0.0.1:1")
        self.serial.wait_more()

    def test_switchover_ack(self):
        a, b = self.begin(("--mem", "64M", "--vcpus", "2", "--guest", "check"),
                          switchover_ack=True)
        self.ends(a, b)

    def test_postcopy_when_asked(self):
        a, b = self.begin(WILD, mode="hybrid", precopy_rounds=0, max_bandwidth=SLOW,
                          downtime_limit=1)
        with self.assertRaises(CommandError):
            b.command("migrate-start-postcopy")
        self.until(lambda: a.command("query-migrate")["ram"]["dirty-sync-count"] >= 2, "rounds")
        self.assertEqual(a.command("query-migrate")["status"], "active")
        a.command("migrate-start-postcopy")
        a.command("migrate-set-parameters", max_bandwidth=0)
        self.ends(a, b)
        self.assertEqual(b.command("query-migrate")["tern"]["mode"], "postcopy")
        self.serial.wait_more()

    def test_auto_converge(self):
        """Slowed until it fits; the guest is at full speed at the destination."""
        a, b = self.begin(WILD, auto_converge=True, cpu_throttle_initial=90,
                          cpu_throttle_increment=9, max_bandwidth=SLOW, downtime_limit=2000)
        self.until(lambda: a.command("query-migrate").get("cpu-throttle-percentage", 0) or
                   a.command("query-migrate")["status"] == "completed", "the throttle")
        self.ends(a, b)
        self.assertNotIn("cpu-throttle-percentage", a.command("query-migrate"))
        self.serial.wait_more()

    def test_too_fast_for_the_wire(self):
        """Nothing helps: the time limit ends it, and the guest runs on at full speed."""
        a, _ = self.begin(WILD, max_bandwidth=SLOW, downtime_limit=1, auto_converge=True,
                          cpu_throttle_initial=1, cpu_throttle_increment=1, timeout=6000)
        self.assertEqual(a.wait_migration("completed", "failed", "cancelled"), "cancelled")
        self.assertIn("did not complete within 6000 ms", a.command("query-migrate")["error-desc"])
        self.assertEqual(a.status(), "running")
        self.assertNotIn("cpu-throttle-percentage", a.command("query-migrate"))
        self.serial.wait_more()

    def test_quit_while_vcpus_are_held_back(self):
        """They have the session nearly all the time; the end of the process gets it."""
        a, b = self.begin(("--mem", "64M", "--vcpus", "4", "--dirty", "ring", "--guest", "dirty",
                           "--guest-args", "rate=419430400 ws=33554432"),
                          vcpu_dirty_limit=1 << 20, max_bandwidth=SLOW, downtime_limit=1)
        self.until(lambda: a.command("query-migrate")["ram"]["dirty-sync-count"] >= 2, "rounds")
        self.assertEqual(a.quit(), 0)
        self.assertIn(b.wait_migration("completed", "failed", "cancelled"),
                      ("failed", "cancelled"))


if __name__ == "__main__":
    main()
