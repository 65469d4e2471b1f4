# SPDX-License-Identifier: BSD-2-Clause
"""QEMU's own migration over TCP loopback or RDMA, driven through QMP.

An idle scenario needs no guest code: the source is paused from the start (-S)
and its RAM is a file filled beforehand, share=on; the destination's RAM is a
fresh file.  A live scenario boots dirty_guest.S, which dirties memory at a
pace; how fast it really went is read from its status page and reported.

Options of a Spec: multifd (channels; 0: single stream), zero_copy, accel,
rdma ("pin-all" or "on-demand": over the RDMA device instead of TCP), postcopy ("ram" or
"preempt": one round of precopy, then postcopy, the latter with a channel for what the guest
waits for).  With postcopy the downtime limit is 1 ms, so that precopy does not end it first.
total_ms is QEMU's own total-time; wall_ms in the detail is what this harness
saw, from the migrate command to the completed event.
"""

import mmap
import os
import resource
import shutil
import struct
import time

from peers.base import MIB, PeerError, Result, process_cpu_s, process_rss
from peers.content import content_file
from peers.qmp import Qmp
from peers.rdma import find_port

BINARY = "qemu-system-x86_64"
GUEST_STATUS = 2 * MIB
GUEST_MAGIC = 0x6E726574
GUEST_FILL_BASE = 16 * MIB
BANDWIDTH_MAX = 1 << 40
COMPLETE_TIMEOUT_S = 120
ROUND_TIMEOUT_S = 60
POSTCOPY_DOWNTIME_MS = 1
RDMA_PORT = 18616  # QEMU cannot tell which port it chose over RDMA, so none is left to it


class Machine:
    """One QEMU process with its monitor and its RAM file."""

    def __init__(self, work, role, spec, ram_path, kernel=None):
        self.work = work
        self.ram_path = ram_path
        self.qmp = None
        qmp_path = os.path.join(work.dir, f"{role}.qmp")
        log_path = os.path.join(work.dir, f"{role}.log")
        if os.path.exists(qmp_path):
            os.unlink(qmp_path)
        with open(log_path, "wb") as log:
            self.process = work.start(self._argv(role, spec, qmp_path, kernel),
                                      stdout=log, stderr=log)
        try:
            self.qmp = Qmp(qmp_path, self.process)
        except PeerError as e:
            self.close()
            with open(log_path, encoding="utf-8", errors="replace") as log:
                said = " ".join(log.read().split())
            raise PeerError(f"start QEMU: {e}; it said: {said or 'nothing'}") from e

    def _argv(self, role, spec, qmp_path, kernel):
        """The command line; the machine is empty but for RAM unless there is a guest."""
        backend = (f"memory-backend-file,id=ram,size={spec.ram},mem-path={self.ram_path},"
                   f"share=on,prealloc={'on' if spec.prealloc else 'off'}")
        machine = "pc" if kernel else "none"
        argv = [BINARY, "-name", f"tern-compare-{role}", "-nodefaults", "-no-user-config",
                "-display", "none", "-machine", f"{machine},memory-backend=ram",
                "-accel", spec.options.get("accel", "tcg"), "-object", backend,
                "-m", f"{spec.ram // MIB}M", "-qmp", f"unix:{qmp_path},server=on,wait=off"]
        if kernel:
            argv += ["-kernel", kernel]
        else:
            argv.append("-S")
        if role == "destination":
            argv += ["-incoming", "defer"]
        return argv

    def close(self):
        """End the process."""
        if self.qmp:
            self.qmp.close()
        self.work.stop(self.process)


def setup_migration(qmp, spec):
    """Capabilities and parameters; both sides need the same."""
    channels = spec.options.get("multifd", 0)
    caps = {"events": True, "multifd": bool(channels)}
    if spec.options.get("zero_copy"):
        caps["zero-copy-send"] = True
    if spec.options.get("postcopy"):
        caps["postcopy-ram"] = True
        caps["postcopy-preempt"] = spec.options["postcopy"] == "preempt"
    if spec.options.get("rdma"):
        caps["rdma-pin-all"] = spec.options["rdma"] == "pin-all"
    qmp.command("migrate-set-capabilities", capabilities=[
        {"capability": k, "state": v} for k, v in caps.items()])
    params = {"max_bandwidth": BANDWIDTH_MAX, "downtime_limit": spec.downtime_ms}
    if spec.options.get("postcopy"):
        params["downtime_limit"] = POSTCOPY_DOWNTIME_MS
    if channels:
        params["multifd_channels"] = channels
    qmp.command("migrate-set-parameters", **params)


def listen_tcp(qmp):
    """Have a destination listen on any port of this machine; the URI for the source."""
    qmp.command("migrate-incoming", uri="tcp:127.0.0.1:0")
    address = qmp.command("query-migrate")["socket-address"][0]
    return f"tcp:127.0.0.1:{address['port']}"


def final_figures(qmp):
    """query-migrate once it is final: QEMU works out total-time after the completed event."""
    end = time.monotonic() + 10
    while True:
        got = qmp.command("query-migrate")
        if got.get("total-time"):
            return got
        if time.monotonic() > end:
            raise PeerError("QEMU gave no total-time within 10 s of the migration's end")
        time.sleep(0.01)


class GuestStatus:
    """The status page of dirty_guest.S, seen through the RAM's backing file."""

    def __init__(self, ram_path):
        with open(ram_path, "r+b") as f:
            self.map = mmap.mmap(f.fileno(), 4096, mmap.MAP_SHARED,
                                 mmap.PROT_READ | mmap.PROT_WRITE, offset=GUEST_STATUS)

    def read(self):
        """(pages rewritten, phase), phase 0 before the guest runs."""
        pages, phase, magic = struct.unpack("<QII", self.map[:16])
        return pages, phase if magic == GUEST_MAGIC else 0

    def stall_forget(self):
        """Begin anew with the longest stall.  Before memory is moved: QEMU does not see it."""
        self.map[16:24] = bytes(8)

    def stall_ms(self):
        """The longest time between two looks of the guest at its clock."""
        ticks, of_20_ms = struct.unpack("<QI", self.map[16:28])
        return ticks * 20 / of_20_ms if of_20_ms else None

    def wait_phase(self, phase, timeout):
        """Wait until the guest has reached @phase."""
        end = time.monotonic() + timeout
        while self.read()[1] != phase:
            if time.monotonic() > end:
                raise PeerError(f"the guest did not reach phase {phase} in {timeout} s")
            time.sleep(0.02)

    def rate(self, seconds):
        """Bytes of pages rewritten per second, over @seconds."""
        pages, begin = self.read()[0], time.monotonic()
        time.sleep(seconds)
        return (self.read()[0] - pages) * 4096 / (time.monotonic() - begin)

    def wait_progress(self, pages, timeout):
        """Wait until more than @pages were rewritten."""
        end = time.monotonic() + timeout
        while self.read()[0] <= pages:
            if time.monotonic() > end:
                raise PeerError("the guest does not run on at the destination")
            time.sleep(0.005)


class Qemu:
    """QEMU at the settings of the scenario's entry."""

    name = "qemu"
    part = "qemu"

    def __init__(self, work):
        self.work = work

    def available(self):
        """None, or why not."""
        for tool in (BINARY, "as", "ld"):
            if not shutil.which(tool):
                return f"{tool} is not installed (packages qemu-system-x86, binutils)"
        return None

    def version(self):
        """First line of --version."""
        out, _ = self.work.capture([BINARY, "--version"], timeout=20)
        return out.splitlines()[0]

    @staticmethod
    def _allow_locking():
        """Zero-copy send pins memory: lift the limit if we may; children inherit it.

        A refusal is not the end: with CAP_IPC_LOCK the kernel does not count these pages.
        """
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
        except (ValueError, OSError):
            pass

    def _kernel(self, spec):
        """Assemble the guest for this load; the path of its image."""
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "dirty_guest.S")
        image = os.path.join(self.work.dir, "dirty_guest.elf")
        symbols = {"FILL_MIB": (spec.touched or spec.ram // 2) // MIB,
                   "WORKING_MIB": spec.working_set // MIB, "RATE": spec.dirty_rate}
        if GUEST_FILL_BASE + (symbols["FILL_MIB"] << 20) > spec.ram:
            raise PeerError("the guest's fill does not fit its RAM")
        argv = ["as", "--32", "-o", image + ".o", source]
        for name, value in symbols.items():
            argv += ["--defsym", f"{name}={value}"]
        self.work.capture(argv, timeout=20)
        self.work.capture(["ld", "-m", "elf_i386", "-nostdlib", "-Ttext=0x100000", "-o", image,
                           image + ".o"], timeout=20)
        return image

    def run(self, spec):
        """One migration between two fresh processes."""
        if spec.options.get("zero_copy") or spec.options.get("rdma"):
            self._allow_locking()
        kernel = self._kernel(spec) if spec.dirty_rate else None
        source_ram = os.path.join(self.work.shm, "source.ram")
        destination_ram = os.path.join(self.work.shm, "destination.ram")
        machines = []
        try:
            path = source_ram if kernel else content_file(self.work, spec.ram, spec.fill,
                                                          spec.touched)
            for role, ram in (("destination", destination_ram), ("source", path)):
                machines.append(Machine(self.work, role, spec, ram, kernel))
                setup_migration(machines[-1].qmp, spec)
            return self._migrate(spec, machines[1], machines[0], bool(kernel))
        finally:
            for machine in machines:
                machine.close()
            for ram in (source_ram, destination_ram):
                if os.path.exists(ram):
                    os.unlink(ram)

    def _migrate(self, spec, source, destination, live):
        """Move it, and read the figures; in a live run prove that the guest goes on."""
        rate = None
        if live:
            status = GuestStatus(source.ram_path)
            status.wait_phase(2, 60)
            rate = status.rate(1.0)
        pids = [source.process.pid, destination.process.pid]
        uri = self._listen(spec, destination)
        rss0 = [process_rss(pid) for pid in pids]
        cpu0 = [process_cpu_s(pid) for pid in pids]
        if live:
            status.stall_forget()
        begin = time.monotonic()
        source.qmp.command("migrate", uri=uri)
        if spec.options.get("postcopy"):
            self._start_postcopy(source)
        self._wait_ended(source)
        self._wait_ended(destination)
        wall_ms = (time.monotonic() - begin) * 1000
        cpu_s = sum(process_cpu_s(pid) - c for pid, c in zip(pids, cpu0))
        growth = [process_rss(pid) - r for pid, r in zip(pids, rss0)]
        got = final_figures(source.qmp)
        stall = None
        if live:
            there = GuestStatus(destination.ram_path)
            there.wait_progress(status.read()[0], 10)
            stall = there.stall_ms()  # with what came from the source
        # QEMU 7.2 may give its uptime for the downtime of postcopy; that is no figure.
        downtime = got["downtime"] if got["downtime"] <= got["total-time"] else None
        return Result(ram=spec.ram, total_ms=got["total-time"], cpu_s=cpu_s,
                      downtime_ms=downtime, rounds=got["ram"]["dirty-sync-count"],
                      dirty_rate=rate, source_growth=growth[0], destination_growth=growth[1],
                      stall_ms=stall,
                      detail={"wall_ms": round(wall_ms, 1), "setup_ms": got["setup-time"],
                              "transferred": got["ram"]["transferred"],
                              "requests": got["ram"].get("postcopy-requests"),
                              "accel": spec.options.get("accel", "tcg")})

    @staticmethod
    def _start_postcopy(source):
        """When the first round of precopy has ended: go over, and see that it did."""
        end = time.monotonic() + ROUND_TIMEOUT_S
        while source.qmp.command("query-migrate").get("ram", {}).get("dirty-sync-count", 0) < 2:
            if time.monotonic() > end:
                raise PeerError(f"QEMU's first round did not end in {ROUND_TIMEOUT_S} s")
            time.sleep(0.001)
        source.qmp.command("migrate-start-postcopy")
        states = ("postcopy-active", "completed", "failed", "cancelled")
        event = source.qmp.event(lambda e: e["event"] == "MIGRATION"
                                 and e["data"]["status"] in states, COMPLETE_TIMEOUT_S)
        if event["data"]["status"] != "postcopy-active":
            raise PeerError(f"QEMU's migration {event['data']['status']} before postcopy began")

    @staticmethod
    def _listen(spec, destination):
        """Have the destination listen; the URI for the source."""
        if spec.options.get("rdma"):
            port = find_port()
            if not port:
                raise PeerError("no RDMA port is active and has an IPv4 address")
            uri = f"rdma:{port.address}:{RDMA_PORT}"
            destination.qmp.command("migrate-incoming", uri=uri)
            return uri
        return listen_tcp(destination.qmp)

    @staticmethod
    def _wait_ended(machine):
        """Wait for the migration's end; anything but completed is an error."""
        ends = ("completed", "failed", "cancelled")
        event = machine.qmp.event(lambda e: e["event"] == "MIGRATION"
                                  and e["data"]["status"] in ends, COMPLETE_TIMEOUT_S)
        if event["data"]["status"] != "completed":
            got = machine.qmp.command("query-migrate")
            raise PeerError(f"QEMU's migration {event['data']['status']}: "
                            f"{got.get('error-desc', 'no reason given')}")
