#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Tests of the lab itself: python3 tests/lab/test_lab.py [--quick] [-v] [TestClass.test_name]

Each start of a VM costs seconds, so a test checks as much as belongs together.
--quick runs the few that every test run depends on: that the command's status and
output are its own, that what goes wrong is an error, and that the wire can be cut.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.dont_write_bytecode = True

import hostclock    # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
LAB = os.path.join(HERE, "lab")
QUICK = ("OneVm.test_output_status_and_surroundings", "OneVm.test_clock_runs_as_the_hosts",
         "OneVm.test_failed_set_up_is_told",
         "OneVm.test_panic_is_an_error", "Ends.test_wrong_usage", "Ends.test_killed",
         "TwoVms.test_wire_is_cut_and_restored_and_b_killed")
LIMIT = 300     # seconds after which a lab hangs, however busy the machine is


def leftovers(runners):
    """What is left of the labs with these process ids: folders, VMs."""
    marks = tuple(f"tern-lab-{pid}-" for pid in runners)
    found = [name for name in os.listdir("/tmp") if name.startswith(marks)]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
                words = file.read()
        except OSError:
            continue
        if "-no-user-config" in words and any(mark in words for mark in marks):
            found.append(f"process {pid}")
    return found


class LabTest(unittest.TestCase):
    """Base: a lab that ends leaves nothing, and fails with its output shown."""

    def setUp(self):
        self.runners = []

    def tearDown(self):
        self.assertEqual(leftovers(self.runners), [], "the lab left something behind")

    def start(self, *arguments, **more):
        """Start a lab; returns the Popen."""
        process = subprocess.Popen([LAB, *arguments], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
        self.runners.append(process.pid)
        return process

    def lab(self, *arguments, status=0, **more):
        """Run a lab to its end, which must be this status: (stdout, stderr), bytes."""
        with self.start(*arguments, **more) as process:
            out, err = process.communicate(timeout=LIMIT)
        self.assertEqual(process.returncode, status,
                         f"\nstdout: {out[-2000:]!r}\nstderr: {err[-4000:]!r}")
        return out, err


class OneVm(LabTest):
    """One VM."""

    def test_output_status_and_surroundings(self):
        script = ("echo out; echo err >&2; pwd; id -u; ulimit -l; echo $MINE; echo $LAB_VM;"
                  "cat; echo it > $LAB_SHARE/result; printf '%s|' \"$@\"; exit 42")
        with tempfile.TemporaryDirectory() as share, \
                tempfile.TemporaryDirectory(prefix="with space ") as cwd:
            out, err = self.lab("--", "bash", "-c", script, "x", "a b", "c'\"$", "", cwd=cwd,
                                status=42, env={**os.environ, "MINE": "own 'value'",
                                                "LAB_SHARE": share})
            self.assertEqual(out.decode(),
                             f"out\n{cwd}\n0\nunlimited\nown 'value'\na\na b|c'\"$||")
            self.assertEqual(err, b"err\n")
            with open(os.path.join(share, "result"), encoding="ascii") as file:
                self.assertEqual(file.read(), "it\n")

    def test_clock_runs_as_the_hosts(self):
        script = "cat /proc/uptime; sleep 3; cat /proc/uptime /proc/cmdline"
        times = []
        with self.start("--", "bash", "-c", script, text=True) as process:
            for line in process.stdout:
                times.append((time.monotonic(), line))
        self.assertEqual(process.returncode, 0)
        (first, here), (last, there), (_, command_line) = times
        ratio = (float(there.split()[0]) - float(here.split()[0])) / (last - first)
        self.assertTrue(0.5 < ratio < 2, f"the VM's clock runs {ratio} times as fast")
        khz = hostclock.tsc_khz()
        if khz:
            told = re.search(r"tsc_early_khz=(\d+)", command_line)
            self.assertTrue(told, f"the kernel was not told: {command_line}")
            self.assertAlmostEqual(int(told[1]) / khz, 1, 3)

    def test_nothing_is_written_to_the_host(self):
        mark = f"lab-mark-{os.getpid()}"
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            out, _ = self.lab("--", "bash", "-c", f"touch {folder}/{mark} /tmp/{mark} /run/{mark};"
                              f"ls {folder}; ls -d /tmp/{mark}")
            self.assertEqual(out.decode(), f"{mark}\n/tmp/{mark}\n")
            self.assertEqual(os.listdir(folder), [])
        self.assertFalse(os.path.exists(f"/tmp/{mark}") or os.path.exists(f"/run/{mark}"))

    def test_binary_output_is_unchanged(self):
        with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
            data = os.urandom(8 << 20) + b"\n" * 3 + bytes(range(256))
            file.write(data)
            file.flush()
            out, err = self.lab("--", "bash", "-c", 'cat "$1"; cat "$1" >&2', "x", file.name)
        self.assertTrue(out == data, "standard output differs")
        self.assertTrue(err == data, "standard error differs")

    def test_signal_and_missing_command(self):
        out, _ = self.lab("--", "bash", "-c", "no-such-command; echo $?; kill -SEGV $$",
                          status=139)
        self.assertEqual(out, b"127\n")

    def test_processes_left_running_do_not_hold_the_end(self):
        out, _ = self.lab("--", "bash", "-c", "sleep 1000 & echo done")
        self.assertEqual(out, b"done\n")

    def test_rdma_numa_hugepages_modules(self):
        script = """
            ibv_devinfo -v || exit 1
            numactl --hardware
            nproc
            grep HugePages_Total /proc/meminfo
            test -e /sys/module/sch_netem && echo netem
            test -c /dev/kvm && echo kvm
            ib_write_bw -s 65536 -n 50 >/dev/null &
            until ss -ltn | grep -q :18515; do sleep 0.1; done
            ib_write_bw -s 65536 -n 50 192.168.77.1 && wait $!
        """
        out, _ = self.lab("--numa", "2", "--cpus", "2", "--hugepages", "64", "--modules",
                          "sch_netem", "--kvm", "--", "bash", "-c", script)
        for want in (r"state:\s+PORT_ACTIVE", r"::ffff:192\.168\.77\.1, RoCE v2",
                     r"fd77::1, RoCE v2", r"available: 2 nodes \(0-1\)", r"node 1 cpus: 1\n", r"\n2\n",
                     r"HugePages_Total: +64\n", r"\nnetem\n", r"\nkvm\n",
                     r"\n 65536 +50 +[0-9.]+ +[0-9.]*[1-9]"):
            self.assertRegex(out.decode(), want)

    def test_panic_is_an_error(self):
        _, err = self.lab("--", "bash", "-c", "echo c >/proc/sysrq-trigger; sleep 1000",
                          status=125)
        self.assertIn(b"lab: VM a had a kernel panic", err)
        self.assertIn(b"sysrq triggered crash", err)

    def test_power_off_is_an_error(self):
        _, err = self.lab("--", "bash", "-c", "echo o >/proc/sysrq-trigger; sleep 1000",
                          status=125)
        self.assertIn(b"lab: VM a died", err)

    def test_failed_set_up_is_told(self):
        _, err = self.lab("--modules", "no_such_module", "--", "true", status=125)
        self.assertIn(b"lab: VM a: cannot load the module no_such_module\n", err)

    def test_reader_gone(self):
        with self.start("--", "yes") as process:
            self.assertEqual(process.stdout.readline(), b"y\n")
            process.stdout.close()
            self.assertEqual(process.wait(LIMIT), 141)


class Ends(LabTest):
    """Ends that are not the command's own."""

    def test_timeout(self):
        start = time.monotonic()
        _, err = self.lab("--timeout", "25", "--", "sleep", "1000", status=124)
        self.assertLess(time.monotonic() - start, 35)
        self.assertIn(b"lab: no end after 25 s\nlab: console of VM a:\n", err)

    def interrupt(self, number):
        """Send the signal once the command runs; returns the exit status."""
        with self.start("--", "bash", "-c", "echo running; sleep 1000") as process:
            self.assertEqual(process.stdout.readline(), b"running\n")
            process.send_signal(number)
            return process.wait(30)

    def test_control_c(self):
        self.assertEqual(self.interrupt(signal.SIGINT), 130)

    def test_terminated(self):
        self.assertEqual(self.interrupt(signal.SIGTERM), 143)

    def test_killed(self):
        self.assertEqual(self.interrupt(signal.SIGKILL), -signal.SIGKILL)
        # The VM goes with its runner, its folder with the next start.
        end = time.monotonic() + 10
        while any("process" in left for left in leftovers(self.runners)):
            self.assertLess(time.monotonic(), end, "the VM outlives its runner")
            time.sleep(0.05)
        self.lab("--", "true")

    def test_wrong_usage(self):
        for arguments in ((), ("--vms", "3", "--", "true"), ("--b", "true", "--", "true"),
                          ("--mem", "lots", "--", "true"),
                          ("--hugepages", "4096", "--", "true")):
            self.lab(*arguments, status=2)

    def test_kernel_cache_that_cannot_be_made(self):
        _, err = self.lab("--", "true", env={**os.environ, "XDG_CACHE_HOME": "/proc/nowhere"},
                          status=125)
        self.assertRegex(err, rb"^lab: cannot make the kernel cache /proc/nowhere")


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
        out, _ = self.lab("--vms", "2", "--b", b, "--", "bash", "-c", script)
        text = out.decode()
        self.assertEqual(len(re.findall("ping data: rdma-ping", text)), 5)
        self.assertTrue(text.endswith("b ended with 9\nlab-b\n"), text)

    def test_wire_is_cut_and_restored_and_b_killed(self):
        script = """
            carrier() { cat /sys/class/net/rdma0/carrier; }
            # reach SECONDS - does a ping get through within that time
            reach() {
                local end=$((SECONDS + $1))
                until ping -q -c 1 -W 1 192.168.77.2 >/dev/null; do
                    [ $SECONDS -lt $end ] || { echo no; return; }
                done
                echo yes
            }
            state() { cut -d' ' -f2 /sys/class/infiniband/rxe0/ports/1/state; }
            # becomes NAME VALUE - wait until the function's output is that
            becomes() { until [ "$($1)" = $2 ]; do sleep 0.05; done; }
            echo before $(carrier) $(reach 40)
            lab-wire cut && becomes state DOWN && echo cut $(carrier) $(reach 1)
            lab-wire restore && becomes state ACTIVE && echo restored $(carrier) $(reach 40)
            start=${EPOCHREALTIME/.}
            lab-wire flap 700 && becomes state ACTIVE
            echo flap $(( (${EPOCHREALTIME/.} - start) / 700000 > 0 )) $(reach 40)
            lab-kill b && echo killed $(carrier) $(reach 1)
            lab-wait b 5; echo status $?
            lab-kill b; echo again $?
            lab-wire no-such
        """
        out, err = self.lab("--vms", "2", "--b", "sleep 1000", "--", "bash", "-c", script,
                            status=2)
        self.assertEqual(out.decode().splitlines(),
                         ["before 1 yes", "cut 0 no", "restored 1 yes", "flap 1 yes",
                          "killed 1 no", "status 137", "again 1"])
        self.assertIn(b"lab-kill: VM b is dead already\n", err)

    def test_death_of_b_is_an_error(self):
        _, err = self.lab("--vms", "2", "--b", "echo c >/proc/sysrq-trigger", "--",
                          "sleep", "1000", status=125)
        self.assertIn(b"lab: VM b had a kernel panic", err)

    def test_one_vm_has_no_wire(self):
        _, err = self.lab("--", "lab-wire", "cut", status=1)
        self.assertEqual(err, b"lab-wire: there is one VM only; start the lab with --vms 2\n")


class Several(LabTest):
    """Several labs at once."""

    def test_two_at_once_share_an_empty_cache(self):
        with tempfile.TemporaryDirectory(dir="/var/tmp") as cache:
            env = {**os.environ, "XDG_CACHE_HOME": cache}
            labs = [self.start("--", "echo", str(n), env=env) for n in range(2)]
            outputs = [each.communicate(timeout=LIMIT) for each in labs]
        self.assertEqual([out for out, _ in outputs], [b"0\n", b"1\n"])
        fetches = b"".join(err for _, err in outputs).count(b"lab: fetching ")
        self.assertEqual(fetches, 1)


if __name__ == "__main__":
    if "--quick" in sys.argv:
        sys.argv[sys.argv.index("--quick"):] = QUICK
    unittest.main()
