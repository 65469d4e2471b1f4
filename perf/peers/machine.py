# SPDX-License-Identifier: BSD-2-Clause
"""Facts about this machine, for the head of every report."""

import os
import platform


def _read(path):
    """Text of a small file, or an empty string."""
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read()
    except OSError:
        return ""


def _field(path, name):
    """The value behind "@name :" in a /proc file."""
    for line in _read(path).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _chosen(path):
    """The bracketed word of a sysfs choice."""
    text = _read(path)
    return text[text.find("[") + 1:text.find("]")] if "[" in text else "unknown"


def facts(peers):
    """{name: text} of the machine and of the versions of the @peers in use."""
    thp = "/sys/kernel/mm/transparent_hugepage/"
    out = {
        "CPU": f"{_field('/proc/cpuinfo', 'model name')}, {len(os.sched_getaffinity(0))} usable",
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) >> 20} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "THP": f"{_chosen(thp + 'enabled')}, shmem {_chosen(thp + 'shmem_enabled')}",
        "load at the start": f"{os.getloadavg()[0]:.2f}",
    }
    for peer in peers:
        version = peer.version()
        if version:
            out[peer.name] = version
    return out
