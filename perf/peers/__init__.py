# SPDX-License-Identifier: BSD-2-Clause
"""Peers, scenarios and reporting of perf/compare.

A peer is something that moves memory: tern, QEMU, the raw pump, perftest.
peers.base says what a peer must offer; PEERS below is the list compare knows.
"""

from peers.faults import Faults
from peers.perftest import Perftest
from peers.pump import Pump
from peers.qemu import Qemu
from peers.tern import Tern
from peers.vm import QemuVmPeer, TernVmPeer

PEERS = {peer.name: peer for peer in (Tern, Pump, Faults, Perftest, Qemu, TernVmPeer, QemuVmPeer)}
