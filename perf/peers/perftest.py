# SPDX-License-Identifier: BSD-2-Clause
"""The ceiling of the device: perftest, against itself on this machine.

ib_write_bw writes the same buffer again and again, with nothing to look up, to track or to
agree on: no migration can be quicker.  As many bytes as the scenario's RAM are
written; the figure is perftest's own average, from the first post to the last
completion, with connecting left out.

With the option measure = "fault" it is the floor of a page fault over RDMA instead: the
resolution of a minor fault (perf/faults.c), two ib_read_lat of a page, and one ib_send_lat.

Options of a Spec: message (bytes), post_list (work requests per post), queue_pairs (of
one posting thread), processes (that many pairs at once, each with its share of the bytes;
their average speeds are added, which flatters them by as much as they did not overlap).
"""

import os
import re
import shutil
import subprocess
import time

from peers.base import MIB, PAGE, PeerError, Result, RUN_TIMEOUT_S
from peers.faults import measure
from peers.rdma import find_port

BINARY = "ib_write_bw"
LATENCIES = (("ib_read_lat", PAGE, 2), ("ib_send_lat", 32, 1))  # tool, bytes, how often
LATENCY_ITERATIONS = 2000
TCP_PORT = 18515  # where client and server meet; perftest's own default
START_TIMEOUT_S = 30
TCP_LISTEN = "0A"


def listening(port, tables=("/proc/net/tcp", "/proc/net/tcp6")):
    """Does anybody on this machine listen at TCP @port?"""
    for table in tables:
        try:
            with open(table, encoding="ascii") as f:
                rows = f.read().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            words = row.split()
            if words[3] == TCP_LISTEN and int(words[1].rsplit(":", 1)[1], 16) == port:
                return True
    return False


def parse(text):
    """(message bytes, messages, average MiB/s) from the output of ib_write_bw."""
    if "BW average[MB/sec]" not in text:
        raise PeerError(f"{BINARY}: no table in MB/sec in its output: {text.strip()[-200:]}")
    rows = re.findall(r"^\s*(\d+)\s+(\d+)\s+([\d.]+)\s+([\d.]+)\s+[\d.]+\s*$", text, re.MULTILINE)
    if len(rows) != 1 or float(rows[0][3]) <= 0:
        raise PeerError(f"{BINARY}: {len(rows)} rows of figures in its output, not one")
    return int(rows[0][0]), int(rows[0][1]), float(rows[0][3])


def parse_latency(tool, text):
    """The typical latency in microseconds, from the output of ib_read_lat or ib_send_lat."""
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if "t_typical[usec]" in line]
    if len(heads) != 1:
        raise PeerError(f"{tool}: no table in usec in its output: {text.strip()[-200:]}")
    names = [w.split("[")[0] for w in lines[heads[0]].split()]
    row = lines[heads[0] + 1].split() if heads[0] + 1 < len(lines) else []
    try:
        value = float(row[names.index("t_typical")])
    except (IndexError, ValueError):
        value = 0
    if value <= 0:
        raise PeerError(f"{tool}: no row of figures in its output: {text.strip()[-200:]}")
    return value


class Perftest:
    """ib_write_bw with the message size and posting of the scenario's entry."""

    name = "perftest"
    part = "rdma"

    def __init__(self, work):
        self.work = work
        self.port = find_port()

    def available(self):
        """None, or why not."""
        for tool in (BINARY, *(name for name, _, _ in LATENCIES)):
            if not shutil.which(tool):
                return f"{tool} is not installed (package perftest)"
        if not self.port:
            return "no RDMA port is active and has an IPv4 address"
        return None

    def version(self):
        """Its version and the device it uses."""
        out, _ = self.work.capture([BINARY, "--version"], timeout=10, allowed=(0, 1))
        return f"{out.strip()}, {self.port.text()}"

    def _argv(self, spec, tcp_port=TCP_PORT):
        """The command line of both ends; the client's address comes behind it."""
        message, queue_pairs = spec.options["message"], spec.options.get("queue_pairs", 1)
        share = spec.ram // spec.options.get("processes", 1)
        count = max(5, share // message // queue_pairs)
        argv = [BINARY, "-d", self.port.device, "-i", str(self.port.number), "-p", str(tcp_port),
                "-F", "-s", str(message), "-n", str(count), "-t", str(min(128, count))]
        if queue_pairs > 1:
            argv += ["-q", str(queue_pairs)]
        if spec.options.get("post_list"):
            argv += ["--post_list", str(spec.options["post_list"])]
        return argv

    def _start_server(self, argv, tcp_port):
        """Start the passive end, and wait until it listens."""
        if listening(tcp_port):
            raise PeerError(f"{argv[0]}: TCP port {tcp_port} is in use on this machine")
        log_path = os.path.join(self.work.dir, f"perftest-{tcp_port}.log")
        with open(log_path, "wb") as log:
            server = self.work.start(argv, stdout=log, stderr=log)
        end = time.monotonic() + START_TIMEOUT_S
        while not listening(tcp_port):
            if server.poll() is not None or time.monotonic() > end:
                self.work.stop(server)
                with open(log_path, encoding="utf-8", errors="replace") as log:
                    raise PeerError(f"{' '.join(argv)}: did not listen: {log.read()[-300:]}")
            time.sleep(0.02)
        return server

    def _start_client(self, argv, tcp_port):
        """Start the active end; (process, file with its output)."""
        path = os.path.join(self.work.dir, f"perftest-{tcp_port}.out")
        with open(path, "wb") as out:
            return self.work.start(argv + [self.port.address], stdout=out, stderr=out), path

    def _finish(self, client, path):
        """Wait for an active end; what it wrote."""
        try:
            status = client.wait(timeout=RUN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise PeerError(f"{client.args[0]}: not done after {RUN_TIMEOUT_S} s") from None
        finally:
            self.work.stop(client)
        with open(path, encoding="utf-8", errors="replace") as f:
            text = f.read()
        if status != 0:
            raise PeerError(f"{client.args[0]}: exit status {status}: {text.strip()[-300:]}")
        return text

    def _latency(self, tool, message):
        """The typical latency of @tool with @message bytes, microseconds."""
        argv = [tool, "-d", self.port.device, "-i", str(self.port.number), "-p", str(TCP_PORT),
                "-F", "-s", str(message), "-n", str(LATENCY_ITERATIONS)]
        server = self._start_server(argv, TCP_PORT)
        try:
            return parse_latency(tool, self._finish(*self._start_client(argv, TCP_PORT)))
        finally:
            self.work.stop(server)

    def _fault(self, spec):
        """The floor of a fault: its parts, one after the other."""
        path = os.path.join(self.work.build, "perf", "faults")
        parts = {"minor": measure(self.work, path, spec)["minor_us"]["p50"]}
        for tool, message, times in LATENCIES:
            parts[tool] = times * self._latency(tool, message)
        return Result(ram=spec.ram, fault_p50_us=sum(parts.values()), detail=parts)

    def run(self, spec):
        """One measurement, of what the Spec asks for."""
        return self._fault(spec) if spec.options.get("measure") == "fault" else self._speed(spec)

    def _speed(self, spec):
        """As if the scenario's RAM were moved at the average speed of ib_write_bw."""
        commands = {port: self._argv(spec, port)
                    for port in range(TCP_PORT, TCP_PORT + spec.options.get("processes", 1))}
        servers = []
        try:
            for port, argv in commands.items():
                servers.append(self._start_server(argv, port))
            clients = [self._start_client(argv, port) for port, argv in commands.items()]
            outs = [self._finish(*client) for client in clients]
        finally:
            for server in servers:
                self.work.stop(server)
        rows = [parse(out) for out in outs]
        mib_s = sum(row[2] for row in rows)
        return Result(ram=spec.ram, total_ms=spec.ram / MIB / mib_s * 1000,
                      detail={"message": rows[0][0], "messages": sum(row[1] for row in rows)})
