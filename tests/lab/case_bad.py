# SPDX-License-Identifier: BSD-2-Clause
"""What a user can get wrong on a host with RDMA: each is one clear sentence.

All in one VM.  A source that fails has its guest running on with its RAM right, and
when the processes have ended the kernel holds as many RDMA objects as before.
"""

import functools
import os
import subprocess
import time

import toolbox as t

BOUND_SECONDS = 40
PEER = ("--peer-timeout", "3000")
MUTE = os.path.join(t.BUILD, "tests/lab/lab_mute")


def run(*command):
    """A command that must succeed."""
    subprocess.run(command, check=True)


def renew():
    """Make the device anew, whatever a test did to it."""
    run(f"{t.TOOLS}/lab-renew")


def keeps_nothing(test):
    """The test leaves no RDMA object in the kernel."""
    @functools.wraps(test)
    def checked():
        before = t.rdma_objects()
        test()
        t.end_all()
        assert t.rdma_objects() == before, (before, t.rdma_objects())
    return checked


def fails(status, *words, options, prefix=()):
    """Run a benchmark that must fail so: its report."""
    command = t.bench(*options, *t.GUEST, *PEER, prefix=prefix)
    assert command.wait(BOUND_SECONDS) == status, command.poll()
    t.check_sentence(command, *words)
    return command


def source_fails(*words, uri, prefix=()):
    """A source that must fail with status 1, its guest running on."""
    command = fails(1, *words, options=("--connect", uri), prefix=prefix)
    t.check_source_runs_on(command.report())


@keeps_nothing
def test_no_device():
    """Both ways to say rdma: on a host without a device; auto: goes on over TCP."""
    run("rdma", "link", "delete", "rxe0")
    try:
        run("modprobe", "-r", "rdma_rxe")
        source_fails("RDMA device", uri=f"rdma:{t.HERE}:4444")
        fails(1, "RDMA device", options=("--listen", "rdma::0"))
        auto = t.bench(*t.GUEST)
        assert auto.wait(BOUND_SECONDS) == 0
        t.check_verified(auto.report())
        assert auto.report()["transport"] == "tcp", auto.report()["transport"]
    finally:
        renew()


@keeps_nothing
def test_device_down():
    """Its network interface is down, so its port is."""
    run("ip", "link", "set", "rdma0", "down")
    try:
        t.until(lambda: t.port_state() == "DOWN", 20, "rxe0 being down")
        source_fails("device rxe0", "not active", uri=f"rdma:{t.HERE}:4444")
    finally:
        renew()


@keeps_nothing
def test_no_route():
    """An address that no interface leads to."""
    source_fails("10.99.99.99:4444", "RDMA", uri="rdma:10.99.99.99:4444")


@keeps_nothing
def test_nobody_at_the_address():
    """An address of the network that no host has."""
    source_fails("192.168.77.99:4444", "RDMA", uri="rdma:192.168.77.99:4444")


@keeps_nothing
def test_unknown_name():
    """A name that does not resolve."""
    source_fails("no-such-host", uri="rdma:no-such-host.invalid:4444")


@keeps_nothing
def test_nothing_listens():
    """The host is there; nobody listens."""
    source_fails("nothing is listening", f"{t.HERE}:4444", uri=f"rdma:{t.HERE}:4444")


@keeps_nothing
def test_peer_listens_with_tcp():
    """The destination was started with tcp:."""
    destination = t.bench("--listen", f"tcp:{t.HERE}:0", *t.GUEST)
    port = t.listening_uri(destination).rsplit(":", 1)[1]
    source_fails("nothing is listening", "rdma: on both sides", uri=f"rdma:{t.HERE}:{port}")
    assert destination.poll() is None, "the destination ended"
    # And it takes the next one, who knows better.
    source = t.bench("--connect", f"tcp:{t.HERE}:{port}", *t.GUEST)
    assert source.wait(BOUND_SECONDS) == 0 and destination.wait(BOUND_SECONDS) == 0
    t.check_verified(destination.report())


@keeps_nothing
def test_port_in_use():
    """Two destinations at one port."""
    first = t.bench("--listen", f"rdma:{t.HERE}:0", *t.GUEST)
    uri = t.listening_uri(first)
    fails(1, "in use", options=("--listen", uri))
    source = t.bench("--connect", uri, *t.GUEST)
    assert source.wait(BOUND_SECONDS) == 0 and first.wait(BOUND_SECONDS) == 0
    t.check_verified(first.report())


@keeps_nothing
def test_not_a_uri():
    """Wrong usage has a status of its own."""
    fails(2, "rdma:", options=("--connect", "rdma:192.168.77.1"))
    fails(2, "nonsense", options=("--transport", "nonsense"))


def unprivileged(kibibytes):
    """What makes a command one that may lock so much memory and no more."""
    return ("prlimit", f"--memlock={kibibytes << 10}:{kibibytes << 10}", "setpriv",
            "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock", "--")


@keeps_nothing
def test_memlock_of_source():
    """RLIMIT_MEMLOCK lets the first queues be made, and no guest RAM be registered."""
    destination = t.bench("--listen", f"rdma:{t.HERE}:0", *t.GUEST, *PEER)
    source_fails("memlock limit", "2048 KiB", uri=t.listening_uri(destination),
                 prefix=unprivileged(2048))
    assert destination.wait(BOUND_SECONDS) == 1
    t.check_sentence(destination, "source says")


@keeps_nothing
def test_memlock_of_destination():
    """The same at the other end; the source hears why."""
    destination = t.bench("--listen", f"rdma:{t.HERE}:0", *t.GUEST, *PEER,
                          prefix=unprivileged(2048))
    source_fails("destination", "memlock limit", "2048 KiB", uri=t.listening_uri(destination))
    assert destination.wait(BOUND_SECONDS) == 1
    t.check_sentence(destination, "memlock limit", "2048 KiB")


@keeps_nothing
def test_memlock_too_small_for_queues():
    """Not even the control queue can be registered."""
    fails(1, "memlock limit", "16 KiB", options=("--transport", "rdma"), prefix=unprivileged(16))


@keeps_nothing
def test_peer_is_no_tern():
    """A server of another kind takes the connection."""
    t.Run("rping", "-s", "-P", "-a", t.HERE, "-p", "4500")
    t.until(lambda: "LISTEN" in t.cm_ids(), 20, "rping listening")
    source_fails("no tern destination", uri=f"rdma:{t.HERE}:4500")


@keeps_nothing
def test_peer_never_posts_receives():
    """It greets as a destination does, and then there is nothing to send into."""
    mute = t.Run(MUTE, t.HERE, "4501")
    t.until(lambda: "listening" in mute.text("out"), 20, "the mute peer listening")
    begin = time.monotonic()
    source_fails(f"{t.HERE}:4501", uri=f"rdma:{t.HERE}:4501")
    assert time.monotonic() - begin < 25, "it took too long to notice"
