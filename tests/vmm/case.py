# SPDX-License-Identifier: BSD-2-Clause
"""What the tests of tern-vm share: a folder, VMs that end with the test, and the way to start.

    test_NAME.py TERN-VM STATETOOL IMAGES [unittest arguments]

IMAGES is the folder with the guests' images.
"""
import os
import shutil
import sys
import tempfile
import unittest

from serial import Serial
from vmmtool import CommandError, Vm, leave_out

TERN_VM, STATETOOL, IMAGES = sys.argv[1:4]
# How the machines' writes are tracked, as of --dirty.
DIRTY = os.environ.get("TERN_TEST_VMM_DIRTY", "log")
SMALL = ["--mem", os.environ.get("TERN_TEST_VMM_MEM", "64M"), "--vcpus", "2", "--dirty", DIRTY]


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

    def back_on_its_feet(self, source, destination):
        """A migration has failed: the guest runs at the source, and can be moved after all."""
        self.assertEqual(source.status(), "running")
        self.serial.wait_more()
        source.migrate_to(destination, max_bandwidth=0)
        self.serial.wait_more()


def main():
    """Run the tests of the program, unless they cannot run."""
    if leave_out("kvm"):
        print("left out: kvm")
        sys.exit(77)
    if not os.path.exists("/dev/kvm"):
        print("there is no /dev/kvm; to do without it: tests/run.sh --leave-out kvm")
        sys.exit(1)
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]])
