#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Tests of the lab itself: python3 tests/lab/test_lab.py [-v] [TestClass.test_name]

Each start of a VM costs seconds, so a test checks as much as belongs together.
"""

import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
LAB = os.path.join(HERE, "lab")
LIMIT = 300     # seconds after which a lab hangs, however busy the machine is


def lab(*arguments, **more):
    """Run the lab to its end; returns the CompletedProcess, with bytes."""
    return subprocess.run([LAB, *arguments], stdin=subprocess.DEVNULL, capture_output=True,
                          timeout=LIMIT, check=False, **more)


def leftovers():
    """Folders of lab runs, and processes of lab VMs: (names, process ids)."""
    folders = {name for name in os.listdir("/tmp") if name.startswith("tern-lab-")}
    processes = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if b"\0tern-lab-" in file.read():
                    processes.add(pid)
        except OSError:
            pass
    return folders, processes


class LabTest(unittest.TestCase):
    """Base: a run that ends leaves nothing, and fails with its stderr shown."""

    def setUp(self):
        self.before = leftovers()

    def tearDown(self):
        for before, after in zip(self.before, leftovers()):
            self.assertLessEqual(after, before, "the lab left something behind")

    def check(self, done, status=0):
        """The run ended with this status."""
        self.assertEqual(done.returncode, status,
                         f"\nstdout: {done.stdout[-2000:]!r}\nstderr: {done.stderr.decode()}")
        return done


class OneVm(LabTest):
    """One VM."""

    def test_output_status_and_surroundings(self):
        script = ("echo out; echo err >&2; pwd; id -u; ulimit -l; echo $MINE; echo $LAB_VM;"
                  "cat; ls /tmp/x.$PPID 2>/dev/null; echo it > $LAB_SHARE/result;"
                  "printf '%s|' \"$@\"; exit 42")
        with tempfile.TemporaryDirectory() as share, \
                tempfile.TemporaryDirectory(prefix="with space ") as cwd:
            done = self.check(lab("--", "bash", "-c", script, "x", "a b", "c'\"$", "", cwd=cwd,
                                  env={**os.environ, "MINE": "own 'value'", "LAB_SHARE": share}),
                              42)
            self.assertEqual(done.stdout.decode(),
                             f"out\n{cwd}\n0\nunlimited\nown 'value'\na\na b|c'\"$||")
            self.assertEqual(done.stderr, b"err\n")
            with open(os.path.join(share, "result"), encoding="ascii") as file:
                self.assertEqual(file.read(), "it\n")

    def test_binary_output_is_unchanged(self):
        with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
            file.write(os.urandom(8 << 20) + b"\n" * 3 + bytes(range(256)))
            file.flush()
            done = self.check(lab("--", "bash", "-c", 'cat "$1"; cat "$1" >&2', "x", file.name))
            with open(file.name, "rb") as again:
                want = hashlib.sha256(again.read()).hexdigest()
        self.assertEqual(hashlib.sha256(done.stdout).hexdigest(), want)
        self.assertEqual(hashlib.sha256(done.stderr).hexdigest(), want)

    def test_signal_and_missing_command(self):
        done = self.check(lab("--", "bash", "-c", "no-such-command; echo $?; kill -SEGV $$"), 139)
        self.assertEqual(done.stdout, b"127\n")

    def test_processes_left_running_do_not_hold_the_end(self):
        done = self.check(lab("--", "bash", "-c", "sleep 1000 & echo done"))
        self.assertEqual(done.stdout, b"done\n")

    def test_rdma_numa_hugepages_modules(self):
        script = """
            ibv_devinfo -v || exit 1
            numactl --hardware
            grep HugePages_Total /proc/meminfo
            test -e /sys/module/sch_netem && echo netem
            test -c /dev/kvm && echo kvm
            ib_write_bw -s 65536 -n 50 >/dev/null &
            until ss -ltn | grep -q :18515; do sleep 0.1; done
            ib_write_bw -s 65536 -n 50 192.168.77.1 && wait $!
        """
        done = self.check(lab("--numa", "2", "--cpus", "2", "--hugepages", "64", "--modules",
                              "sch_netem", "--kvm", "--", "bash", "-c", script))
        text = done.stdout.decode()
        for want in (r"state:\s+PORT_ACTIVE", r"::ffff:192\.168\.77\.1, RoCE v2",
                     r"fd77::1, RoCE v2", r"available: 2 nodes \(0-1\)", r"node 1 cpus: 1\n",
                     r"HugePages_Total: +64\n", r"\nnetem\n", r"\nkvm\n",
                     r"\n 65536 +50 +[0-9.]+ +[0-9.]*[1-9]"):
            self.assertRegex(text, want)

    def test_panic_is_an_error(self):
        done = self.check(lab("--", "bash", "-c", "echo c >/proc/sysrq-trigger; sleep 1000"), 125)
        self.assertIn(b"lab: VM a had a kernel panic", done.stderr)
        self.assertIn(b"sysrq triggered crash", done.stderr)

    def test_power_off_is_an_error(self):
        done = self.check(lab("--", "bash", "-c", "echo o >/proc/sysrq-trigger; sleep 1000"), 125)
        self.assertIn(b"lab: VM a died", done.stderr)

    def test_failed_set_up_is_told(self):
        done = self.check(lab("--modules", "no_such_module", "--", "true"), 125)
        self.assertIn(b"lab: VM a: cannot load the module no_such_module\n", done.stderr)

    def test_reader_gone(self):
        with subprocess.Popen([LAB, "--", "bash", "-c", "yes"], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            self.assertEqual(process.stdout.readline(), b"y\n")
            process.stdout.close()
            self.assertEqual(process.wait(LIMIT), 141)


class Ends(LabTest):
    """Ends that are not the command's own."""

    def test_timeout(self):
        start = time.monotonic()
        done = self.check(lab("--timeout", "25", "--", "sleep", "1000"), 124)
        self.assertLess(time.monotonic() - start, 35)
        self.assertIn(b"lab: no end after 25 s\nlab: console of VM a:\n", done.stderr)

    def interrupt(self, number, *arguments):
        """Send the signal once the command runs; returns the exit status."""
        with subprocess.Popen([LAB, *arguments], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE) as process:
            self.assertEqual(process.stdout.readline(), b"running\n")
            process.send_signal(number)
            return process.wait(30)

    def test_control_c(self):
        status = self.interrupt(signal.SIGINT, "--", "bash", "-c", "echo running; sleep 1000")
        self.assertEqual(status, 130)

    def test_terminated_and_killed(self):
        arguments = ("--", "bash", "-c", "echo running; sleep 1000")
        self.assertEqual(self.interrupt(signal.SIGTERM, *arguments), 143)
        self.assertEqual(self.interrupt(signal.SIGKILL, *arguments), -signal.SIGKILL)
        # The VM goes with its runner, its folder with the next start.
        end = time.monotonic() + 10
        while leftovers()[1] - self.before[1] and time.monotonic() < end:
            time.sleep(0.05)
        self.check(lab("--", "true"))

    def test_wrong_usage(self):
        for arguments in ((), ("--vms", "3", "--", "true"), ("--b", "true", "--", "true"),
                          ("--numa", "4", "--cpus", "2", "--", "true"),
                          ("--mem", "lots", "--", "true"),
                          ("--hugepages", "4096", "--", "true")):
            self.assertEqual(lab(*arguments).returncode, 2, arguments)

    def test_kernel_cache_that_cannot_be_made(self):
        done = self.check(lab("--", "true", env={**os.environ, "XDG_CACHE_HOME": "/proc/nowhere"}),
                          125)
        self.assertRegex(done.stderr, rb"^lab: cannot make the kernel cache /proc/nowhere")


class TwoVms(LabTest):
    """Two VMs and the wire between them."""

    def test_ping_and_rping(self):
        script = """
            ping -q -c 2 192.168.77.2 && ping -q -c 2 fd77::2 && ping -q -c 1 b || exit 1
            until [ -e $LAB_SHARE/listening ]; do sleep 0.1; done
            rping -c -a 192.168.77.2 -C 5 -v || exit 2
            lab-wait b 60
            echo "b ended with $?"
            cat $LAB_SHARE/b.out
        """
        b = ("rping -s -a 192.168.77.2 -C 5 & until ss -H -t state listening | grep -q . ||"
             " rdma resource show cm_id | grep -q LISTEN; do sleep 0.1; done;"
             " touch $LAB_SHARE/listening; wait; hostname; exit 9")
        done = self.check(lab("--vms", "2", "--b", b, "--", "bash", "-c", script))
        text = done.stdout.decode()
        self.assertEqual(len(re.findall("ping data: rdma-ping", text)), 5)
        self.assertTrue(text.endswith("b ended with 9\nlab-b\n"), text)

    def test_wire_is_cut_and_restored_and_b_killed(self):
        script = """
            carrier() { cat /sys/class/net/rdma0/carrier; }
            reach() { ping -q -c 1 -W $1 192.168.77.2 >/dev/null && echo yes || echo no; }
            state() { cut -d' ' -f2 /sys/class/infiniband/rxe0/ports/1/state; }
            # becomes NAME VALUE - wait until the function's output is that
            becomes() { until [ "$($1)" = $2 ]; do sleep 0.05; done; }
            echo before $(carrier) $(reach 20)
            lab-wire cut && becomes state DOWN && echo cut $(carrier) $(reach 1)
            lab-wire restore && becomes state ACTIVE && echo restored $(carrier) $(reach 20)
            start=${EPOCHREALTIME/.}
            lab-wire flap 700 && becomes state ACTIVE
            echo flap $(( (${EPOCHREALTIME/.} - start) / 700000 > 0 )) $(reach 20)
            lab-kill b && echo killed $(carrier) $(reach 1)
            lab-wait b 5; echo status $?
            lab-kill b; echo again $?
            lab-wire no-such; echo wrong $?
        """
        done = self.check(lab("--vms", "2", "--b", "sleep 1000", "--", "bash", "-c", script))
        self.assertEqual(done.stdout.decode().splitlines(),
                         ["before 1 yes", "cut 0 no", "restored 1 yes", "flap 1 yes",
                          "killed 1 no", "status 137", "again 1", "wrong 2"])
        self.assertIn(b"lab-kill: VM b is dead already\n", done.stderr)

    def test_death_of_b_is_an_error(self):
        done = self.check(lab("--vms", "2", "--b", "echo c >/proc/sysrq-trigger", "--",
                              "sleep", "1000"), 125)
        self.assertIn(b"lab: VM b had a kernel panic", done.stderr)

    def test_one_vm_has_no_wire(self):
        done = self.check(lab("--", "lab-wire", "cut"), 1)
        self.assertEqual(done.stderr, b"lab-wire: there is one VM only; "
                                      b"start the lab with --vms 2\n")


class Several(LabTest):
    """Several labs at once."""

    def test_two_at_once_share_an_empty_cache(self):
        with tempfile.TemporaryDirectory(dir="/var/tmp") as cache:
            env = {**os.environ, "XDG_CACHE_HOME": cache}
            labs = [subprocess.Popen([LAB, "--", "echo", str(n)], stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=env)
                    for n in range(2)]
            outputs = [each.communicate(timeout=LIMIT) for each in labs]
        self.assertEqual([out for out, _ in outputs], [b"0\n", b"1\n"])
        fetches = b"".join(err for _, err in outputs).count(b"lab: fetching ")
        self.assertEqual(fetches, 1)


if __name__ == "__main__":
    unittest.main()
