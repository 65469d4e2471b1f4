#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""tern-vm: guests that move between two processes, and what goes wrong on the way.

    test_vmm.py TERN-VM STATETOOL IMAGES [unittest arguments]

IMAGES is the folder with the guests' images.  TERN_TEST_VMM_MOVES says how often a guest
is moved back and forth (6).
"""
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

from serial import Serial
from vmmtool import CommandError, Proxy, TIMEOUT, Vm, leave_out

if __name__ == "__main__":
    TERN_VM, STATETOOL, IMAGES = sys.argv[1:4]
MOVES = int(os.environ.get("TERN_TEST_VMM_MOVES", "6"))
SMALL = ["--mem", "64M", "--vcpus", "2"]


class Case(unittest.TestCase):
    """A folder, a serial port, and VMs that are gone afterwards."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="tern-vm-")
        self.addCleanup(shutil.rmtree, self.folder)
        self.serial = Serial(os.path.join(self.folder, "serial"))

    def vm(self, *args):
        """A tern-vm."""
        vm = Vm(TERN_VM, self.folder, self.serial.path, *args)
        self.addCleanup(vm.kill)
        return vm

    def pair(self, *args, destination=None):
        """A running guest, and a process that waits for one."""
        source = self.vm(*SMALL, *args)
        return source, self.vm(*(destination or SMALL), "--incoming", "defer",
                               *[a for a in args if a in ("--backing", "anon", "hugetlb")])

    def refused(self, vm, kind, words, name, **arguments):
        """A command fails, with an error of that class and with those words."""
        with self.assertRaises(CommandError) as got:
            vm.command(name, **arguments)
        self.assertEqual(got.exception.kind, kind)
        for word in words:
            self.assertIn(word, str(got.exception))


class Moves(Case):
    """A guest moves back and forth; it misses nothing, and its RAM is right."""

    def back_and_forth(self, mode, *args, moves=MOVES):
        a, b = self.pair(*args)
        for _ in range(moves):
            self.serial.wait_more()
            source, _ = a.migrate_to(b, mode=mode)
            self.assertEqual(a.status(), "postmigrate")
            self.assertEqual(b.status(), "running")
            self.assertEqual(source["tern"]["mode"], mode)
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

    def test_dirty_hybrid(self):
        self.back_and_forth("hybrid", "--guest", "dirty", moves=2)

    def test_private_memory(self):
        for mode in ("precopy", "postcopy"):
            with self.subTest(mode=mode):
                os.path.exists(self.serial.path) and os.unlink(self.serial.path)
                self.back_and_forth(mode, "--guest", "check", "--backing", "anon", moves=2)

    def test_downtime_is_seen_by_the_guest(self):
        """Time goes on for a guest while it is moved: the gap that it sees covers the pause."""
        a, b = self.pair("--guest", "dirty", "--guest-args", "interval=50")
        self.serial.wait_more()
        source, _ = a.migrate_to(b)
        self.serial.wait_more()
        longest = max(int(line.split(" longest_us ")[1].split()[0])
                      for line in self.serial.text().split("\n")[:-1] if "longest_us" in line)
        self.assertGreater(longest, source["tern"]["downtime_ms"] * 1000 * 0.5)

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


class Failures(Case):
    """A migration that fails or is cancelled leaves the guest running at the source."""

    def goes_on(self, source, destination):
        """The guest runs, and can be moved after all."""
        self.assertEqual(source.status(), "running")
        self.serial.wait_more()
        source.migrate_to(destination, max_bandwidth=0)
        self.serial.wait_more()

    def fails(self, source, uri, *words):
        """A migration fails, and says why."""
        source.command("migrate", uri=uri)
        self.assertEqual(source.wait_migration("completed", "failed"), "failed")
        for word in words:
            self.assertIn(word, source.command("query-migrate")["error-desc"])

    def test_nobody_listens(self):
        a, b = self.pair("--guest", "check")
        self.fails(a, "unix:" + os.path.join(self.folder, "nobody"), "nobody")
        self.goes_on(a, b)

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
        self.goes_on(a, b)

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
        self.goes_on(a, c)

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
        a, b = self.pair(destination=["--mem", "32M", "--vcpus", "2"])
        c = self.vm(*SMALL, "--incoming", "defer")
        b.command("migrate-incoming", uri="tcp:127.0.0.1:0")
        self.fails(a, b.command("query-migrate")["uri"], "RAM size", "67108864")
        self.goes_on(a, c)

    def test_other_number_of_vcpus(self):
        a, b = self.pair(destination=["--mem", "64M", "--vcpus", "3"])
        c = self.vm(*SMALL, "--incoming", "defer")
        b.command("migrate-incoming", uri="tcp:127.0.0.1:0")
        self.fails(a, b.command("query-migrate")["uri"])
        self.assertIn("the guest has 2 vCPUs, this machine 3", b.stderr())
        self.goes_on(a, c)


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


class DeviceState(Case):
    """Device state that is not as it must be is refused, in one sentence."""

    HEAD = 16          # bytes before the first section
    SECTION_HEAD = 32  # of a section before its contents

    def capture(self):
        """The device state of a guest."""
        vm = self.vm(*SMALL)
        path = os.path.join(self.folder, "state")
        with subprocess.Popen([STATETOOL, "capture", "64", path], stdout=subprocess.PIPE,
                              text=True) as tool:
            vm.command("migrate", uri=tool.stdout.readline().strip())
            self.assertEqual(vm.wait_migration("completed", "failed"), "failed")
        self.assertEqual(vm.status(), "running")
        vm.quit()
        with open(path, "rb") as f:
            return bytearray(f.read())

    def send(self, state):
        """Send it to a tern-vm: what the source says, and the destination."""
        path = os.path.join(self.folder, "sent")
        with open(path, "wb") as f:
            f.write(state)
        vm = self.vm(*SMALL, "--incoming", "tcp:127.0.0.1:0")
        got = subprocess.run([STATETOOL, "send", "64", path, vm.command("query-migrate")["uri"]],
                             stdout=subprocess.PIPE, text=True, timeout=TIMEOUT, check=True)
        vm.wait_migration("completed", "failed")
        return got.stdout, vm

    def find(self, state, name, instance=0):
        """Where a section begins."""
        at = self.HEAD
        while at < len(state):
            if state[at:at + 16].rstrip(b"\0").decode() == name and \
               int.from_bytes(state[at + 20:at + 24], "little") == instance:
                return at
            at += self.SECTION_HEAD + int.from_bytes(state[at + 24:at + 32], "little")
        raise AssertionError(f"no section {name}")

    def test_refusals(self):
        """Each refusal names what it is about; one captured state serves all of them."""
        whole = self.capture()
        regs, pit = self.find(whole, "vcpu-regs", 1), self.find(whole, "pit")
        cpuid, sregs = self.find(whole, "vcpu-cpuid"), self.find(whole, "vcpu-sregs")
        machine = self.find(whole, "machine")

        def edit(at, new):
            state = bytearray(whole)
            state[at:at + len(new)] = new
            return state

        # The first entry of CPUID that is leaf 1: ecx is 20 bytes behind its begin.
        leaf = cpuid + self.SECTION_HEAD
        while int.from_bytes(whole[leaf:leaf + 4], "little") != 1:
            leaf += 40
        shorter = bytearray(whole)
        del shorter[regs + self.SECTION_HEAD:regs + self.SECTION_HEAD + 8]
        shorter[regs + 24:regs + 32] = (144 - 8).to_bytes(8, "little")
        missing = whole[:pit] + whole[pit + self.SECTION_HEAD + 112:]
        missing[12:16] = (int.from_bytes(whole[12:16], "little") - 1).to_bytes(4, "little")
        for name, state, words in (
                ("empty", bytearray(), ["cut short"]),
                ("other kind", edit(0, b"QEVM"), ["none of tern-vm's"]),
                ("other format", edit(8, b"\x09"), ["format 9", "format 1"]),
                ("too many", edit(12, b"\xff\xff\xff\xff"), ["4294967295 sections"]),
                ("truncated", whole[:sregs + 100], ["cut short", "vcpu-sregs"]),
                ("truncated head", whole[:sregs + 10], ["cut short"]),
                ("longer", whole + b"x", ["1 bytes follow"]),
                ("unknown", edit(pit, b"pit9"), ["unknown section pit9"]),
                ("version", edit(pit + 16, b"\x07"), ["section pit", "version 7", "version 1"]),
                ("length", shorter, ["section vcpu-regs", "136 bytes", "144"]),
                ("instance", edit(regs + 20, b"\x05"), ["vcpu-regs number 5", "there are 2"]),
                ("twice", edit(regs + 20, b"\x00"), ["vcpu-regs number 0", "twice"]),
                ("missing", missing, ["section pit", "missing"]),
                ("vcpus", edit(machine + self.SECTION_HEAD, b"\x04"), ["has 4 vCPUs"]),
                ("cpuid", edit(leaf + 20, b"\xff\xff\xff\xff"), ["CPU features", "leaf 0x1.0 ecx"]),
                ("vendor", edit(cpuid + self.SECTION_HEAD + 16, b"Xxxx"), ["vendor"]),
        ):
            with self.subTest(name=name):
                said, vm = self.send(state)
                self.assertTrue(said.startswith("source "), said)
                self.assertEqual(vm.status(), "inmigrate")
                complaints = [line for line in vm.stderr().splitlines() if "device state" in line]
                self.assertTrue(complaints, vm.stderr())
                for word in words:
                    self.assertIn(word, complaints[0])
                vm.quit()

    def test_whole_state_is_taken(self):
        """The same way in, nothing changed: the refusals above are not for another reason."""
        said, vm = self.send(self.capture())
        self.assertTrue(said.startswith("destination "), said + vm.stderr())


class Control(Case):
    """The control socket."""

    def test_errors(self):
        vm = self.vm(*SMALL)
        self.refused(vm, "CommandNotFound", ["device_add"], "device_add")
        self.refused(vm, "GenericError", ["uri"], "migrate")
        self.refused(vm, "GenericError", ["no argument \"url\""], "migrate", url="x")
        self.refused(vm, "GenericError", ["smoke:x"], "migrate", uri="smoke:x")
        self.refused(vm, "GenericError", ["there is a guest here"], "migrate-incoming",
                     uri="tcp:127.0.0.1:0")
        self.refused(vm, "GenericError", ["postcopy-paused"], "migrate-recover",
                     uri="tcp:127.0.0.1:1")
        self.assertEqual(vm.command("query-migrate"), {})
        vm.command("migrate_cancel")
        self.assertEqual(vm.status(), "running")

    def test_lines_that_are_no_commands(self):
        vm = self.vm(*SMALL)
        for line in (b"{", b"[]", b"7", b'{"execute": 3}', b'{"execute": "stop", "arguments": 1}'):
            vm.socket.sendall(line + b"\n")
            self.assertIn("error", vm.line())
        vm.socket.sendall(b"\n \n")
        self.assertEqual(vm.command("query-status"), {"status": "running", "running": True})

    def test_stop_and_cont(self):
        vm = self.vm(*SMALL)
        self.serial.wait_more()
        vm.command("stop")
        vm.wait_event(lambda e: e["event"] == "STOP")
        self.assertEqual(vm.status(), "paused")
        self.assertTrue(self.serial.is_silent())
        vm.command("cont")
        vm.wait_event(lambda e: e["event"] == "RESUME")
        self.serial.wait_more()

    def test_parameters(self):
        vm = self.vm(*SMALL)
        vm.command("migrate-set-parameters", downtime_limit=50, mode="hybrid", multifd_channels=3)
        got = vm.command("query-migrate-parameters")
        self.assertEqual((got["downtime-limit"], got["mode"], got["channels"]), (50, "hybrid", 3))
        for arguments, words in (({"downtime_limit": 0}, ["downtime-limit", "from 1"]),
                                 ({"mode": "fast"}, ["mode", "fast"]),
                                 ({"chunk": 100000}, ["power of two"]),
                                 ({"cpus": "x"}, ["x"]),
                                 ({"colour": 1}, ["colour"])):
            self.refused(vm, "GenericError", words, "migrate-set-parameters",
                         **arguments, channels=9)
        self.assertEqual(vm.command("query-migrate-parameters"), got)

    def test_events_of_a_migration(self):
        a, b = self.pair("--guest", "counter")
        self.serial.wait_more()
        a.migrate_to(b)
        a.command("query-status")
        self.assertIn("STOP", [e["event"] for e in a.events])
        self.assertIn("RESUME", [e["event"] for e in b.events])
        states = [e["data"]["status"] for e in a.events if e["event"] == "MIGRATION"]
        self.assertEqual(states[:2], ["setup", "active"])

    def test_guest_that_moved_away_cannot_be_continued(self):
        a, b = self.pair()
        a.migrate_to(b)
        self.refused(a, "GenericError", ["postmigrate"], "cont")
        self.refused(a, "GenericError", ["postmigrate"], "migrate", uri="tcp:127.0.0.1:1")
        self.refused(b, "GenericError", ["there is a guest here"], "migrate-incoming",
                     uri="tcp:127.0.0.1:0")

    def test_socket_is_taken(self):
        vm = self.vm(*SMALL)
        got = subprocess.run([TERN_VM, "run", "--control", vm.control], capture_output=True,
                             text=True, timeout=TIMEOUT, check=False)
        self.assertEqual(got.returncode, 1)
        self.assertIn("--control", got.stderr)
        self.assertEqual(vm.status(), "running")
        vm.quit()
        self.assertFalse(os.path.exists(vm.control))


class Usage(Case):
    """The command line."""

    def test_wrong_usage(self):
        for args, words in ((["--mem", "3M"], "--mem"), (["--mem", "x"], "--mem"),
                            (["--vcpus", "0"], "--vcpus"), (["--vcpus", "65"], "--vcpus"),
                            (["--backing", "disk"], "--backing"), (["--fast"], "--fast"),
                            (["--incoming", "smoke:1"], "smoke"), (["x"], "x"),
                            (["--incoming", "defer"], "--control"), (["--mem"], "--mem")):
            with self.subTest(args=args):
                got = subprocess.run([TERN_VM, "run", *args], capture_output=True, text=True,
                                     timeout=TIMEOUT, check=False)
                self.assertEqual(got.returncode, 2, got.stderr)
                self.assertIn(words, got.stderr)
                self.assertEqual(len(got.stderr.splitlines()), 1)

    def test_guests_from_files(self):
        elf = os.path.join(IMAGES, "counter.elf")
        flat = os.path.join(self.folder, "flat")
        subprocess.run(["objcopy", "-O", "binary", elf, flat], check=True)
        # A flat image has no zeroed part: RAM behind it is zero anyway.
        for image in (elf, flat):
            with self.subTest(image=image):
                vm = self.vm("--guest", image)
                self.serial.wait_more()
                vm.quit()
                os.unlink(self.serial.path)

    def test_guest_that_does_not_fit(self):
        path = os.path.join(self.folder, "big")
        with open(path, "wb") as f:
            f.truncate(32 << 20)
        for image, words in ((path, "do not fit"), ("nobody", "counter, dirty, check")):
            got = subprocess.run([TERN_VM, "run", "--mem", "16M", "--guest", image],
                                 capture_output=True, text=True, timeout=TIMEOUT, check=False)
            self.assertEqual(got.returncode, 1)
            self.assertIn(words, got.stderr)


if __name__ == "__main__":
    if leave_out("kvm"):
        print("left out: kvm")
        sys.exit(77)
    if not os.path.exists("/dev/kvm"):
        print("there is no /dev/kvm; to do without it: tests/run.sh --leave-out kvm")
        sys.exit(1)
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]])
