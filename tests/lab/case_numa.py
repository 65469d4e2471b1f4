# SPDX-License-Identifier: BSD-2-Clause
"""Placement on a machine of two NUMA nodes with two CPUs each: 0-1 and 2-3.

What tern says of itself is held against what the kernel says: /proc/PID/numa_maps
tells on which nodes the pages of both guests lie, and the threads' affinity in
/proc/PID/task says where they may run.  Threads that come and go are looked at all
the time while the benchmark runs.
"""

import collections
import json
import os
import re
import subprocess

import toolbox as t

# A guest split over both nodes that writes a little; the destination's runs on for a
# while after the end, so that both can be looked at when all pages have arrived.
SPLIT = ("--numa-split", "--size", "48M", "--regions", "4", "--vcpus", "2", "--dirty-rate", "512K",
         "--working-set", "4M", "--channels", "4", "--run-after", "2500")
REGIONS = 4
NODE_CPUS = {0: {0, 1}, 1: {2, 3}}
# Threads of tern, by name; those of the guest have the program's.
OURS = ("tern-session", "tern-accept", "tern-send", "tern-receive", "tern-rdma-ctl",
        "tern-rdma-reg", "tern-control")


def cpu_set(text):
    """The CPUs of a list such as 0-1,3."""
    cpus = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def read(path):
    """A file of /proc, or "" if what it tells of is gone."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def family(pid):
    """The process and its children."""
    pids = [pid]
    for task in os.listdir(f"/proc/{pid}/task"):
        pids += [int(child) for child in read(f"/proc/{pid}/task/{task}/children").split()]
    return pids


class Watch:
    """What was seen of a benchmark while it ran."""

    def __init__(self, run):
        self.run = run
        self.threads = collections.defaultdict(set)     # name: sets of CPUs it may run on
        self.pages = {}             # pid: {region: {node: pages}}, as last seen

    def look(self):
        """Look once; False when it has ended."""
        if self.run.poll() is not None:
            return False
        try:
            for pid in family(self.run.process.pid):
                self.look_at_threads(pid)
                self.look_at_pages(pid)
        except FileNotFoundError:       # one ended meanwhile
            pass
        return True

    def look_at_threads(self, pid):
        """Note each thread's affinity."""
        for task in os.listdir(f"/proc/{pid}/task"):
            status = read(f"/proc/{pid}/task/{task}/status")
            name = re.search(r"^Name:\t(.*)$", status, re.MULTILINE)
            cpus = re.search(r"^Cpus_allowed_list:\t(\S+)$", status, re.MULTILINE)
            if name and cpus:
                self.threads[name[1]].add(frozenset(cpu_set(cpus[1])))

    def look_at_pages(self, pid):
        """Note where the pages of guest RAM are, if there are any."""
        found = {}
        for line in read(f"/proc/{pid}/numa_maps").splitlines():
            region = re.search(r"memfd:(ram\d+)", line)
            if region:
                found[region[1]] = {int(node): int(nr)
                                    for node, nr in re.findall(r"\bN(\d+)=(\d+)", line)}
        if len(found) == REGIONS:       # they are unmapped one by one at the end
            self.pages[pid] = found


def watched(*options, seconds=100, prefix=()):
    """Run a benchmark to its end and watch it: (report, Watch)."""
    run = t.bench("--transport", "rdma", *SPLIT, *options, prefix=prefix)
    watch = Watch(run)
    t.until(lambda: not watch.look(), seconds, f"the end of {run}")
    assert run.wait(1) == 0, "it failed"
    report = run.report()
    t.check_verified(report)
    print(json.dumps(report["channels"], indent=1))
    print({name: [sorted(cpus) for cpus in seen] for name, seen in watch.threads.items()})
    print(watch.pages)
    return report, watch


def check_pages(watch):
    """Both guests have all pages of region i on node i % 2."""
    assert len(watch.pages) == 2, f"guests seen: {watch.pages}"
    for pid, regions in watch.pages.items():
        assert sorted(regions) == ["ram0", "ram1", "ram2", "ram3"], (pid, regions)
        for name, nodes in regions.items():
            node = int(name[3:]) % 2
            assert nodes.get(node, 0) > 0, (pid, name, nodes)
            assert nodes.get(1 - node, 0) == 0, (pid, name, nodes)


def check_channels(report, cpus_of):
    """Channels take turns on the nodes, and their threads and buffers are there."""
    assert [channel["node"] for channel in report["channels"]] == [0, 1, 0, 1]
    for channel in report["channels"]:
        assert cpu_set(channel["cpus"]) == cpus_of[channel["node"]], channel
        assert channel["cpu"] in cpus_of[channel["node"]], channel
        assert channel["buffer_node"] == channel["node"], channel
        assert channel["bytes"] > 0, channel
    vectors = [channel["completion_vector"] for channel in report["channels"]]
    assert len(set(vectors)) == len(vectors), vectors


def check_threads(watch, cpus_of):
    """Senders and receivers run on their nodes, and nothing of tern beyond the budget."""
    budget = set().union(*cpus_of.values())
    for name in "tern-send", "tern-receive":
        # A new thread has its maker's affinity until it has bound itself.
        seen = {cpus for cpus in watch.threads[name] if cpus != budget}
        assert seen == {frozenset(cpus) for cpus in cpus_of.values()} - {frozenset(budget)}, \
            (name, seen)
    for name in OURS:
        for cpus in watch.threads.get(name, ()):
            assert cpus <= budget, (name, sorted(cpus))
    for name in "tern-session", "tern-rdma-ctl", "tern-rdma-reg":
        assert watch.threads[name], f"no thread {name} was seen"


def test_nodes_of_memory():
    """Without a budget: each node's memory is sent and received by threads there."""
    report, watch = watched()
    check_pages(watch)
    check_channels(report, NODE_CPUS)
    check_threads(watch, NODE_CPUS)
    assert cpu_set(report["cpus"]) == {0, 1, 2, 3}
    assert report["device"] == "rxe0" and report["device_port"] == 1


def test_vcpus_are_at_their_pages():
    """The guest's threads run on the nodes of the pages they write."""
    # The slices of vCPUs 0 to 2 are in regions of node 0, that of vCPU 3 in one of node 1.
    _, watch = watched("--vcpus", "4", "--working-set", "12M")
    guest = {cpus for cpus in watch.threads["tern"] if cpus != frozenset({0, 1, 2, 3})}
    assert guest == {frozenset({0, 1}), frozenset({2, 3})}, guest


def test_budget_of_two():
    """A CPU of each node."""
    report, watch = watched("--cpus", "2")
    of = {0: {0}, 1: {2}}
    check_pages(watch)
    check_channels(report, of)
    check_threads(watch, of)
    assert cpu_set(report["cpus"]) == {0, 2}


def test_budget_of_one():
    """Both nodes share the one CPU; buffers are on the nodes all the same."""
    report, watch = watched("--cpus", "1")
    of = {0: {0}, 1: {0}}
    check_pages(watch)
    check_channels(report, of)
    check_threads(watch, of)


def test_budget_of_a_list():
    """The CPUs named."""
    report, watch = watched("--cpus", "1,3")
    of = {0: {1}, 1: {3}}
    check_channels(report, of)
    check_threads(watch, of)


def test_budget_beyond_the_machine():
    """More CPUs than there are: all of them."""
    report, _ = watched("--cpus", "64")
    assert cpu_set(report["cpus"]) == {0, 1, 2, 3}


def test_cpuset_smaller_than_a_node():
    """What the process may use is less than its nodes have: nothing runs elsewhere."""
    report, watch = watched(prefix=("taskset", "-c", "1-2"))
    of = {0: {1}, 1: {2}}
    check_channels(report, of)
    check_threads(watch, of)
    assert cpu_set(report["cpus"]) == {1, 2}


def test_cgroup_smaller_than_a_node():
    """The same by a cpuset of a control group."""
    group = "/sys/fs/cgroup/tern-test"
    os.makedirs("/sys/fs/cgroup", exist_ok=True)
    if not os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        subprocess.run(["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"], check=True)
    with open("/sys/fs/cgroup/cgroup.subtree_control", "w", encoding="ascii") as file:
        file.write("+cpuset")
    os.makedirs(group, exist_ok=True)
    with open(f"{group}/cpuset.cpus", "w", encoding="ascii") as file:
        file.write("0-1,3")
    report, watch = watched(prefix=("sh", "-c", f'echo $$ >{group}/cgroup.procs; exec "$@"', "sh"))
    of = {0: {0, 1}, 1: {3}}
    check_channels(report, of)
    check_threads(watch, of)


def test_list_of_cpus_that_may_not_be_used():
    """One sentence with the CPUs and what is allowed; nobody migrates."""
    run = t.bench("--connect", f"rdma:{t.HERE}:1", "--size", "4M", "--cpus", "2-9")
    assert run.wait(30) == 2
    t.check_sentence(run, "2-9", "4-9", "may use 0-3")


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
        subprocess.run(["ip", "address", "add", address, "dev", "rdma0", "nodad"], check=True)


def test_device_that_is_down():
    """The sentence says what to do."""
    subprocess.run(["ip", "link", "set", "rdma0", "down"], check=True)
    try:
        refused("rxe0", "Port 1 of RDMA device rxe0 is not active", "ip link")
    finally:
        subprocess.run(["ip", "link", "set", "rdma0", "up"], check=True)
        subprocess.run(["ip", "address", "replace", "fd77::1/64", "dev", "rdma0", "nodad"],
                       check=True)
        t.until(t.device_is_up, 30, "rxe0 being up again")


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


def info():
    """What tern info --json says."""
    run = subprocess.run([t.TERN, "info", "--json"], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def advice(facts):
    """The advice as {fact: text}."""
    return {each["fact"]: each["do"] for each in facts["todo"]}


def test_info_tells_the_device():
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


def test_info_warns_of_a_small_mtu():
    """The interface's MTU decides."""
    subprocess.run(["ip", "link", "set", "rdma0", "mtu", "1500"], check=True)
    try:
        facts = info()
        assert facts["rdma"]["rxe0"]["ports"][0]["mtu"] == 1024
        assert "MTU to 4200" in advice(facts)["rdma.rxe0/1"], advice(facts)
    finally:
        subprocess.run(["ip", "link", "set", "rdma0", "mtu", "9000"], check=True)


def test_info_warns_of_a_port_that_is_down():
    """What to do stands at the port."""
    subprocess.run(["ip", "link", "set", "rdma0", "down"], check=True)
    try:
        facts = info()
        assert not facts["rdma"]["rxe0"]["ports"][0]["active"]
        assert "bring its network interface up" in advice(facts)["rdma.rxe0/1"]
    finally:
        subprocess.run(["ip", "link", "set", "rdma0", "up"], check=True)
        subprocess.run(["ip", "address", "replace", "fd77::1/64", "dev", "rdma0", "nodad"],
                       check=True)
        t.until(t.device_is_up, 30, "rxe0 being up again")


def test_info_warns_of_a_missing_device_file():
    """The module to load is named."""
    path = "/dev/infiniband/rdma_cm"
    os.rename(path, path + ".away")
    try:
        assert "rdma_ucm" in advice(info())["rdma.rdma_ucm"]
    finally:
        os.rename(path + ".away", path)


def test_info_warns_of_a_small_memlock_limit():
    """The limit binds a user without CAP_IPC_LOCK."""
    run = subprocess.run(["sh", "-c", 'ulimit -l 64; exec setpriv --bounding-set=-ipc_lock '
                          '--inh-caps=-ipc_lock "$0" info --json', t.TERN],
                         capture_output=True, text=True, check=True)
    facts = json.loads(run.stdout)
    assert facts["memory"]["memlock-limit"] == 65536
    assert "RDMA registration" in advice(facts)["memory.memlock-limit"], advice(facts)


def test_info_without_a_device():
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
        t.until(t.device_is_up, 30, "rxe0 being up again")
