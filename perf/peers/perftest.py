# SPDX-License-Identifier: BSD-2-Clause
"""The ceiling of the device: ib_write_bw of perftest, against itself on this machine.

It writes the same buffer again and again, with nothing to look up, to track or to
agree on: no migration can be quicker.  As many bytes as the scenario's RAM are
written; the figure is perftest's own average, from the first post to the last
completion, with connecting left out.

Options of a Spec: message (bytes), post_list (work requests per post), queue_pairs.
"""

import os
import re
import shutil
import time

from peers.base import MIB, PeerError, Result
from peers.rdma import find_port

BINARY = "ib_write_bw"
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


class Perftest:
    """ib_write_bw with the message size and posting of the scenario's entry."""

    name = "perftest"
    part = "rdma"

    def __init__(self, work):
        self.work = work
        self.port = find_port()

    def available(self):
        """None, or why not."""
        if not shutil.which(BINARY):
            return f"{BINARY} is not installed (package perftest)"
        if not self.port:
            return "no RDMA port is active and has an IPv4 address"
        return None

    def version(self):
        """Its version and the device it uses."""
        out, _ = self.work.capture([BINARY, "--version"], timeout=10, allowed=(0, 1))
        return f"{out.strip()}, {self.port.text()}"

    def _argv(self, spec):
        """The command line of both ends; the client's address comes behind it."""
        message, queue_pairs = spec.options["message"], spec.options.get("queue_pairs", 1)
        count = max(5, spec.ram // message // queue_pairs)
        argv = [BINARY, "-d", self.port.device, "-i", str(self.port.number), "-p", str(TCP_PORT),
                "-F", "-s", str(message), "-n", str(count), "-t", str(min(128, count))]
        if queue_pairs > 1:
            argv += ["-q", str(queue_pairs)]
        if spec.options.get("post_list"):
            argv += ["--post_list", str(spec.options["post_list"])]
        return argv

    def _start_server(self, argv):
        """Start the passive end, and wait until it listens."""
        if listening(TCP_PORT):
            raise PeerError(f"{BINARY}: TCP port {TCP_PORT} is in use on this machine")
        log_path = os.path.join(self.work.dir, "perftest.log")
        with open(log_path, "wb") as log:
            server = self.work.start(argv, stdout=log, stderr=log)
        end = time.monotonic() + START_TIMEOUT_S
        while not listening(TCP_PORT):
            if server.poll() is not None or time.monotonic() > end:
                self.work.stop(server)
                with open(log_path, encoding="utf-8", errors="replace") as log:
                    raise PeerError(f"{' '.join(argv)}: did not listen: {log.read()[-300:]}")
            time.sleep(0.02)
        return server

    def run(self, spec):
        """One measurement; as if the scenario's RAM were moved at the average speed."""
        argv = self._argv(spec)
        server = self._start_server(argv)
        try:
            out, _ = self.work.capture(argv + [self.port.address])
        finally:
            self.work.stop(server)
        message, count, mib_s = parse(out)
        return Result(ram=spec.ram, total_ms=spec.ram / MIB / mib_s * 1000,
                      detail={"message": message, "messages": count})
