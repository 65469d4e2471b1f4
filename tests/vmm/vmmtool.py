# SPDX-License-Identifier: BSD-2-Clause
"""Running tern-vm from a test: a process with its control socket, and what its guest says."""
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time

TIMEOUT = 60 * int(os.environ.get("TERN_TEST_SLOWNESS", "1"))
# Where destinations listen; "rdma:HOST:0" on a machine with an RDMA device.
URI = os.environ.get("TERN_TEST_VMM_URI", "tcp:127.0.0.1:0")
# Of every migration, unless a test says otherwise: for machines where no guest converges.
PARAMETERS = json.loads(os.environ.get("TERN_TEST_VMM_PARAMETERS", "{}"))
# What a build with a sanitizer says of what it has found, at the end of a process too.
SANITIZER = re.compile(r"ERROR: \w+Sanitizer|WARNING: ThreadSanitizer|: runtime error: ")


def leave_out(part):
    """Was a part of the machine left out by name (tests/support/leave_out.h)?"""
    return part in re.split("[, ]+", os.environ.get("TERN_TEST_LEAVE_OUT", ""))


class CommandError(Exception):
    """A command's error answer."""

    def __init__(self, error):
        super().__init__(error["desc"])
        self.kind = error["class"]


class Proxy:
    """Passes TCP connections on to a port of this machine, until the link is cut."""

    def __init__(self, to):
        self.to = to
        self.sockets = []
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        """Take connections in."""
        while True:
            try:
                one, _ = self.server.accept()
                other = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                return
            self.sockets += [one, other]
            for ends in ((one, other), (other, one)):
                threading.Thread(target=self.copy, args=ends, daemon=True).start()

    @staticmethod
    def copy(source, sink):
        """One direction of one connection."""
        try:
            while got := source.recv(65536):
                sink.sendall(got)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        """End all connections; no new ones."""
        for s in [self.server, *self.sockets]:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()


class Vm:
    """A tern-vm; its serial port goes to the file `serial`, shared by all VMs of a test."""

    def __init__(self, exe, folder, serial, *args):
        self.control = tempfile.mktemp(suffix=".sock", dir=folder)
        self.errors = tempfile.NamedTemporaryFile("w+", suffix=".err", dir=folder,
                                                  encoding="utf-8")
        self.out = open(serial, "ab")  # appending: several VMs, one after the other
        self.process = subprocess.Popen(
            [exe, "run", "--control", self.control, *args],
            stdin=subprocess.DEVNULL, stdout=self.out, stderr=self.errors)
        self.events = []
        self.buffer = b""
        self.socket = None
        try:
            self.connect()
        except BaseException:
            self.kill()
            raise

    def stderr(self):
        """What it has complained about."""
        with open(self.errors.name, encoding="utf-8", errors="replace") as f:
            return f.read()

    def wait_complaint(self, words):
        """Wait until it has complained in those words."""
        end = time.monotonic() + TIMEOUT
        while words not in self.stderr():
            assert time.monotonic() < end, f"no \"{words}\" in: {self.stderr()}"
            time.sleep(0.01)

    def connect(self):
        """Connect to the control socket, which appears when the machine has been made."""
        end = time.monotonic() + TIMEOUT
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(self.control)
                break
            except OSError:
                self.socket.close()
                if self.process.poll() is not None or time.monotonic() > end:
                    raise AssertionError("tern-vm does not listen: " + self.stderr()) from None
                time.sleep(0.01)
        self.socket.settimeout(TIMEOUT)
        assert "QMP" in self.line()

    def line(self):
        """The next object from the socket."""
        while b"\n" not in self.buffer:
            got = self.socket.recv(65536)
            if not got:
                raise AssertionError("tern-vm hung up: " + self.stderr())
            self.buffer += got
        text, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(text)

    def command(self, name, **arguments):
        """Run a command; its return value.  Underscores in argument names become hyphens."""
        request = {"execute": name, "id": name,
                   "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            got = self.line()
            if "event" in got:
                self.events.append(got)
                continue
            assert got["id"] == name, got
            if "error" in got:
                raise CommandError(got["error"])
            return got["return"]

    def wait_event(self, wanted):
        """Wait for an event that `wanted` accepts, older ones included; it is taken."""
        seen = 0
        while True:
            for i in range(seen, len(self.events)):
                if wanted(self.events[i]):
                    return self.events.pop(i)
            seen = len(self.events)
            got = self.line()
            assert "event" in got, got
            self.events.append(got)

    def wait_migration(self, *states):
        """Wait for a MIGRATION event with one of these states; the state."""
        return self.wait_event(lambda e: e["event"] == "MIGRATION" and
                               e["data"]["status"] in states)["data"]["status"]

    def migrate_to(self, other, **parameters):
        """Move the guest to `other`, which waits with an empty machine; both reports."""
        ends = ("completed", "failed", "cancelled")
        self.events.clear()
        other.events.clear()
        parameters = {**PARAMETERS, **parameters}
        if parameters:
            self.command("migrate-set-parameters", **parameters)
        other.command("migrate-incoming", uri=URI)
        self.command("migrate", uri=other.command("query-migrate")["uri"])
        for vm in (self, other):
            state = vm.wait_migration(*ends)
            if state != "completed":
                raise AssertionError(f"{state}: {vm.command('query-migrate')['error-desc']}\n" +
                                     self.stderr() + other.stderr())
        return self.command("query-migrate"), other.command("query-migrate")

    def status(self):
        """As of query-status."""
        return self.command("query-status")["status"]

    def quit(self):
        """End it; its exit code."""
        try:
            self.command("quit")
        except (OSError, AssertionError):
            pass
        return self.wait()

    def wait(self):
        """Its exit code, when it has ended."""
        try:
            return self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self):
        """End it the hard way, if it has not ended; what a sanitizer has found is a failure."""
        if self.errors.closed:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        said = self.stderr()
        self.socket.close()
        self.out.close()
        self.errors.close()
        assert not SANITIZER.search(said), said
