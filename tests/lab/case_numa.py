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
        "tern-rdma-reg", "tern-control", "tern-ping")


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
        """Note each thread's affinity.

        Not the main thread's: while it reads the topology, hwloc moves it around.
        """
        for task in set(os.listdir(f"/proc/{pid}/task")) - {str(pid)}:
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
    check_side(report["channels"], cpus_of)
    check_side(report["destination_channels"], cpus_of)


def check_side(channels, cpus_of):
    """The same, on one side."""
    assert [channel["node"] for channel in channels] == [0, 1, 0, 1]
    for channel in channels:
        assert cpu_set(channel["cpus"]) == cpus_of[channel["node"]], channel
        assert channel["cpu"] in cpus_of[channel["node"]], channel
        assert channel["buffer_node"] == channel["node"], channel
        assert channel["bytes"] > 0, channel
    vectors = [channel["completion_vector"] for channel in channels]
    # The device has one for each CPU.
    assert len(set(vectors)) == min(len(vectors), os.cpu_count()), vectors


def check_threads(watch, cpus_of):
    """Senders, receivers and registrars run on their nodes, and nothing of tern beyond the budget."""
    budget = set().union(*cpus_of.values())
    for name in "tern-send", "tern-receive", "tern-rdma-reg":
        # A new thread has its maker's affinity until it has bound itself.
        seen = {cpus for cpus in watch.threads[name] if cpus != budget}
        assert seen == {frozenset(cpus) for cpus in cpus_of.values()} - {frozenset(budget)}, \
            (name, seen)
    for name in OURS:
        for cpus in watch.threads.get(name, ()):
            assert cpus <= budget, (name, sorted(cpus))
    for name in "tern-session", "tern-rdma-ctl":
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


def cpuless_node():
    """A node with memory and no CPUs: its memory is there, its threads run on the other."""
    report, watch = watched("--vcpus", "1")
    of = {0: {0}, 1: {0}}
    check_pages(watch)
    check_channels(report, of)
    check_threads(watch, of)


def cpuless_node_and_a_budget():
    """The same with a budget."""
    report, watch = watched("--vcpus", "1", "--cpus", "1")
    check_pages(watch)
    check_channels(report, {0: {0}, 1: {0}})


def test_list_of_cpus_that_may_not_be_used():
    """One sentence with the CPUs and what is allowed; nobody migrates."""
    run = t.bench("--connect", f"rdma:{t.HERE}:1", "--size", "4M", "--cpus", "2-9")
    assert run.wait(30) == 2
    t.check_sentence(run, "2-9", "4-9", "may use 0-3")
