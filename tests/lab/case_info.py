# SPDX-License-Identifier: BSD-2-Clause
"""tern info with a device, without one, and with things in its way; on two NUMA nodes."""

import json
import os
import subprocess

import toolbox as t
from case_device import info, refused, restore_device
from case_numa import NODE_CPUS, cpu_set, read


def advice(facts):
    """The advice as {fact: text}."""
    return {each["fact"]: each["do"] for each in facts["todo"]}


def test_tells_the_device():
    """Its ports, GIDs, abilities and limits, as the kernel has them."""
    facts = info()
    device = facts["rdma"]["rxe0"]
    assert facts["rdma"]["devices"] == 1
    assert "2B" in device["windows"] and not device["on_demand_paging"]
    assert device["limits"]["max_qp"] > 1000 and device["limits"]["max_mr"] > 1000
    port = device["ports"][0]
    assert port["active"] and port["link_layer"] == "Ethernet" and port["mtu"] == 4096
    gids = {gid["address"]: gid for gid in port["gids"]}
    assert gids[t.HERE]["type"] == "RoCE v2" and gids[t.HERE]["netdev"] == "rdma0"
    assert gids["fd77::1"]["type"] == "RoCE v2"
    assert any(gid["link_local"] for gid in port["gids"])
    for gid in port["gids"]:
        path = f"/sys/class/infiniband/rxe0/ports/1/gid_attrs/types/{gid['index']}"
        assert read(path).strip() == gid["type"], (gid, read(path))
    assert not [fact for fact in advice(facts) if fact.startswith("rdma.")], advice(facts)
    assert cpu_set(facts["numa"]["node0"]["cpus"]) == NODE_CPUS[0]
    assert cpu_set(facts["numa"]["node1"]["cpus"]) == NODE_CPUS[1]
    text = subprocess.run([t.TERN, "info"], capture_output=True, text=True, check=True).stdout
    for word in "rxe0/1", "GID", t.HERE, "RoCE v2", "memory windows", "on-demand paging", "limits":
        assert word in text, word


def test_warns_of_a_small_mtu():
    """The interface's MTU decides."""
    subprocess.run(["ip", "link", "set", "rdma0", "mtu", "1500"], check=True)
    try:
        facts = info()
        assert facts["rdma"]["rxe0"]["ports"][0]["mtu"] == 1024
        assert "MTU to 4200" in advice(facts)["rdma.rxe0/1"], advice(facts)
    finally:
        subprocess.run(["ip", "link", "set", "rdma0", "mtu", "9000"], check=True)


def test_warns_of_a_port_that_is_down():
    """What to do stands at the port."""
    subprocess.run(["ip", "link", "set", "rdma0", "down"], check=True)
    try:
        facts = info()
        assert not facts["rdma"]["rxe0"]["ports"][0]["active"]
        assert "bring its network interface up" in advice(facts)["rdma.rxe0/1"]
    finally:
        restore_device()


def test_warns_of_a_missing_device_file():
    """The module to load is named."""
    path = "/dev/infiniband/rdma_cm"
    os.rename(path, path + ".away")
    try:
        assert "rdma_ucm" in advice(info())["rdma.rdma_ucm"]
    finally:
        os.rename(path + ".away", path)


def test_warns_of_a_small_memlock_limit():
    """The limit binds a user without CAP_IPC_LOCK."""
    run = subprocess.run(["sh", "-c", 'ulimit -l 64; exec setpriv --bounding-set=-ipc_lock '
                          '--inh-caps=-ipc_lock "$0" info --json', t.TERN],
                         capture_output=True, text=True, check=True)
    facts = json.loads(run.stdout)
    assert facts["memory"]["memlock-limit"] == 65536
    assert "RDMA registration" in advice(facts)["memory.memlock-limit"], advice(facts)


def test_without_a_device():
    """What to do about none at all."""
    subprocess.run(["rdma", "link", "delete", "rxe0"], check=True)
    try:
        facts = info()
        assert facts["rdma"]["devices"] == 0
        assert "soft-RoCE" in advice(facts)["rdma.devices"]
        refused("rxe0", "No such device", "tern info")
    finally:
        subprocess.run(["rdma", "link", "add", "rxe0", "type", "rxe", "netdev", "rdma0"],
                       check=True)
        restore_device()
