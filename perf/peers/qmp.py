# SPDX-License-Identifier: BSD-2-Clause
"""A small QMP client: one UNIX socket, commands and events, time limits everywhere."""

import json
import socket
import time

from peers.base import PeerError


class Qmp:
    """One monitor.  Not for several threads."""

    def __init__(self, path, process, timeout=30):
        """Connect to @path as soon as @process listens there, and leave negotiation mode."""
        self.events = []
        self.buffer = b""
        self.socket = self._connect(path, process, timeout)
        self._message(time.monotonic() + timeout)
        self.command("qmp_capabilities")

    @staticmethod
    def _connect(path, process, timeout):
        end = time.monotonic() + timeout
        while True:
            s = socket.socket(socket.AF_UNIX)
            try:
                s.connect(path)
                return s
            except OSError as e:
                s.close()
                if process.poll() is not None:
                    raise PeerError(f"QEMU ended at start, status {process.returncode}") from e
                if time.monotonic() > end:
                    raise PeerError(f"connect to QMP at {path}: {e}") from e
            time.sleep(0.01)

    def _message(self, end):
        """The next message as a dict; PeerError when @end passes or QEMU is gone."""
        while b"\n" not in self.buffer:
            left = end - time.monotonic()
            if left <= 0:
                raise PeerError("QMP: no answer in time")
            self.socket.settimeout(left)
            try:
                got = self.socket.recv(1 << 16)
            except (TimeoutError, socket.timeout):
                raise PeerError("QMP: no answer in time") from None
            except OSError as e:
                raise PeerError(f"QMP: {e}") from e
            if not got:
                raise PeerError("QMP: QEMU closed the connection")
            self.buffer += got
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def command(self, name, timeout=60, **arguments):
        """Run one command; its return value, or PeerError with QEMU's own words."""
        message = {"execute": name}
        if arguments:
            message["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
        self.socket.sendall(json.dumps(message).encode() + b"\n")
        end = time.monotonic() + timeout
        while True:
            got = self._message(end)
            if "event" in got:
                self.events.append(got)
            elif "error" in got:
                raise PeerError(f"QEMU refused {name}: {got['error'].get('desc')}")
            elif "return" in got:
                return got["return"]

    def event(self, accept, timeout):
        """Wait for the first event for which @accept(event) is true."""
        end = time.monotonic() + timeout
        while True:
            while self.events:
                got = self.events.pop(0)
                if accept(got):
                    return got
            got = self._message(end)
            if "event" in got:
                self.events.append(got)

    def close(self):
        """Close the socket."""
        self.socket.close()
