# SPDX-License-Identifier: BSD-2-Clause
"""The RDMA device of this machine that all peers of a comparison use.

Facts come from /sys/class/infiniband and from `ip`; no verbs library is needed.
"""

import dataclasses
import glob
import json
import os
import subprocess


@dataclasses.dataclass
class Port:
    """A port that is up, and an address by which it is reached."""

    device: str
    number: int
    address: str

    def text(self):
        """For reports."""
        return f"{self.device} port {self.number} at {self.address}"


def _read(path):
    """Text of a small file, or an empty string."""
    try:
        with open(path, encoding="ascii", errors="replace") as f:
            return f.read().strip()
    except OSError:
        return ""


def _addresses(interface):
    """Global IPv4 addresses of a network interface."""
    try:
        done = subprocess.run(["ip", "-json", "-4", "address", "show", "dev", interface,
                               "scope", "global"], capture_output=True, text=True, check=False)
        links = json.loads(done.stdout or "[]")
    except (OSError, ValueError):
        return []
    return [a["local"] for link in links for a in link.get("addr_info", []) if "local" in a]


def find_port(root="/sys/class/infiniband", addresses=_addresses):
    """The first port that is active and has an IPv4 address, or None."""
    for path in sorted(glob.glob(os.path.join(root, "*", "ports", "*"))):
        if "ACTIVE" not in _read(os.path.join(path, "state")).split():
            continue
        for gid in sorted(glob.glob(os.path.join(path, "gid_attrs", "ndevs", "*"))):
            interface = _read(gid)
            found = addresses(interface) if interface else []
            if found:
                device = os.path.basename(os.path.dirname(os.path.dirname(path)))
                return Port(device, int(os.path.basename(path)), found[0])
    return None
