#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""The command as a user meets it: exit codes, one line that says what to do, JSON, two
processes, signals; and the example, and what the library exports.

    test_cli.py TERN EXAMPLE LIBRARY [unittest arguments]
"""
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import unittest

TERN, EXAMPLE, LIBRARY = sys.argv[1:4]
SMALL = ["--size", "32M", "--run-after", "20"]
TIMEOUT = 120


def tern(*args, **kw):
    """Run tern and wait; stdin is closed, output is text."""
    return subprocess.run([TERN, *args], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=TIMEOUT, **kw)


def listen(*args):
    """A destination that listens; returns (process, its URI)."""
    p = subprocess.Popen([TERN, "bench", *args], stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = []
    for line in p.stderr:
        lines.append(line)
        m = re.search(r"listening on (\S+)", line)
        if m:
            return p, m.group(1)
    raise AssertionError("does not listen: " + "".join(lines))


class Usage(unittest.TestCase):
    """Wrong usage: exit 2, one line on stderr that names the thing and the remedy."""

    def wrong(self, args, *words):
        r = tern(*args)
        self.assertEqual(r.returncode, 2, r.stderr)
        lines = r.stderr.strip().splitlines()
        self.assertEqual(len(lines), 1, r.stderr)
        self.assertTrue(lines[0].startswith("tern: "), lines[0])
        for w in words:
            self.assertIn(w, lines[0])
        self.assertEqual(r.stdout, "")

    def test_unknown_subcommand(self):
        self.wrong(["migrate"], "migrate")

    def test_unknown_option(self):
        self.wrong(["bench", "--fast"], "--fast")

    def test_impossible_sizes(self):
        for size in ("0", "-1", "1Q", "banana", "4097", "99999999999G", "1.5G", ""):
            with self.subTest(size=size):
                self.wrong(["bench", "--size", size], "--size")

    def test_impossible_data_path(self):
        self.wrong(["bench", "--chunk", "100K"], "--chunk", "power of two")
        self.wrong(["bench", "--chunk", "4K"], "--chunk", "65536 to 67108864")
        for n in ("0", "65"):
            self.wrong(["bench", "--channels", n], "--channels", "1 to 64")

    def test_impossible_cpus(self):
        for text in ("0", "99999", "-1", "0-", "3-1", "a", ""):
            with self.subTest(cpus=text):
                self.wrong(["bench", "--cpus", text], "--cpus")

    def test_cpus_that_are_not_here(self):
        r = tern("bench", "--connect", "tcp:127.0.0.1:1", *SMALL, "--cpus", "0-8191")
        self.assertEqual(r.returncode, 2, r.stderr)
        self.assertIn("0-8191", r.stderr)
        self.assertIn("may not use", r.stderr)

    def test_impossible_devices(self):
        for text in ("/", "a/0", "a/256", "a/x", "a/1/1", "a b", "", "a" * 64, "../a"):
            with self.subTest(device=text):
                self.wrong(["bench", "--transport", "auto", "--rdma-device", text],
                           "--rdma-device")
        self.wrong(["bench", "--transport", "tcp", "--rdma-device", "mlx5_0"], "--rdma-device",
                   "means nothing for tcp")

    def test_listen_and_connect(self):
        self.wrong(["bench", "--listen", "tcp::1", "--connect", "tcp:a:1"], "--listen",
                   "--connect")

    def test_more_touched_than_there_is(self):
        self.wrong(["bench", "--size", "16M", "--touched", "32M"], "--touched")
        self.wrong(["bench", "--touched", "101%"], "--touched")

    def test_working_set_above_touched(self):
        self.wrong(["bench", "--size", "64M", "--touched", "8M", "--working-set", "16M"],
                   "--working-set")

    def test_modes(self):
        self.wrong(["bench", "--mode", "live"], "live", "precopy|postcopy|hybrid")
        self.wrong(["bench", "--precopy-rounds", "3"], "--precopy-rounds 3", "--mode hybrid")

    def test_bad_uris(self):
        for uri in ("host:1", "tcp:host", "tcp:host:99999", "tcp:host:http", "tcp:[::1:1",
                    "unix:", "ftp:host:1", "unix:/" + "x" * 200):
            with self.subTest(uri=uri):
                self.wrong(["bench", "--connect", uri, *SMALL], "URI")

    def test_version_and_help(self):
        self.assertRegex(tern("--version").stdout, r"^tern \d+\.\d+\.\d+")
        r = tern("bench", "--help")
        self.assertEqual(r.returncode, 0)
        self.assertIn("--downtime-limit", r.stdout)


class Network(unittest.TestCase):
    """What can be wrong outside: exit 1, what was tried, and what to do."""

    def failed(self, args, *words):
        r = tern("bench", *args, *SMALL)
        self.assertEqual(r.returncode, 1, r.stderr)
        errors = [x for x in r.stderr.splitlines() if x.startswith("tern: ")]
        self.assertTrue(errors, r.stderr)
        for w in words:
            self.assertIn(w, errors[0])

    def test_nothing_listening(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.failed(["--connect", f"tcp:127.0.0.1:{port}"], f"127.0.0.1:{port}", "refused")

    def test_port_in_use(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            s.listen()
            port = s.getsockname()[1]
            self.failed(["--listen", f"tcp:127.0.0.1:{port}"], str(port), "in use")

    def test_name_that_does_not_resolve(self):
        self.failed(["--connect", "tcp:no-such-host.invalid:4444"], "no-such-host.invalid")

    def test_address_of_another_host(self):
        self.failed(["--listen", "tcp:192.0.2.1:4444"], "192.0.2.1")

    def test_no_socket_at_path(self):
        self.failed(["--connect", "unix:/nonexistent/tern.sock"], "/nonexistent/tern.sock")


class Bench(unittest.TestCase):
    KEYS = ("status transport mode total_ms setup_ms first_byte_ms downtime_ms "
            "downtime_ledger_us ram_bytes sent_bytes throughput_mib_s rounds pages "
            "registration channels cpu postcopy verify error").split()

    def moved(self, *args):
        r = tern("bench", *SMALL, *args, "--json", "-")
        self.assertEqual(r.returncode, 0, r.stderr)
        j = json.loads(r.stdout)
        self.assertEqual(j["status"], "completed")
        self.assertEqual(j["verify"]["bad"], 0)
        self.assertEqual(j["verify"]["pages"], j["ram_bytes"] // 4096)
        return j

    def test_keys_of_the_contract(self):
        j = self.moved()
        for k in self.KEYS:
            self.assertIn(k, j)
        self.assertIsNone(j["error"])
        ledger = sum(j["downtime_ledger_us"].values())
        self.assertAlmostEqual(ledger / 1000, j["downtime_ms"], places=2)
        self.assertIn("source_s", j["cpu"])
        self.assertIn("destination_s", j["cpu"])

    def test_fills_backings_and_patterns(self):
        for args in (["--fill", "random", "--backing", "anon"],
                     ["--fill", "zero", "--prealloc"],
                     ["--fill", "text", "--pattern", "sequential", "--vcpus", "3"],
                     ["--fill", "mixed", "--pattern", "hot", "--regions", "7"],
                     ["--touched", "25%", "--dirty-rate", "0"],
                     ["--channels", "5", "--chunk", "64K"],
                     ["--dirty-provider", "uffd-wp-sync", "--dirty-rate", "40M"],
                     ["--dirty-provider", "callbacks", "--vcpus", "2", "--regions", "3"],
                     ["--max-bandwidth", "200M", "--zerocopy"]):
            with self.subTest(args=args):
                self.moved(*args)

    def test_says_why_the_transport(self):
        for args, why in ((["--transport", "tcp"], "--transport tcp"),
                          (["--transport", "auto"], "device")):
            r = tern("bench", *SMALL, *args, "--json", "-")
            self.assertEqual(r.returncode, 0, r.stderr)
            self.assertIn(why, json.loads(r.stdout)["transport_why"])

    def test_timeout_is_3_and_source_runs_on(self):
        r = tern("bench", *SMALL, "--max-bandwidth", "4M", "--fill", "random", "--timeout", "1",
                 "--json", "-")
        self.assertEqual(r.returncode, 3, r.stderr)
        j = json.loads(r.stdout)
        self.assertEqual(j["status"], "cancelled")
        self.assertEqual(j["source_verify"]["bad"], 0)

    def test_interrupt_is_3(self):
        p = subprocess.Popen([TERN, "bench", *SMALL, "--fill", "random", "--max-bandwidth", "2M"],
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
        for line in p.stderr:
            if "active" in line or "round" in line:
                break
        p.send_signal(signal.SIGINT)
        p.communicate(timeout=TIMEOUT)
        self.assertEqual(p.returncode, 3)

    def test_two_processes(self):
        for uri in ("tcp:127.0.0.1:0", "tcp:[::1]:0", "tcp://localhost:0"):
            if "::1" in uri and "ipv6" in os.environ.get("TERN_TEST_LEAVE_OUT", ""):
                continue
            with self.subTest(uri=uri):
                p, at = listen("--listen", uri, *SMALL)
                r = tern("bench", "--connect", at, *SMALL)
                self.assertEqual(r.returncode, 0, r.stderr)
                out, err = p.communicate(timeout=TIMEOUT)
                self.assertEqual(p.returncode, 0, err)
                self.assertIn("0 bad", out)

    def test_unix_socket(self):
        with tempfile.TemporaryDirectory() as d:
            p, at = listen("--listen", f"unix:{d}/s", *SMALL)
            self.assertEqual(tern("bench", "--connect", at, *SMALL).returncode, 0)
            self.assertEqual(p.wait(TIMEOUT), 0)
            p.communicate()
            self.assertFalse(os.path.exists(f"{d}/s"))

    def test_strangers_do_not_matter(self):
        p, at = listen("--listen", "tcp:127.0.0.1:0", *SMALL)
        port = int(at.rsplit(":", 1)[1])
        silent = socket.create_connection(("127.0.0.1", port))
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", b"\0" * 4096):
            with socket.create_connection(("127.0.0.1", port)) as s:
                s.sendall(garbage)
                try:
                    self.assertEqual(s.recv(1), b"")
                except ConnectionResetError:
                    pass
        r = tern("bench", "--connect", at, "--size", "16M")
        self.assertEqual(r.returncode, 1)
        self.assertIn("RAM size differs", r.stderr)
        r = tern("bench", "--connect", at, *SMALL)
        self.assertEqual(r.returncode, 0, r.stderr)
        silent.close()
        _, err = p.communicate(timeout=TIMEOUT)
        self.assertEqual(p.returncode, 0, err)

    def test_killed_destination_leaves_the_source_running(self):
        p, at = listen("--listen", "tcp:127.0.0.1:0", *SMALL)
        src = subprocess.Popen([TERN, "bench", "--connect", at, *SMALL, "--fill", "random",
                                "--max-bandwidth", "4M", "--json", "-"],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
        for line in src.stderr:
            if "active" in line or "round" in line:
                break
        p.kill()
        p.communicate()
        out, err = src.communicate(timeout=TIMEOUT)
        self.assertEqual(src.returncode, 1, err)
        j = json.loads(out)
        self.assertEqual(j["outcome"], "source")
        self.assertEqual(j["source_verify"]["bad"], 0)
        self.assertNotEqual(j["error"]["message"], "")


class Placement(unittest.TestCase):
    """NUMA and CPUs, as far as any machine has them."""

    def report(self, *args):
        r = tern("bench", "--transport", "tcp", *SMALL, *args, "--json", "-")
        self.assertEqual(r.returncode, 0, r.stderr)
        return json.loads(r.stdout)

    def test_split_over_the_nodes_there_are(self):
        with open("/sys/devices/system/node/has_memory", encoding="ascii") as f:
            nodes = set()
            for part in f.read().strip().split(","):
                first, _, last = part.partition("-")
                nodes |= set(range(int(first), int(last or first) + 1))
        j = self.report("--numa-split", "--channels", str(2 * len(nodes)))
        self.assertEqual(j["guest"]["regions"], len(nodes))
        self.assertEqual({c["node"] for c in j["channels"]}, nodes)

    def test_split_of_fewer_pages_than_asked_for(self):
        j = self.report("--numa-split", "--size", "4K", "--working-set", "0")
        self.assertEqual(j["guest"]["regions"], 1)

    def test_one_cpu(self):
        cpu = min(os.sched_getaffinity(0))
        for text in ("1", f"{cpu}-{cpu}"):
            j = self.report("--cpus", text)
            self.assertRegex(j["cpus"], r"^\d+$")
            for c in j["channels"]:
                self.assertEqual(c["cpus"], j["cpus"])
                self.assertEqual(c["cpu"], int(j["cpus"]))

    def test_more_cpus_than_there_are(self):
        j = self.report("--cpus", "8192")
        count = sum(int(b or a) - int(a) + 1 for a, _, b in
                    (part.partition("-") for part in j["cpus"].split(",")))
        self.assertEqual(count, len(os.sched_getaffinity(0)))


class Info(unittest.TestCase):
    def test_json(self):
        j = json.loads(tern("info", "--json").stdout)
        self.assertIn("node0", j["numa"])
        there = "/sys/class/infiniband"
        devices = os.listdir(there) if os.path.isdir(there) else []
        self.assertEqual(j["rdma"]["devices"], len(devices))
        advice = {each["fact"]: each["do"] for each in j["todo"]}
        if not devices:
            self.assertIn("soft-RoCE", advice["rdma.devices"])
        for device in devices:
            self.assertIn("ports", j["rdma"][device])

    def test_text(self):
        r = tern("info")
        self.assertEqual(r.returncode, 0)
        for word in ("userfaultfd", "kvm", "numa", "memlock", "rdma"):
            self.assertIn(word, r.stdout)


class Library(unittest.TestCase):
    def test_example_moves_its_memory(self):
        with tempfile.TemporaryDirectory() as d:
            uri = f"unix:{d}/s"
            dst = subprocess.Popen([EXAMPLE, "listen", uri], stdout=subprocess.PIPE, text=True)
            for _ in range(1000):
                if os.path.exists(f"{d}/s"):
                    break
                try:
                    dst.wait(0.01)
                    self.fail("the example does not listen")
                except subprocess.TimeoutExpired:
                    pass
            src = subprocess.run([EXAMPLE, "connect", uri], timeout=TIMEOUT, check=False)
            out, _ = dst.communicate(timeout=TIMEOUT)
            self.assertEqual(src.returncode, 0)
            self.assertEqual(dst.returncode, 0, out)
            self.assertIn("all of them are here", out)

    def test_exports_only_its_own_names(self):
        out = subprocess.run(["nm", "-D", "--defined-only", LIBRARY], capture_output=True,
                             text=True, check=True).stdout
        names = {line.split()[-1].split("@")[0] for line in out.splitlines()
                 if line.split()[-2] in "TDBRW"}
        names -= {"TERN_0.1"}
        self.assertIn("tern_session_new", names)
        self.assertEqual([n for n in names if not n.startswith("tern_")], [])

    def test_headers_and_exports_agree(self):
        root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
        declared = set()
        for name in os.listdir(os.path.join(root, "include/tern")):
            with open(os.path.join(root, "include/tern", name), encoding="utf-8") as f:
                text = re.sub(r"/\*.*?\*/", "", f.read(), flags=re.S)
            declared |= set(re.findall(r"\b(tern_\w+)\(", text))
        with open(os.path.join(root, "src/libtern.map"), encoding="utf-8") as f:
            exported = set(re.findall(r"\b(tern_\w+);", f.read()))
        declared -= {"tern_event_fn", "tern_notifier_fn"}     # types
        self.assertEqual(declared, exported)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]], verbosity=2)
