#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""The control socket and the command line of tern-vm."""
import ctypes
import os
import platform
import struct
import subprocess

from case import Case, IMAGES, SMALL, TERN_VM, main
from vmmtool import TIMEOUT, CommandError


SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}[platform.machine()]


def time_slice(thread):
    """Of a thread under SCHED_OTHER, nanoseconds; 0 from kernels before 6.12, which have none."""
    attributes = ctypes.create_string_buffer(48)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(SCHED_GETATTR, thread, attributes, len(attributes), 0):
        raise OSError(ctypes.get_errno(), "sched_getattr")
    return struct.unpack_from("=Q", attributes, 24)[0]  # sched_runtime


class Control(Case):
    """The control socket."""

    def test_errors(self):
        vm = self.vm(*SMALL)
        for name in ("device_add", ""):
            self.refused(vm, "CommandNotFound", [name], name)
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

    def test_texts_that_are_cut_to_fit(self):
        """An error that quotes a long name is an error all the same, wherever it is cut."""
        vm = self.vm(*SMALL)
        for begin in ("", "x", "xx", "xxx"):
            name = begin + "\U0001f426" * 200
            with self.assertRaises(CommandError) as got:
                vm.command(name)
            self.assertIn(name[:100], str(got.exception))

    def test_path_that_is_no_text(self):
        """A file may have any name; what is answered is text all the same."""
        vm = self.vm(*SMALL, "--incoming", f"unix:{self.folder}/\udcff")  # the byte 0xff
        self.assertEqual(vm.command("query-migrate")["uri"], f"unix:{self.folder}/?")

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

    def test_vcpus_have_short_time_slices(self):
        """And no other thread, those that KVM makes included."""
        vm = self.vm(*SMALL)
        self.serial.wait_more()
        folder = f"/proc/{vm.process.pid}/task"
        slices = {}
        for thread in map(int, os.listdir(folder)):
            with open(f"{folder}/{thread}/comm", encoding="utf-8") as file:
                slices.setdefault(file.read().startswith("vcpu"), set()).add(time_slice(thread))
        others = slices[False]
        if time_slice(os.getpid()):  # the kernel tells
            self.assertEqual(slices[True], {100_000})
            self.assertNotIn(100_000, others)
        else:
            self.assertEqual(slices, {True: {0}, False: {0}})

    def test_parameters(self):
        vm = self.vm(*SMALL)
        vm.command("migrate-set-parameters", downtime_limit=50, mode="hybrid", multifd_channels=3)
        got = vm.command("query-migrate-parameters")
        self.assertEqual((got["downtime-limit"], got["mode"], got["channels"]), (50, "hybrid", 3))
        for arguments, words in (({"downtime_limit": 0}, ["downtime-limit", "from 1"]),
                                 ({"mode": "fast"}, ["mode", "fast"]),
                                 ({"chunk": 100000}, ["power of two"]),
                                 ({"stripe": 300000}, ["power of two"]),
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

    def test_notices_and_announcements(self):
        """What other parts of a VMM are told, on both sides, and in which order."""
        a, b = self.pair("--guest", "counter")
        self.serial.wait_more()
        b.command("migrate-set-parameters", announce_rounds=3, announce_initial=1,
                  announce_step=1)
        a.migrate_to(b)
        b.wait_event(lambda e: e["event"] == "ANNOUNCE" and e["data"] == {"round": 2})
        a.command("query-status")
        b.command("query-status")
        order = [e["data"]["notice"] if e["event"] == "MIGRATION_NOTICE" else e["event"]
                 for e in a.events if e["event"] != "MIGRATION"]
        self.assertEqual(order, ["setup", "STOP", "switchover", "done"])
        order = [e["data"].get("notice", e["data"].get("round")) for e in b.events
                 if e["event"] in ("MIGRATION_NOTICE", "ANNOUNCE")]
        self.assertEqual(sorted(map(str, order)), ["0", "1", "done"])
        self.assertLess(order.index(0), order.index(1))
        # The guest runs before anything says so.
        names = [e["event"] for e in b.events]
        self.assertLess(names.index("RESUME"), names.index("ANNOUNCE"))

    def test_notices_of_a_failure(self):
        """The guest runs already when it is told of."""
        a = self.vm(*SMALL)
        a.command("migrate", uri="unix:" + os.path.join(self.folder, "nobody"))
        self.assertEqual(a.wait_migration("completed", "failed"), "failed")
        notices = [e["data"]["notice"] for e in a.events if e["event"] == "MIGRATION_NOTICE"]
        self.assertEqual(notices, ["setup", "failed"])
        self.assertNotIn("ANNOUNCE", [e["event"] for e in a.events])

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
    main()
