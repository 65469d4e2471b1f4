# SPDX-License-Identifier: BSD-2-Clause
"""Two VMs, the wire between them, and a guest that moves from a to b.

The rules are the same whatever happens to the wire (invariants 1 and 7): before
GO the source's guest runs on and its RAM is right, after it the source stays
paused; the destination runs if and only if GO arrived; both end in bounded time
and say what happened.
"""

import json
import os
import time

import toolbox as t

SIDE = os.path.join(t.BUILD, "tests/lab/lab_side")
PEER_TIMEOUT_MS = 5000
# A session that lost its peer has ended by then: several peer timeouts, emulated CPUs.
BOUND_SECONDS = 60
# What the error of a dead wire names: the device, the queue pair, the status in words.
FAULT_WORDS = ("device rxe0", r"queue pair \d+", "retry counter exceeded", r"status \d+")
# At the 35 MB/s of this wire a while of precopy.
GUEST = ("--size", "64M", "--fill", "random", "--dirty-rate", "1M", "--working-set", "4M",
         "--peer-timeout", str(PEER_TIMEOUT_MS))


def start_bench():
    """A benchmark from a to b whose first round has begun: (source, destination)."""
    destination = t.far_bench("--listen", f"rdma:{t.THERE}:0", *GUEST)
    source = t.bench("--connect", t.listening_uri(destination), *GUEST)
    t.reached(source, "active")
    return source, destination


def check_lost(source, destination):
    """Both ended with an error; the source's guest is as it was."""
    assert source.wait(BOUND_SECONDS) == 1
    assert destination.wait(BOUND_SECONDS) == 1
    report = source.report()
    t.check_source_runs_on(report)
    t.check_sentence(source, *FAULT_WORDS)
    t.check_sentence(destination)
    assert report["error"]["message"] in source.text("err")


def check_completed(source, destination):
    """It completed, and all is verified at the destination."""
    assert source.wait(BOUND_SECONDS) == 0, source.text("err")
    assert destination.wait(BOUND_SECONDS) == 0, destination.text("err")
    t.check_verified(destination.report())


def bench_short_cut_in_precopy():
    """A wire that is gone for half a second is no reason to fail."""
    with t.Wire() as wire:
        source, destination = start_bench()
        time.sleep(0.3)
        wire.do("flap", "500")
        check_completed(source, destination)


def bench_long_cut_in_precopy():
    """A wire that stays away ends it; the source's guest runs on."""
    with t.Wire() as wire:
        source, destination = start_bench()
        time.sleep(0.3)
        wire.do("cut")
        check_lost(source, destination)


def bench_flapping_in_precopy():
    """Again and again for 300 ms: it completes, or fails as if it had been cut."""
    with t.Wire() as wire:
        source, destination = start_bench()
        while source.poll() is None and time.monotonic() < source.begin + 15:
            wire.do("flap", "300")
            time.sleep(0.7)
        if source.wait(BOUND_SECONDS) == 0:
            check_completed(source, destination)
        else:
            check_lost(source, destination)


def bench_cut_in_postcopy_and_recovered():
    """The guest is b's, its pages are a's, and the wire goes away: they go on with a new link."""
    with t.Wire() as wire:
        destination = t.far_bench("--listen", f"rdma:{t.THERE}:0", *GUEST)
        uri = t.listening_uri(destination)
        source = t.bench("--connect", uri, *GUEST, "--mode", "postcopy",
                         "--max-postcopy-bandwidth", "4M", "--control", "/run/control")
        t.reached(source, "postcopy-active")
        wire.do("cut")
        t.reached(source, "postcopy-paused", BOUND_SECONDS)
        t.reached(destination, "postcopy-paused", BOUND_SECONDS)
        wire.do("restore")
        recover = ("bench", "--connect", uri, "--recover", "--control", "/run/control")
        t.until(lambda: t.Run(t.TERN, *recover).wait(BOUND_SECONDS) == 0, BOUND_SECONDS,
                "the migration going on")
        check_completed(source, destination)
        report = destination.report()
        assert report["postcopy"]["recoveries"] == 1, report["postcopy"]


# ---- at a chosen point; see side.c ----

def play(point, command):
    """Migrate; the source runs the command at the point.  Reports of both: (a, b)."""
    options = ("--peer-timeout", str(PEER_TIMEOUT_MS))
    destination = t.Far(SIDE, *options, "destination", f"rdma:{t.THERE}:0")
    source = t.Run(SIDE, *options, "--at", point, "--run", command, "source",
                   t.listening_uri(destination))
    source_status = source.wait(BOUND_SECONDS)
    destination_status = destination.wait(BOUND_SECONDS)
    assert destination_status == 0, destination.text("err")
    a = json.loads(source.text("out")) if source_status == 0 else None
    b = json.loads(destination.text("out"))
    print("source:", a, "\ndestination:", b)
    return a, b


def judge(a, b):
    """Whatever happened: is it one of the outcomes that may be?"""
    assert not (a["running"] and b["running"]), "BOTH SIDES RUN"
    assert b["running"] == (b["go"] > 0), "the destination runs without GO, or not with it"
    if a["go"] == 0:
        assert a["outcome"] == "source" and a["running"] and a["writes"], "it does not run on"
        assert a["pauses"] == a["resumes"]
    else:
        assert not a["running"] and a["resumes"] == 0, "the source resumed after GO"
        if a["started"]:
            assert a["state"] == "completed"
        else:
            assert a["outcome"] == "unknown", a["outcome"]
            assert "outcome unknown: GO was sent" in a["message"]
    assert a["intact"], "the source's RAM is not what it was"
    if b["running"]:
        assert b["outcome"] == "destination" and b["intact"] and b["writes"]
    else:
        assert b["state"] == "failed" and b["message"]


def cut_at(point, go):
    """The wire is cut at the point for good; was GO sent?"""
    with t.Wire():
        a, b = play(point, "lab-wire cut")
        judge(a, b)
        assert a["fired"] == 1, "the point was not met"
        assert (a["go"] > 0) == go, a
        return a, b


def point_cut_before_end_of_state():
    """The destination does not get all of the state, and says no READY."""
    cut_at("before:send:STATE_END", False)


def point_cut_at_ready():
    """READY has come; GO is sent and does not arrive."""
    _, b = cut_at("before:recv:READY", True)
    assert not b["running"], "GO cannot have arrived"


def point_cut_after_go():
    """GO was sent.  Whether it arrived before the cut is chance; the rules are not."""
    cut_at("after:send:GO", True)


def source_dies(point, runs):
    """The source's process is killed at the point; does the destination's guest run then?"""
    a, b = play(point, "kill -KILL $PPID")
    assert a is None, "the source was not killed"
    assert b["running"] == runs and (b["go"] > 0) == runs, b
    if runs:
        assert b["intact"] and b["writes"] and b["outcome"] == "destination"
    else:
        assert b["state"] == "failed" and b["message"]


def point_source_killed_in_precopy():
    """The destination never ran, and says what happened."""
    source_dies("before:write::4", False)


def point_source_killed_at_ready():
    """All is at the destination; without GO it does not run."""
    source_dies("before:send:GO", False)


def point_source_killed_after_go():
    """GO has been answered: the destination goes on alone."""
    source_dies("before:recv:STARTED", True)


# ---- VM b loses its power; each needs VMs of its own ----

def b_dies(point, go):
    """VM b is killed at the point of the source."""
    destination = t.Far(SIDE, "--peer-timeout", str(PEER_TIMEOUT_MS), "destination",
                        f"rdma:{t.THERE}:0")
    source = t.Run(SIDE, "--peer-timeout", str(PEER_TIMEOUT_MS), "--at", point, "--run",
                   "lab-kill b", "source", t.listening_uri(destination))
    assert source.wait(BOUND_SECONDS) == 0
    a = json.loads(source.text("out"))
    print("source:", a)
    assert a["fired"] == 1 and (a["go"] > 0) == go, a
    judge(a, {"running": False, "go": 0, "state": "failed", "message": "killed"})


def kill_b_in_setup():
    """Before the channels are there."""
    b_dies("before:open_channels", False)


def kill_b_in_precopy():
    """Within the first round."""
    b_dies("before:write::4", False)


def kill_b_before_go():
    """With the guest paused and its state on the way."""
    b_dies("before:send:STATE_END", False)


def kill_b_after_go():
    """GO is sent, and nobody is there to hear it: the source must not guess."""
    b_dies("before:send:GO", True)
