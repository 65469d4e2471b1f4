#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Device state that tern-vm must refuse."""
import os
import subprocess

from case import Case, SMALL, STATETOOL, main
from vmmtool import TIMEOUT


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
        machine, msrs = self.find(whole, "machine"), self.find(whole, "vcpu-msrs", 1)

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
                ("msr", edit(msrs + self.SECTION_HEAD, b"\xef\xbe\xad\xde\x01"),
                 ["MSR 0xdeadbeef", "vCPU 1"]),
                ("vendor", edit(cpuid + self.SECTION_HEAD + 16, b"Xxxx"), ["vendor"]),
        ):
            with self.subTest(name=name):
                said, vm = self.send(state)
                # Both operators read the same: one of them may see his own side only.
                self.assertTrue(said.startswith("source the destination says: "), said)
                self.assertEqual(vm.status(), "inmigrate")
                complaints = [line for line in vm.stderr().splitlines() if "device state" in line]
                self.assertEqual(len(complaints), 1, vm.stderr())
                for word in words:
                    for text in (said, vm.command("query-migrate")["error-desc"], complaints[0]):
                        self.assertIn(word, text)
                vm.quit()

    def test_whole_state_is_taken(self):
        """The same way in, nothing changed: the refusals above are not for another reason.

        The guest's RAM is gone, so it crashes at once; that may be before all of its vCPUs run.
        """
        said, vm = self.send(self.capture())
        self.assertTrue(said.startswith("destination ") or
                        said.startswith("neither ") and "the guest has crashed" in said,
                        said + vm.stderr())


if __name__ == "__main__":
    main()
