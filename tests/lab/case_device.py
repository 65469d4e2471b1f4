# SPDX-License-Identifier: BSD-2-Clause
"""A device that is named (--rdma-device), and IPv6; one sentence for what does not work."""

import json
import re
import subprocess

import toolbox as t


def info():
    """What tern info --json says."""
    run = subprocess.run([t.TERN, "info", "--json"], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def device_is_up():
    """Has rxe0 an active port and the GIDs of both addresses?"""
    device = info()["rdma"].get("rxe0") or {"ports": []}
    return any(port["active"] and {t.HERE, "fd77::1"} <= {gid["address"] for gid in port["gids"]}
               for port in device["ports"])


def restore_device():
    """rxe0 as it was; an interface that went down has lost its IPv6 addresses."""
    subprocess.run(["ip", "link", "set", "rdma0", "up"], check=True)
    subprocess.run(["ip", "address", "replace", "fd77::1/64", "dev", "rdma0", "nodad"],
                   check=True)
    t.until(device_is_up, 30, "rxe0 being up again")


def test_device_by_name():
    """--rdma-device: the listener takes an address of the device by itself."""
    listener = t.bench("--listen", "rdma::0", "--rdma-device", "rxe0/1", *t.GUEST)
    uri = t.listening_uri(listener)
    assert uri.startswith(f"rdma:{t.HERE}:"), uri
    source = t.bench("--connect", uri, "--rdma-device", "rxe0", *t.GUEST)
    assert source.wait(60) == 0 and listener.wait(60) == 0
    t.check_verified(listener.report())
    assert source.report()["device"] == "rxe0"


def test_auto_with_a_device():
    """auto: with a device named is RDMA."""
    listener = t.bench("--listen", "auto::0", "--rdma-device", "rxe0", *t.GUEST)
    uri = t.listening_uri(listener)
    assert uri.startswith("rdma:"), uri
    source = t.bench("--connect", "auto:" + uri[5:], "--rdma-device", "rxe0", *t.GUEST)
    assert source.wait(60) == 0 and listener.wait(60) == 0
    assert "named RDMA device rxe0" in source.report()["transport_why"]


def refused(device, *words, connect=f"rdma:{t.HERE}:1"):
    """A source that names this device fails with these words."""
    run = t.bench("--connect", connect, "--size", "4M", "--dirty-rate", "0", "--rdma-device",
                  device)
    assert run.wait(30) in (1, 2)
    t.check_sentence(run, *words)


def test_device_that_is_not_there():
    """The sentence names those there are."""
    refused("mlx5_7", "mlx5_7", "name one of: rxe0")


def test_port_that_is_not_there():
    """The sentence says how many there are."""
    refused("rxe0/3", "no port 3, it has 1")


def test_device_without_an_address_of_the_family():
    """The sentence says which family is missing."""
    address = "fd77::1/64"
    subprocess.run(["ip", "address", "del", address, "dev", "rdma0"], check=True)
    try:
        refused("rxe0", "no IPv6 address", connect="rdma:[fd77::2]:1")
    finally:
        restore_device()


def test_device_that_is_down():
    """The sentence says what to do."""
    subprocess.run(["ip", "link", "set", "rdma0", "down"], check=True)
    try:
        refused("rxe0", "Port 1 of RDMA device rxe0 is not active", "ip link")
    finally:
        restore_device()


def over(address, *options):
    """A migration over this address."""
    listener = t.bench("--listen", f"rdma:{address}:0", *options, *t.GUEST)
    uri = t.listening_uri(listener)
    source = t.bench("--connect", uri, *options, *t.GUEST)
    assert source.wait(60) == 0 and listener.wait(60) == 0
    t.check_verified(listener.report())
    assert source.report()["transport"] == "rdma"


def test_ipv6():
    """RoCE v2 over IPv6."""
    over("[fd77::1]")


def test_ipv6_with_a_device():
    """The same with the device named."""
    over("[fd77::1]", "--rdma-device", "rxe0")


def to_no_host(address):
    """A migration to this address of a listener whose URI names no host."""
    listener = t.bench("--listen", "rdma::0", *t.GUEST)
    uri = t.listening_uri(listener)
    assert uri.startswith(f"rdma:{t.HERE}:"), uri
    source = t.bench("--connect", f"rdma:{address}:{uri.split(':')[-1]}", *t.GUEST)
    assert source.wait(60) == 0 and listener.wait(60) == 0, (source, listener)
    t.check_verified(listener.report())
    assert source.report()["transport"] == "rdma"


def test_no_host():
    """rdma::PORT is all addresses, of both families."""
    to_no_host(t.HERE)
    to_no_host("[fd77::1]")


def test_no_host_where_ipv6_is_apart():
    """The same where a program has to say that it wants both."""
    knob = "/proc/sys/net/ipv6/bindv6only"
    with open(knob, "w", encoding="ascii") as file:
        file.write("1")
    try:
        to_no_host(t.HERE)
        to_no_host("[fd77::1]")
    finally:
        with open(knob, "w", encoding="ascii") as file:
            file.write("0")


def link_local():
    """The link-local address of the device's interface."""
    text = subprocess.run(["ip", "-6", "address", "show", "dev", "rdma0", "scope", "link"],
                          capture_output=True, text=True, check=True).stdout
    return re.search(r"inet6 ([^/]+)/", text)[1]


def test_ipv6_link_local():
    """An address that needs a zone."""
    over(f"[{link_local()}%rdma0]")


def test_ipv6_link_local_with_a_device():
    """The same with the device named: its address in that zone."""
    over(f"[{link_local()}%rdma0]", "--rdma-device", "rxe0")
