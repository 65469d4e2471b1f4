#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Migrations of real guests that fail, and links that are lost."""
import fcntl
import os
import select
import subprocess
import time

from case import Case, SMALL, STATETOOL, TERN_VM, main
from vmmtool import TIMEOUT, Proxy, Vm


class Failures(Case):
    """A migration that fails or is cancelled leaves the guest running at the source."""

    def fails(self, source, uri, *words):
        """A migration fails, and says why."""
        source.command("migrate", uri=uri)
        self.assertEqual(source.wait_migration("completed", "failed"), "failed")
        for word in words:
            self.assertIn(word, source.command("query-migrate")["error-desc"])

    def test_nobody_listens(self):
        a, b = self.pair("--guest", "check")
        self.fails(a, "unix:" + os.path.join(self.folder, "nobody"), "nobody")
        self.back_on_its_feet(a, b)

    def test_cancel(self):
        a, b = self.pair("--guest", "check")
        self.serial.wait_more()
        a.command("migrate-set-parameters", max_bandwidth=1 << 20)
        b.command("migrate-incoming", uri="tcp:127.0.0.1:0")
        a.command("migrate", uri=b.command("query-migrate")["uri"])
        a.wait_migration("active")
        self.refused(a, "GenericError", ["under way"], "migrate", uri="tcp:127.0.0.1:1")
        a.command("migrate_cancel")
        self.assertEqual(a.wait_migration("completed", "failed", "cancelled"), "cancelled")
        b.wait_migration("failed", "cancelled")
        self.back_on_its_feet(a, b)

    def test_destination_dies(self):
        a, b = self.pair("--guest", "check")
        c = self.vm(*SMALL, "--incoming", "defer")
        self.serial.wait_more()
        a.command("migrate-set-parameters", max_bandwidth=1 << 20)
        b.command("migrate-incoming", uri="tcp:127.0.0.1:0")
        a.command("migrate", uri=b.command("query-migrate")["uri"])
        a.wait_migration("active")
        b.kill()
        self.assertEqual(a.wait_migration("completed", "failed"), "failed")
        self.back_on_its_feet(a, c)

    def test_destination_vanishes_after_go(self):
        """Nobody knows whether the guest runs there: only force continues it here."""
        vm = self.vm(*SMALL)
        self.serial.wait_more()
        with subprocess.Popen([STATETOOL, "vanish", "64", os.path.join(self.folder, "state")],
                              stdout=subprocess.PIPE, text=True) as tool:
            vm.command("migrate", uri=tool.stdout.readline().strip())
            self.assertEqual(vm.wait_migration("completed", "failed"), "failed")
        self.assertEqual(vm.command("query-migrate")["tern"]["outcome"], "unknown")
        self.assertEqual(vm.status(), "paused")
        self.assertTrue(self.serial.is_silent())
        self.refused(vm, "GenericError", ["force"], "cont")
        self.refused(vm, "GenericError", ["force"], "migrate", uri="tcp:127.0.0.1:1")
        vm.command("cont", force=True)
        self.serial.wait_more()

    def test_destination_vanishes_after_go_of_postcopy(self):
        """The same; the session waits for a destination that may have the guest until then."""
        vm = self.vm(*SMALL)
        self.serial.wait_more()
        vm.command("migrate-set-parameters", mode="postcopy")
        with subprocess.Popen([STATETOOL, "vanish", "64", os.path.join(self.folder, "state")],
                              stdout=subprocess.PIPE, text=True) as tool:
            vm.command("migrate", uri=tool.stdout.readline().strip())
            vm.wait_migration("postcopy-paused")
        self.assertTrue(self.serial.is_silent())
        self.refused(vm, "GenericError", ["force"], "cont")
        vm.command("cont", force=True)
        self.assertEqual(vm.wait_migration("completed", "failed"), "failed")
        self.assertEqual(vm.status(), "running")
        self.serial.wait_more()

    def test_nobody_reads_the_console(self):
        """A vCPU waits for a reader of its line; the end of the process does not."""
        console = os.path.join(self.folder, "console")
        os.mkfifo(console)
        reader = os.open(console, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
        vm = Vm(TERN_VM, self.folder, console, *SMALL)
        self.addCleanup(vm.kill)
        full = select.poll()
        full.register(vm.out, select.POLLOUT)
        end = time.monotonic() + TIMEOUT
        while full.poll(0):
            self.assertLess(time.monotonic(), end)
            time.sleep(0.01)
        self.assertEqual(vm.quit(), 0)

    def test_source_dies(self):
        """The destination has no guest then, and can wait for another one."""
        a, b = self.pair("--guest", "check")
        self.serial.wait_more()
        a.command("migrate-set-parameters", max_bandwidth=1 << 20)
        b.command("migrate-incoming", uri="tcp:127.0.0.1:0")
        a.command("migrate", uri=b.command("query-migrate")["uri"])
        a.wait_migration("active")
        a.kill()
        self.assertEqual(b.wait_migration("completed", "failed"), "failed")
        self.assertEqual(b.status(), "inmigrate")
        os.truncate(self.serial.path, 0)
        c = self.vm(*SMALL)
        self.serial.wait_more()
        c.migrate_to(b)
        self.serial.wait_more()

    def test_other_memory_size(self):
        """Both sides say so in the same words; the destination goes on waiting."""
        words = "RAM size differs: 67108864 bytes at the source, 33554432 at the destination"
        a, b = self.pair(destination=["--mem", "32M", "--vcpus", "2"])
        c = self.vm(*SMALL, "--incoming", "defer")
        b.command("migrate-incoming", uri="tcp:127.0.0.1:0")
        self.fails(a, b.command("query-migrate")["uri"], "the destination says: " + words)
        b.wait_complaint(words)
        self.assertEqual(b.command("query-migrate")["status"], "setup")
        self.back_on_its_feet(a, c)

    def test_other_number_of_vcpus(self):
        """Both sides say so, and what to do."""
        words = "the guest has 2 vCPUs, this machine 3; start tern-vm with --vcpus 2"
        a, b = self.pair(destination=["--mem", "64M", "--vcpus", "3"])
        c = self.vm(*SMALL, "--incoming", "defer")
        b.command("migrate-incoming", uri="tcp:127.0.0.1:0")
        self.fails(a, b.command("query-migrate")["uri"], "the destination says: ", words)
        self.assertEqual(b.wait_migration("completed", "failed"), "failed")
        self.assertIn(words, b.command("query-migrate")["error-desc"])
        b.wait_complaint(words)
        self.assertEqual(b.status(), "inmigrate")
        self.back_on_its_feet(a, c)

    def test_regions_that_the_destination_has_not(self):
        """A destination with one region, or another one: the guest runs on."""
        a, c = self.pair("--guest", "check")
        path = os.path.join(self.folder, "state")
        for kind, words in (("one", "number of regions differs: 2 at the source, 1 at the "
                                    "destination"),
                            ("other", "name of region 1 differs: 'ram-high' at the source, "
                                      "'ram-other' at the destination")):
            with self.subTest(kind=kind), \
                 subprocess.Popen([STATETOOL, "capture", "64", path, kind],
                                  stdout=subprocess.PIPE, text=True) as tool:
                self.addCleanup(tool.kill)
                uri = tool.stdout.readline().strip()
                self.fails(a, uri, "the destination says: " + words)
                tool.kill()  # it waits for another source
            self.assertEqual(a.status(), "running")
        self.back_on_its_feet(a, c)

    def test_regions_that_the_source_has_not(self):
        """A source with one region, or another one, is turned away; the guest comes later."""
        a, b = self.pair("--guest", "check")
        self.serial.wait_more()
        b.command("migrate-incoming", uri="tcp:127.0.0.1:0")
        uri = b.command("query-migrate")["uri"]
        for kind, words in (("one", "number of regions differs: 1 at the source, 2 at the "
                                    "destination"),
                            ("other", "name of region 1 differs: 'ram-other' at the source, "
                                      "'ram-high' at the destination")):
            got = subprocess.run([STATETOOL, "send", "64", os.devnull, uri, kind],
                                 stdout=subprocess.PIPE, text=True, timeout=TIMEOUT, check=True)
            self.assertEqual(got.stdout.strip(), "source the destination says: " + words)
            b.wait_complaint(words)
            self.assertEqual(b.command("query-migrate")["status"], "setup")
        a.command("migrate", uri=uri)
        for vm in (a, b):
            self.assertEqual(vm.wait_migration("completed", "failed"), "completed")
        self.serial.wait_more()


    def test_link_lost_before_the_switchover(self):
        """The paused guest runs on, and an operator who comes too late is told so."""
        a, b = self.pair("--guest", "check")
        c = self.vm(*SMALL, "--incoming", "defer")
        self.serial.wait_more()
        self.refused(a, "GenericError", ["there was none"], "migrate-continue",
                     state="pre-switchover")
        a.command("migrate-set-parameters", pause_before_switchover=True)
        b.command("migrate-incoming", uri="tcp:127.0.0.1:0")
        proxy = Proxy(int(b.command("query-migrate")["uri"].rsplit(":", 1)[1]))
        self.addCleanup(proxy.cut)
        a.command("migrate", uri=f"tcp:127.0.0.1:{proxy.port}")
        a.wait_migration("pre-switchover")
        self.assertEqual(a.status(), "finish-migrate")
        proxy.cut()
        self.assertEqual(a.wait_migration("completed", "failed"), "failed")
        self.assertEqual(a.status(), "running")
        lost = a.command("query-migrate")["error-desc"]
        self.assertIn("closed", lost)
        self.refused(a, "GenericError", ["pre-switchover", lost, "the guest is running"],
                     "migrate-continue", state="pre-switchover")
        self.assertEqual(b.wait_migration("completed", "failed"), "failed")
        self.assertEqual(b.status(), "inmigrate")
        a.command("migrate-set-parameters", pause_before_switchover=False)
        self.back_on_its_feet(a, c)


class LostLinks(Case):
    """The link is lost in postcopy: both sides wait, and go on over another one."""

    def begin(self):
        """A guest that has moved while most of its pages are still to come, by a proxy."""
        a, b = self.pair("--guest", "check")
        self.serial.wait_more()
        a.command("migrate-set-parameters", mode="postcopy", max_postcopy_bandwidth=4 << 20)
        b.command("migrate-incoming", uri="tcp:127.0.0.1:0")
        uri = b.command("query-migrate")["uri"]
        proxy = Proxy(int(uri.rsplit(":", 1)[1]))
        self.addCleanup(proxy.cut)
        a.command("migrate", uri=f"tcp:127.0.0.1:{proxy.port}")
        for vm in (a, b):
            vm.wait_migration("postcopy-active")
        return a, b, uri, proxy

    def test_statistics_while_pages_are_missing(self):
        a, b, _, _ = self.begin()
        for _ in range(10):
            for vm in (a, b):
                self.assertEqual(vm.command("query-migrate")["status"], "postcopy-active")
        a.command("migrate-set-parameters", max_postcopy_bandwidth=0)
        for vm in (a, b):
            self.assertEqual(vm.wait_migration("completed", "failed"), "completed")
        self.serial.wait_more()

    def test_recover(self):
        a, b, uri, proxy = self.begin()
        proxy.cut()
        for vm in (a, b):
            vm.wait_migration("postcopy-paused")
        self.assertEqual((a.status(), b.status()), ("finish-migrate", "running"))
        self.refused(a, "GenericError", ["cannot be continued"], "cont")
        self.refused(a, "GenericError", ["belongs to the destination"], "migrate_cancel")
        # A vCPU that waits for a page cannot be stopped now; the command comes back anyway.
        b.command("stop")
        b.command("cont")
        a.command("migrate-set-parameters", max_postcopy_bandwidth=0)
        a.command("migrate-recover", uri=uri)
        for vm in (a, b):
            self.assertEqual(vm.wait_migration("completed", "failed"), "completed")
        self.assertEqual((a.status(), b.status()), ("postmigrate", "running"))
        self.serial.wait_more()
        self.assertEqual((a.quit(), b.quit()), (0, 0))

    def test_quit_while_pages_are_missing(self):
        a, b, _, proxy = self.begin()
        proxy.cut()
        for vm in (a, b):
            vm.wait_migration("postcopy-paused")
            self.assertEqual(vm.quit(), 1)
            self.assertIn("middle of postcopy", vm.stderr())


if __name__ == "__main__":
    main()
