# SPDX-License-Identifier: BSD-2-Clause
"""The raw socket pump (perf/pump.c): the ceiling for anything over loopback sockets."""

import json
import os

from peers.base import PeerError, Result, size_text


class Pump:
    """perf/pump with as many sockets as the scenario has channels."""

    name = "pump"
    part = None

    def __init__(self, work):
        self.work = work
        self.path = os.path.join(work.build, "perf", "pump")

    def available(self):
        """None, or why not."""
        if os.access(self.path, os.X_OK):
            return None
        return f"{self.path} is not built; run meson compile -C {self.work.build}"

    def version(self):
        """It has none of its own."""
        return None

    def run(self, spec):
        """One run; with the quickest of its chunk sizes, so that the ceiling is honest."""
        argv = [self.path, "--size", size_text(spec.ram), "--sockets", str(spec.channels),
                "--backing", spec.backing, "--fill", spec.fill]
        if spec.prealloc:
            argv.append("--prealloc")
        if spec.options.get("chunk"):
            argv += ["--chunk", spec.options["chunk"]]
        else:
            argv.append("--best")
        out, _ = self.work.capture(argv)
        try:
            got = json.loads(out)
            return Result(ram=got["bytes"], total_ms=got["total_ms"], cpu_s=got["cpu_s"],
                          detail={"chunk": got["chunk"], "tried": got.get("tried")})
        except (ValueError, KeyError) as e:
            raise PeerError(f"read the pump's JSON: {e}") from e
