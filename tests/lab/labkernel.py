# SPDX-License-Identifier: BSD-2-Clause
"""Debian's stock kernel, its modules and an initramfs, kept in a cache.

The kernel comes from the package that linux-image-amd64 depends on, unpacked
with dpkg, never installed.  The cache is $XDG_CACHE_HOME/tern-lab, or
/var/tmp/tern-lab if that is not set:

    lock                    held while anything below is made
    kernel                  the name of the package last asked for
    <package>/vmlinux
    <package>/lib/modules/  with modules.dep
    <package>/initrd-<key>  <key> is a digest of what is in it

All is made under another name and renamed when complete, so that a start that
is killed leaves nothing half done, and one that finds everything in place takes
no lock.  apt is asked again for the current kernel when its package lists are
newer than our answer.
"""

import fcntl
import hashlib
import lzma
import os
import re
import shutil
import struct
import subprocess
import tempfile

META_PACKAGE = "linux-image-amd64"
APT_LISTS = "/var/lib/apt/lists"
# What init loads; the rest can be loaded from the root file system.
BOOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console", "virtio_net",
                "dummy", "rdma_rxe", "ib_uverbs", "rdma_ucm")
MODULE_OPTIONS = {"dummy.ko": "numdummies=0"}
BOOT_DIRS = ("bin", "lib", "dev", "proc", "sys", "host", "rw", "new")


class KernelError(Exception):
    """One sentence that says what failed and what to do."""


class Kernel:
    """Paths of one kernel: image, initrd, and the folder with its modules."""

    def __init__(self, image, initrd, modules):
        self.image = image
        self.initrd = initrd
        self.modules = modules


def cache_dir():
    """The cache's folder, made if it is not there."""
    base = os.environ.get("XDG_CACHE_HOME") or "/var/tmp"
    path = os.path.join(os.path.abspath(base), "tern-lab")
    try:
        os.makedirs(path, mode=0o755, exist_ok=True)
    except OSError as err:
        raise KernelError(f"cannot make the kernel cache {path}: {err.strerror}; "
                          "set XDG_CACHE_HOME to a folder that can be written") from err
    # /var/tmp is everybody's: take no kernel that somebody else put there.
    if os.stat(path).st_uid != os.geteuid() or not os.access(path, os.W_OK):
        raise KernelError(f"the kernel cache {path} is another user's or cannot be written; "
                          "set XDG_CACHE_HOME to a folder of your own")
    return path


def run(argv, what, cwd=None):
    """Run argv and return its stdout; raises KernelError, starting with `what`."""
    try:
        done = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, text=True,
                              capture_output=True, check=False,
                              env={**os.environ, "LC_ALL": "C"})
    except FileNotFoundError as err:
        raise KernelError(f"{what}: there is no {argv[0]}; install it") from err
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise KernelError(f"{what}: {' '.join(argv)} failed: {lines[-1]}")
    return done.stdout


def ask_apt():
    """The name of the package with the current kernel."""
    out = run(["apt-cache", "depends", META_PACKAGE], "looking for the kernel package")
    names = re.findall(r"Depends: (linux-image-\S+-amd64)$", out, re.M)
    if not names:
        raise KernelError(f"apt knows no {META_PACKAGE}; run apt-get update")
    return names[0]


def ask_apt_fresh():
    """As ask_apt, with package lists fetched first if there are none."""
    try:
        return ask_apt()
    except KernelError:
        if os.geteuid():
            raise
        run(["apt-get", "-q", "update"], "fetching package lists")
        return ask_apt()


def noted_package(cache):
    """The package noted in the cache if it is there, or None."""
    try:
        with open(os.path.join(cache, "kernel"), encoding="ascii") as file:
            package = file.read().strip()
    except FileNotFoundError:
        return None
    return package if os.path.exists(os.path.join(cache, package, "vmlinux")) else None


def known_package(cache):
    """As noted_package, but None if apt has to be asked."""
    try:
        note_time = os.stat(os.path.join(cache, "kernel")).st_mtime
        if note_time < os.stat(APT_LISTS).st_mtime:
            return None
    except FileNotFoundError:
        pass
    return noted_package(cache)


def download(package, folder):
    """Fetch the package into folder; returns the .deb's path."""
    what = "fetching the kernel"
    command = ["apt-get", "-q", "download", package]
    try:
        run(command, what, folder)
    except KernelError:
        # A list out of date names files that are gone.
        if os.geteuid():
            raise
        run(["apt-get", "-q", "update"], what)
        run(command, what, folder)
    for name in os.listdir(folder):
        if name.endswith(".deb"):
            return os.path.join(folder, name)
    raise KernelError(f"{what}: apt-get download {package} left no file")


def plain_kernel(image):
    """The ELF kernel inside a bzImage, so that no VM spends seconds to unpack it.

    The header's fields are those of the kernel's Documentation/x86/boot.rst.  An
    image that is packed in another way than xz is returned as it is: that works
    too, and takes longer to start.
    """
    if image[0x202:0x206] != b"HdrS":
        return image
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[(setup_sectors + 1) * 512 + offset:][:length]
    try:
        # After the xz stream comes the unpacked size, which is not part of it.
        plain = lzma.LZMADecompressor().decompress(payload)
    except lzma.LZMAError:
        return image
    return plain if plain.startswith(b"\x7fELF") else image


def unpack(package, cache):
    """Make <cache>/<package>: image and modules with their dependencies."""
    work = tempfile.mkdtemp(prefix=".new-", dir=cache)
    try:
        deb = download(package, work)
        tree = os.path.join(work, "tree")
        run(["dpkg", "-x", deb, tree], "unpacking the kernel")
        release = package[len("linux-image-"):]
        out = os.path.join(work, "out")
        os.mkdir(out)
        with open(os.path.join(tree, "boot", f"vmlinuz-{release}"), "rb") as image, \
                open(os.path.join(out, "vmlinux"), "wb") as file:
            file.write(plain_kernel(image.read()))
        os.rename(os.path.join(tree, "lib"), os.path.join(out, "lib"))
        run(["/sbin/depmod", "-b", out, release], "indexing the kernel's modules")
        os.chmod(out, 0o755)
        os.rename(out, os.path.join(cache, package))
    except OSError as err:
        raise KernelError(f"cannot unpack {package} below {cache}: {err}") from err
    finally:
        shutil.rmtree(work, ignore_errors=True)


def boot_module_files(modules):
    """The files of BOOT_MODULES and of what they need, in the order to load them."""
    needs = {}
    by_name = {}
    with open(os.path.join(modules, "modules.dep"), encoding="ascii") as file:
        for line in file:
            path, _, rest = line.partition(":")
            needs[path] = rest.split()
            by_name[os.path.basename(path).split(".")[0].replace("-", "_")] = path
    order = []
    for name in BOOT_MODULES:
        if name not in by_name:
            continue    # part of the kernel
        # modules.dep lists the nearest need first.
        for path in reversed([by_name[name]] + needs[by_name[name]]):
            if path not in order:
                order.append(path)
    return order


def cpio_entry(name, mode, data=b""):
    """One member of a "newc" archive."""
    raw_name = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw_name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw_name
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def initrd_members(modules):
    """What goes into the initramfs: (name, mode, bytes)."""
    busybox = shutil.which("busybox")
    if not busybox:
        raise KernelError("there is no busybox; install busybox-static")
    here = os.path.dirname(os.path.abspath(__file__))
    members = [(name, 0o40755, b"") for name in BOOT_DIRS]
    loads = []
    for path in boot_module_files(modules):
        with open(os.path.join(modules, path), "rb") as file:
            members.append((f"lib/{os.path.basename(path)}", 0o100644, file.read()))
        file_name = os.path.basename(path)
        loads.append(f"{file_name} {MODULE_OPTIONS.get(file_name, '')}")
    with open(busybox, "rb") as file:
        members.append(("bin/busybox", 0o100755, file.read()))
    with open(os.path.join(here, "init"), "rb") as file:
        members.append(("init", 0o100755, file.read()))
    members.append(("lib/order", 0o100644, "".join(f"{name}\n" for name in loads).encode()))
    return members


def initrd(folder, modules):
    """The initramfs for the modules, made in folder unless it is there."""
    members = initrd_members(modules)
    digest = hashlib.sha256()
    for name, mode, data in members:
        digest.update(f"{name} {mode} {len(data)}\n".encode() + data)
    path = os.path.join(folder, f"initrd-{digest.hexdigest()[:16]}")
    if os.path.exists(path):
        return path
    archive = b"".join(cpio_entry(*member) for member in members)
    archive += cpio_entry("TRAILER!!!", 0)
    handle, new = tempfile.mkstemp(prefix=".initrd-", dir=folder)
    with os.fdopen(handle, "wb") as file:
        file.write(archive)
    os.chmod(new, 0o644)
    os.rename(new, path)
    return path


def prepare(log):
    """Return a Kernel, fetched and unpacked first if need be.

    log(text) is called before anything that takes long.  Raises KernelError.
    """
    cache = cache_dir()
    package = known_package(cache)
    if not package:
        with open(os.path.join(cache, "lock"), "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            package = known_package(cache) or fetch(cache, log)
    folder = os.path.join(cache, package)
    modules = os.path.join(folder, "lib", "modules", package[len("linux-image-"):])
    return Kernel(os.path.join(folder, "vmlinux"), initrd(folder, modules),
                  os.path.join(folder, "lib", "modules"))


def fetch(cache, log):
    """Ask apt for the kernel, unpack it if it is new, note it.  Under the lock."""
    for name in os.listdir(cache):
        if name.startswith(".new-"):    # of a start that was killed
            shutil.rmtree(os.path.join(cache, name), ignore_errors=True)
    package = ask_apt_fresh()
    if not os.path.exists(os.path.join(cache, package, "vmlinux")):
        log(f"fetching {package} into {cache}")
        try:
            unpack(package, cache)
        except KernelError as err:
            older = noted_package(cache)
            if not older:
                raise
            log(f"{err}; going on with {older}")
            return older
    new = os.path.join(cache, ".kernel")
    with open(new, "w", encoding="ascii") as file:
        file.write(package + "\n")
    os.rename(new, os.path.join(cache, "kernel"))
    return package
