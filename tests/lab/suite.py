# SPDX-License-Identifier: BSD-2-Clause
"""The list of what the test command runs in the lab: run_suite.py and inside.py read it.

A machine is one start of the lab, with the options it needs; its tests run one
after the other in VM a.  A test is a program, or a function of one of the
case_*.py files.  Each counts as one, as everywhere in tests/run.sh.

Times are limits, not measurements: CPUs are emulated, and the machine may be
busy with other tests.  What the suite takes is a small part of their sum.
"""

import importlib
import os

HERE = os.path.dirname(os.path.abspath(__file__))


class Test:
    """One test: a command with its environment, or a function."""

    def __init__(self, name, seconds, command=None, function=None, environ=None):
        self.name = name
        self.seconds = seconds
        self.command = command
        self.function = function
        self.environ = environ or {}


class Machine:
    """One start of the lab."""

    def __init__(self, name, options, tests):
        self.name = name
        self.options = options
        self.tests = tests


def program(name, seconds, *command, **environ):
    """A test that is a program."""
    return Test(name, seconds, command=list(command), environ=environ)


def cases(module, prefix, seconds=60):
    """The functions prefix_* of tests/lab/<module>.py, in their order there."""
    found = vars(importlib.import_module(module))
    return [Test(f"{module[len('case_'):]}.{name.removeprefix('test_')}",
                 getattr(function, "seconds", seconds), function=function)
            for name, function in found.items()
            if name.startswith(prefix + "_") and callable(function)]


def machines(build):
    """All machines, for the programs built in the folder."""
    integration = f"{build}/tests/integration"
    fault = f"{build}/tests/fault"
    ipv6 = {"TERN_TEST_RDMA6": "rdma:[fd77::1]:0"}
    slow = {"TERN_TEST_SLOWNESS": "4"}
    vmm = ["python3", f"{HERE}/../vmm/test_moves.py", f"{build}/src/vmm/tern-vm",
           f"{build}/tests/vmm/statetool", f"{build}/src/vmm"]
    two = ["--vms", "2", "--cpus", "1", "--b", f"python3 {HERE}/agent.py"]
    return [
        # First what mostly waits, because others want the CPUs then (tests/run.sh).
        Machine("wire", two, [*cases("case_wire", "bench", 180),
                               *cases("case_wire", "point", 180)]),
        # A machine that lost its power is of no use to the next test.
        *(Machine(each.name.removeprefix("wire."), two, [each])
          for each in cases("case_wire", "kill", 180)),
        Machine("numa", ["--numa", "2", "--cpus", "4"], [
            *cases("case_numa", "test"), *cases("case_device", "test"),
            *cases("case_info", "test")]),
        Machine("memory-node", ["--numa", "2", "--cpus", "1"], cases("case_numa", "cpuless")),
        Machine("bad", [], cases("case_bad", "test", 120)),
        # KVM's dirty rings are as they should be here, whatever the host's are.  One CPU: two
        # emulated ones that emulate a third take each other's time for many seconds.
        Machine("kvm", ["--kvm", "--cpus", "1"], [
            program("kvm-vm", 60, f"{build}/tests/unit/test_kvm_vm"),
            program("dirty-kvm", 120, f"{build}/tests/unit/test_dirty_kvm"),
            program("dirty-kvm-stress", 240, f"{build}/tests/unit/test_dirty_kvm_stress",
                    TERN_TEST_SLOWNESS="20"),
            program("kvm-migration", 200, f"{integration}/test_kvm", "tcp: *ring*", **slow),
            program("vmm-rdma", 300, *vmm, "Moves.test_check_precopy", "Moves.test_check_hybrid",
                    TERN_TEST_VMM_URI="rdma:192.168.77.1:0", TERN_TEST_VMM_MOVES="1",
                    TERN_TEST_VMM_DIRTY="ring", TERN_TEST_VMM_MEM="32M",
                    # A guest that writes all the time, on a CPU that it shares with who moves it.
                    TERN_TEST_VMM_PARAMETERS='{"auto-converge": true, "downtime-limit": 2000}',
                    **slow),
        ]),
        Machine("one", ["--hugepages", "64"], [
            program("transport", 150, f"{integration}/test_transport", "rdma"),
            program("transport-pin-all", 150, f"{integration}/test_transport", "rdma-all"),
            program("transport-rdma6", 150, f"{integration}/test_transport", "rdma6", **ipv6),
            program("migration", 400, f"{integration}/test_migration", "rdma:*",
                    TERN_TEST_RDMA="1"),
            program("postcopy", 200, f"{integration}/test_postcopy", "rdma: *fault*",
                    TERN_TEST_RDMA="1", **slow),
            program("postcopy-lost-link", 200, f"{integration}/test_postcopy",
                    "rdma: *lost_link*", TERN_TEST_RDMA="1", **slow),
            program("switchover", 200, f"{integration}/test_switchover", "rdma: *acknowledged*",
                    TERN_TEST_RDMA="1", **slow),
            program("postcopy-holes", 200, f"{integration}/test_postcopy", "rdma: holes*",
                    TERN_TEST_RDMA="1", **slow),
            # The whole of these runs over a fake device; here some of each.
            program("migration-rdma6", 200, f"{integration}/test_migration", "rdma6: running*",
                    **ipv6),
            program("walk", 200, f"{fault}/test_walk", "rdma", "cut_after_send", **slow),
            program("calls", 200, f"{fault}/test_calls", "rdma", "cut_after_[wf]*", **slow),
            program("kill", 200, f"{fault}/test_kill", "rdma", "*killed*", **slow),
            *cases("case_bench", "test"),
        ]),
    ]
