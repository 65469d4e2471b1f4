# SPDX-License-Identifier: BSD-2-Clause
"""One lab VM: its QEMU process and the channels to it.

All channels are socket pairs that QEMU inherits, so that nothing has a name
that could clash or be left behind:

    lab.ctl   lines; VM: "up", "exit N", "fail TEXT"; runner: "go"
    lab.out   the command's standard output, then the marker   (VM a only)
    lab.err   the command's standard error, then the marker    (VM a only)
    lab.req   lines; a request from lab-wire or lab-kill, and its answer
    qmp       QEMU's own, for the wire

The marker is 32 random bytes of this run: the VM writes it to the same port
after the last byte of the stream, and a port keeps its order, so reading up to
the marker is reading all.  The kernel's messages go to a file of their own.
"""

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

import hostclock

QEMU = "qemu-system-x86_64"
PR_SET_PDEATHSIG = 1
# maxcpus: one CPU until init adds the others; several emulated ones take each
# other's time while the kernel starts.  The last two lines: what a kernel does for its
# safety only costs time here.
COMMAND_LINE = ("console=ttyS0 quiet panic=-1 oops=panic mitigations=off "
                "random.trust_cpu=on no_timer_check tsc=reliable maxcpus=1 "
                "init_on_alloc=0 hardened_usercopy=off randomize_kstack_offset=off audit=0 "
                "apparmor=0 nowatchdog")


class QmpError(Exception):
    """QEMU refused a command, or is gone."""


def comma(text):
    """Text as a value in a QEMU option, where commas separate."""
    return text.replace(",", ",,")


def numa_arguments(nodes, cpus, mem_mib):
    """QEMU arguments that divide cpus and mem_mib over `nodes` NUMA nodes.

    With fewer CPUs than nodes the last nodes have memory only.
    """
    argv = []
    first_cpu = 0
    for node in range(nodes):
        nr_cpus = cpus // nodes + (node < cpus % nodes)
        mib = mem_mib // nodes + (mem_mib % nodes if node == 0 else 0)
        has = f",cpus={first_cpu}-{first_cpu + nr_cpus - 1}" if nr_cpus else ""
        argv += ["-object", f"memory-backend-ram,id=m{node},size={mib}M",
                 "-numa", f"node,nodeid={node},memdev=m{node}{has}"]
        first_cpu += nr_cpus
    return argv


class Vm:
    """A VM that has been started.

    name      "a" or "b"
    folder    the VM's folder on the host: "run" for the guest, "console"
    ctl, req, out, err    our ends of the channels; out and err may be None
    """

    def __init__(self, name, folder):
        self.name = name
        self.folder = folder
        self.process = None
        self.begin = None           # time.monotonic() of its start
        self.killed = False         # set before the process is told to die
        self.out = self.err = None
        self.inherited = []         # QEMU's ends, closed here once it runs
        self.qmp_lock = threading.Lock()    # guards qmp and qmp_file
        self.qmp_file = None
        self.qmp = self.ctl = self.req = None

    def channel(self, argv, name):
        """Add a channel to the arguments; returns our end of it."""
        ours, theirs = socket.socketpair()
        self.inherited.append(theirs)
        argv += ["-chardev", f"socket,id={name},fd={theirs.fileno()}"]
        return ours

    def port(self, argv, name):
        """Add a virtio-serial port lab.<name>; returns our end of it."""
        ours = self.channel(argv, name)
        argv += ["-device", f"virtserialport,chardev={name},name=lab.{name}"]
        return ours

    def machine_arguments(self, options, kernel):
        """QEMU arguments for processors, memory, kernel and console."""
        command_line = COMMAND_LINE
        khz = hostclock.tsc_khz()
        if khz:
            command_line += f" tsc_early_khz={khz}"
        if options.hugepages:
            command_line += f" hugepages={options.hugepages}"
        argv = [QEMU, "-name", f"tern-lab-{self.name}", "-nodefaults", "-no-user-config",
                "-display", "none", "-no-reboot", "-accel", "tcg,thread=multi",
                "-cpu", "max", "-m", f"{options.mem}M",
                "-smp", f"{options.cpus},sockets={options.cpus}",
                "-kernel", kernel.image, "-initrd", kernel.initrd,
                "-append", f"{command_line} lab.run={self.folder}/run",
                "-chardev", f"file,id=console,path={comma(self.folder)}/console",
                "-serial", "chardev:console"]
        if options.numa > 1:
            argv += numa_arguments(options.numa, options.cpus, options.mem)
        return argv

    def start(self, options, kernel, share, wire):
        """Start QEMU.  share: path; wire: our socket of the wire, or None."""
        argv = self.machine_arguments(options, kernel)
        self.qmp = self.channel(argv, "qmp")
        argv += ["-mon", "chardev=qmp,mode=control", "-device", "virtio-serial-pci"]
        self.ctl = self.port(argv, "ctl")
        self.req = self.port(argv, "req")
        if self.name == "a":
            self.out = self.port(argv, "out")
            self.err = self.port(argv, "err")
        for tag, path, mode in (("root", "/", ",readonly=on"), ("share", share, "")):
            argv += ["-fsdev", f"local,id={tag},path={comma(path)},security_model=none,"
                               f"multidevs=remap{mode}",
                     "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        self.begin = time.monotonic()
        fds = [end.fileno() for end in self.inherited]
        if wire:
            mac = f"52:54:00:77:00:0{1 if self.name == 'a' else 2}"
            argv += ["-netdev", f"socket,id=wire,fd={wire.fileno()}",
                     "-device", f"virtio-net-pci,netdev=wire,mac={mac},host_mtu=9000,romfile="]
            fds.append(wire.fileno())
        self.spawn(argv, fds)

    def spawn(self, argv, fds):
        """Run QEMU so that it ends when we do, however we end, and no signal
        of the terminal reaches it."""
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        parent = os.getpid()

        def in_child():
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        with open(os.path.join(self.folder, "qemu"), "wb") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, pass_fds=fds, preexec_fn=in_child,
                                            start_new_session=True)
        for end in self.inherited:
            end.close()
        self.inherited = []

    def kill(self):
        """End the VM at once, as if its power were cut."""
        self.killed = True
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def console_tail(self, nr_lines=25):
        """The last lines of what QEMU and the VM's kernel said."""
        text = b""
        for name in ("qemu", "console"):
            try:
                with open(os.path.join(self.folder, name), "rb") as file:
                    text += file.read()
            except OSError:
                pass
        clean = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[^\t\n\x20-\x7e]", "",
                       text.decode("ascii", "replace"))
        lines = [line for line in clean.splitlines() if line.strip()]
        return lines[-nr_lines:]

    def execute(self, command, **arguments):
        """Run one QMP command and return its result; raises QmpError."""
        with self.qmp_lock:
            try:
                if not self.qmp_file:
                    self.qmp_file = self.qmp.makefile("rw", encoding="utf-8")
                    json.loads(self.qmp_file.readline())    # the greeting
                    self.exchange({"execute": "qmp_capabilities"})
                return self.exchange({"execute": command, "arguments": arguments})
            except (OSError, ValueError) as err:
                raise QmpError(f"VM {self.name} does not answer on QMP: {err}") from err

    def exchange(self, request):
        """Send one QMP request and return what comes back, passing over events."""
        self.qmp_file.write(json.dumps(request) + "\n")
        self.qmp_file.flush()
        while True:
            reply = json.loads(self.qmp_file.readline())
            if "error" in reply:
                raise QmpError(f"VM {self.name}: {reply['error'].get('desc')}")
            if "return" in reply:
                return reply["return"]
