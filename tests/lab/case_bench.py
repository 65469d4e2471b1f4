# SPDX-License-Identifier: BSD-2-Clause
"""tern bench over RDMA, in one VM: every page is verified, and the transport is the one."""

import json

import toolbox as t


def one_report(*options, seconds=90):
    """A benchmark that must complete: its report, as --json - prints it."""
    run = t.Run(t.TERN, "bench", *options, "--json", "-")
    assert run.wait(seconds) == 0
    report = json.loads(run.text("out"))
    t.check_verified(report)
    return report


def test_rdma():
    """The default way, with a guest that writes."""
    report = one_report("--transport", "rdma", *t.GUEST)
    assert report["transport"] == "rdma"
    assert report["registration"]["bytes"] > 0
    assert all(channel["bytes"] > 0 for channel in report["channels"]), report["channels"]


def test_pin_all_anon_regions():
    """All memory pinned, private memory, several regions."""
    report = one_report("--transport", "rdma", *t.GUEST, "--pin", "all", "--backing", "anon",
                        "--regions", "3", "--channels", "3")
    assert report["transport"] == "rdma" and len(report["channels"]) == 3
    assert report["registration"]["bytes"] >= report["ram_bytes"]


def test_lock_budget_is_kept():
    """Never more locked than allowed."""
    report = one_report("--transport", "rdma", *t.GUEST, "--lock-budget", "8M", "--fill", "random")
    assert 0 < report["registration"]["locked_peak_bytes"] <= 8 << 20, report["registration"]


def test_hugetlb():
    """Guest RAM in huge pages."""
    report = one_report("--transport", "rdma", *t.GUEST, "--backing", "hugetlb")
    assert report["transport"] == "rdma"


def postcopy_report(*options):
    """A guest whose pages follow it: its report, whose figures of postcopy are sound."""
    report = one_report("--transport", "rdma", *t.GUEST, *options)
    postcopy = report["postcopy"]
    assert report["transport"] == "rdma" and report["mode"] != "precopy"
    assert postcopy["missing_pages"] == 0 and postcopy["missing_at_start"] > 0, postcopy
    assert postcopy["fault_us"]["nr"] <= postcopy["requests"] + postcopy["duplicates"], postcopy
    return report


def test_postcopy():
    """Nothing is sent before the switchover; shared memory."""
    report = postcopy_report("--mode", "postcopy", "--fill", "random")
    assert report["postcopy"]["missing_at_start"] * 4096 == report["ram_bytes"]


def test_postcopy_asks():
    """Background pages are slow: the guest asks for what it needs, and gets it."""
    report = postcopy_report("--mode", "postcopy", "--fill", "random",
                             "--max-postcopy-bandwidth", "8M")
    assert report["postcopy"]["requests"] > 0, report["postcopy"]
    assert report["postcopy"]["discarded_bytes"] == 0


def test_postcopy_anon():
    """Private memory: contents come in messages."""
    report = postcopy_report("--mode", "postcopy", "--backing", "anon", "--regions", "3")
    assert report["postcopy"]["discarded_bytes"] > 0


def test_hybrid():
    """A round, and then the rest."""
    postcopy_report("--mode", "hybrid", "--channels", "3")


def test_hybrid_hugetlb():
    """Host pages of 2 MiB are given to the guest whole."""
    postcopy_report("--mode", "hybrid", "--backing", "hugetlb")


def test_auto_chooses_rdma_and_says_why():
    """auto: goes over the RDMA device, on both sides."""
    listener = t.bench("--listen", f"auto:{t.HERE}:0", *t.GUEST)
    uri = t.listening_uri(listener)
    assert uri.startswith("rdma:"), uri
    port = uri.rsplit(":", 1)[1]
    source = t.bench("--connect", f"auto:{t.HERE}:{port}", *t.GUEST)
    assert source.wait(60) == 0 and listener.wait(60) == 0
    t.check_verified(listener.report())
    for report in source.report(), listener.report():
        assert report["transport"] == "rdma"
        assert "rxe0" in report["transport_why"], report["transport_why"]


def test_nothing_is_left():
    """The kernel holds no object after an end, not even after a bad one."""
    before = t.rdma_objects()
    run = t.bench("--transport", "rdma", *t.GUEST, "--dirty-rate", "1G", "--timeout", "2",
                  "--max-bandwidth", "4M", "--working-set", "32M")    # 8 s for one round
    assert run.wait(60) == 3
    t.check_source_runs_on(run.report())
    assert t.rdma_objects() == before, (before, t.rdma_objects())
