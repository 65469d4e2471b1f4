#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Guests that move between two tern-vm.

TERN_TEST_VMM_MOVES says how often a guest is moved back and forth (6),
TERN_TEST_VMM_URI where the destinations listen (tcp:127.0.0.1:0),
TERN_TEST_VMM_MEM how large it is (64M), TERN_TEST_VMM_DIRTY how writes are
tracked (log), and TERN_TEST_VMM_PARAMETERS what is set for every migration ({}),
as of migrate-set-parameters.
"""
import os

from case import DIRTY, Case, SMALL, main
from vmmtool import URI, leave_out

MOVES = int(os.environ.get("TERN_TEST_VMM_MOVES", "6"))


class Moves(Case):
    """A guest moves back and forth; it misses nothing, and its RAM is right."""

    def back_and_forth(self, modes, *args, moves=MOVES):
        """In each of the modes (separated by spaces) in turn."""
        a, b = self.pair(*args)
        for i in range(moves):
            mode = modes.split()[i % len(modes.split())]
            self.serial.wait_more()
            source, _ = a.migrate_to(b, mode=mode)
            self.assertEqual(a.status(), "postmigrate")
            self.assertEqual(b.status(), "running")
            self.assertEqual(source["tern"]["mode"], mode)
            self.assertEqual(source["tern"]["transport"], URI.split(":")[0])
            ledger = sum(source["tern"]["downtime_ledger_us"].values())
            self.assertAlmostEqual(ledger / 1000, source["tern"]["downtime_ms"], delta=0.01)
            a, b = b, a
        self.serial.wait_more()
        self.assertEqual((a.quit(), b.quit()), (0, 0))
        self.serial.counts()

    def test_counter_precopy(self):
        self.back_and_forth("precopy", "--guest", "counter")

    def test_counter_postcopy(self):
        self.back_and_forth("postcopy", "--guest", "counter")

    def test_check_precopy(self):
        self.back_and_forth("precopy", "--guest", "check")

    def test_check_postcopy(self):
        self.back_and_forth("postcopy", "--guest", "check")

    def test_check_hybrid(self):
        self.back_and_forth("hybrid", "--guest", "check")

    def test_check_mixed(self):
        self.back_and_forth("precopy postcopy hybrid", "--guest", "check")

    def test_dirty_hybrid(self):
        self.back_and_forth("hybrid", "--guest", "dirty", moves=2)

    def test_providers(self):
        """KVM's log, or its rings, which the kernel has to be good at: tests/lab."""
        a, b = self.pair("--guest", "check")
        self.serial.wait_more()
        source, _ = a.migrate_to(b)
        self.assertEqual(source["tern"]["dirty_provider"], f"kvm-{DIRTY}")

    def test_userfaultfd(self):
        self.back_and_forth("precopy", "--guest", "check", "--dirty", "uffd", moves=2)

    def test_private_memory(self):
        for mode in ("precopy", "postcopy"):
            with self.subTest(mode=mode):
                if os.path.exists(self.serial.path):
                    os.unlink(self.serial.path)
                self.back_and_forth(mode, "--guest", "check", "--backing", "anon", moves=2)

    def test_huge_pages(self):
        """Small, because all tests share the pages that are reserved."""
        if leave_out("hugetlb"):
            print("left out: hugetlb")
            return
        for mode in ("precopy", "postcopy"):
            with self.subTest(mode=mode):
                if os.path.exists(self.serial.path):
                    os.unlink(self.serial.path)
                a = self.vm("--mem", "16M", "--backing", "hugetlb", "--guest", "check")
                b = self.vm("--mem", "16M", "--backing", "hugetlb", "--incoming", "defer")
                self.serial.wait_more()
                a.migrate_to(b, mode=mode)
                self.serial.wait_more()
                a.quit()
                b.quit()

    def test_downtime_is_seen_by_the_guest(self):
        """Time goes on for a guest while it is moved: the gap that it sees covers the pause."""
        a, b = self.pair("--guest", "dirty", "--guest-args", "interval=50")
        self.serial.wait_more()
        source, _ = a.migrate_to(b)
        self.serial.wait_more()
        longest = max(int(line.split(" longest_us ")[1].split()[0])
                      for line in self.serial.text().split("\n")[:-1] if "longest_us" in line)
        self.assertGreater(longest, source["tern"]["downtime_ms"] * 1000 * 0.5)

    def test_longest_gaps_are_told_with_their_ends(self):
        """By a guest that halts between looks at the clock; its RAM has been filled."""
        a, b = self.pair("--guest", "dirty", "--guest-args",
                         "fill=16M rate=0 halt=1000 interval=50")
        self.serial.wait_more()
        a.migrate_to(b)
        self.serial.wait_more()
        lines = self.serial.text().split("\n")[:-1]
        self.assertIn("dirty: vcpu 1 has filled 2048 pages", lines)
        for line in (x for x in lines if " gaps " in x):
            pairs = line.split(" gaps ")[1].split()[0].split(",")
            gaps, ends = zip(*(map(int, pair.split("@")) for pair in pairs))
            self.assertEqual(len(pairs), 8)
            self.assertEqual(list(gaps), sorted(gaps, reverse=True))
            self.assertLessEqual(max(ends), int(line.split(" clock_us ")[1]))

    def test_paused_guest_arrives_paused(self):
        a, b = self.pair("--guest", "counter")
        self.serial.wait_more()
        a.command("stop")
        a.migrate_to(b)
        self.assertEqual(b.status(), "paused")
        self.assertTrue(self.serial.is_silent())
        b.command("cont")
        self.serial.wait_more()

    def test_incoming_on_the_command_line(self):
        a = self.vm(*SMALL)
        b = self.vm(*SMALL, "--incoming", "unix:" + os.path.join(self.folder, "in"))
        self.serial.wait_more()
        a.command("migrate", uri="unix:" + os.path.join(self.folder, "in"))
        self.assertEqual(a.wait_migration("completed", "failed"), "completed")
        self.assertEqual(b.wait_migration("completed", "failed"), "completed")
        self.serial.wait_more()


if __name__ == "__main__":
    main()
