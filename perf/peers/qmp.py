# SPDX-License-Identifier: BSD-2-Clause
"""A small QMP client: one UNIX socket, commands and events, time limits everywhere."""

import json
import socket
import time

from peers.base import PeerError


class Qmp:
    """One monitor.  Not for several threads."""

    def __init__(self, path, process, timeout=30, who="QEMU"):
        """Connect to @path as soon as @process (@who) listens, and leave negotiation mode."""
        self.who = who
        self.events = []
        self.buffer = b""
        self.socket = self._connect(path, process, timeout)
        self._message(time.monotonic() + timeout)
        self.command("qmp_capabilities")

    def _connect(self, path, process, timeout):
        end = time.monotonic() + timeout
        while True:
            s = socket.socket(socket.AF_UNIX)
            try:
                s.connect(path)
                return s
            except OSError as e:
                s.close()
                if process.poll() is not None:
                    raise PeerError(f"{self.who} ended at start, status {process.returncode}") from e
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
                raise PeerError(f"QMP: {self.who} closed the connection")
            self.buffer += got
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def command(self, name, timeout=60, **arguments):
        """Run one command; its return value, or PeerError with the other side's own words."""
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
                raise PeerError(f"{self.who} refused {name}: {got['error'].get('desc')}")
            elif "return" in got:
                return got["return"]

    def event(self, accept, timeout, keep=False):
        """Wait for the first event for which @accept(event) is true.

        It is taken from the list, with those before it, unless they are to be kept.
        """
        end, seen = time.monotonic() + timeout, 0
        while True:
            while seen < len(self.events):
                got = self.events[seen] if keep else self.events.pop(0)
                seen += keep
                if accept(got):
                    return got
            got = self._message(end)
            if "event" in got:
                self.events.append(got)

    def close(self):
        """Close the socket."""
        self.socket.close()
