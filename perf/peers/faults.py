# SPDX-License-Identifier: BSD-2-Clause
"""The floor of a page fault over TCP (perf/faults.c), for which nothing is moved."""

import json
import os

from peers.base import PAGE, PeerError, Result, on_cpus


class Faults:
    """perf/faults: the resolution of a minor fault plus a round trip over loopback.

    Medians add up to what is compared; 99th percentiles do not, and are in the detail.
    With the option measure = "both" it is a fault that needs both, by the least code that
    can do it.  The other option of a Spec: cpus.
    """

    name = "faults"
    part = None

    def __init__(self, work):
        self.work = work
        self.path = os.path.join(work.build, "perf", "faults")

    def available(self):
        """None, or why not."""
        if os.access(self.path, os.X_OK):
            return None
        return f"{self.path} is not built; run meson compile -C {self.work.build}"

    def version(self):
        """It has none of its own."""
        return None

    def run(self, spec):
        """One run, with a fault for every page of the scenario's RAM."""
        got = measure(self.work, self.path, spec)
        if spec.options.get("measure") == "both":
            return Result(ram=spec.ram, fault_p50_us=got["both_us"]["p50"],
                          fault_p99_us=got["both_us"]["p99"], detail=got)
        return Result(ram=spec.ram, fault_p50_us=got["minor_us"]["p50"] + got["tcp_us"]["p50"],
                      detail=got)


def measure(work, path, spec):
    """What perf/faults at @path prints."""
    out, _ = work.capture(on_cpus(spec, [path, "--pages", str(spec.ram // PAGE)]))
    try:
        got = json.loads(out)
        return {name: {k: float(v) for k, v in got[name].items()}
                for name in ("minor_us", "tcp_us", "both_us")}
    except (ValueError, KeyError, AttributeError) as e:
        raise PeerError(f"read the JSON of {path}: {type(e).__name__} {e}") from e
