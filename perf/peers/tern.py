# SPDX-License-Identifier: BSD-2-Clause
"""tern itself, through `tern bench`, which verifies every byte or fails."""

import json
import os
import subprocess

from peers.base import PeerError, Result, RUN_TIMEOUT_S, size_text


class Tern:
    """`tern bench` with both roles on this machine."""

    name = "tern"
    part = None

    def __init__(self, work):
        self.work = work
        self.path = os.path.join(work.build, "src", "cli", "tern")

    def available(self):
        """None, or why not."""
        if os.access(self.path, os.X_OK):
            return None
        return f"{self.path} is not built; run meson compile -C {self.work.build}"

    def version(self):
        """Version line and, in a git checkout, the commit."""
        try:
            out, _ = self.work.capture([self.path, "--version"], timeout=10)
            version = out.strip()
        except PeerError:
            version = "unknown"
        git = subprocess.run(["git", "-C", self.work.root, "describe", "--always", "--dirty"],
                             capture_output=True, text=True, check=False)
        return f"{version} ({git.stdout.strip()})" if git.returncode == 0 else version

    def _argv(self, spec, json_path):
        """The command line for @spec."""
        argv = [self.path, "bench", "--json", json_path, "--size", size_text(spec.ram),
                "--fill", spec.fill, "--backing", spec.backing,
                "--transport", spec.options.get("transport", "tcp"),
                "--channels", str(spec.channels), "--downtime-limit", str(spec.downtime_ms),
                "--timeout", str(RUN_TIMEOUT_S - 30)]
        if spec.touched:
            argv += ["--touched", size_text(spec.touched)]
        if spec.prealloc:
            argv.append("--prealloc")
        if spec.dirty_rate:
            argv += ["--vcpus", "1", "--dirty-rate", size_text(spec.dirty_rate),
                     "--working-set", size_text(spec.working_set), "--pattern", "sequential"]
        else:
            argv += ["--dirty-rate", "0"]
        return argv + list(spec.options.get("arguments", []))

    def run(self, spec):
        """One run; the figures from its JSON."""
        path = os.path.join(self.work.dir, "tern.json")
        if os.path.exists(path):
            os.unlink(path)
        self.work.capture(self._argv(spec, path))
        try:
            with open(path, encoding="utf-8") as f:
                got = json.load(f)
            if got["status"] != "completed" or got["verify"]["bad"] != 0:
                raise PeerError(f"tern bench ended as {got['status']}, verify {got['verify']}")
            cpu = got["cpu"]
            memory = got.get("memory", {})
            return Result(ram=got["ram_bytes"], total_ms=got["total_ms"],
                          cpu_s=cpu["source_s"] + cpu["destination_s"],
                          downtime_ms=got["downtime_ms"], rounds=_rounds(got["rounds"]),
                          dirty_rate=got.get("dirty_rate_bytes_s") if spec.dirty_rate else None,
                          source_growth=memory.get("source_rss_growth_bytes"),
                          destination_growth=memory.get("destination_rss_growth_bytes"),
                          source_engine=memory.get("source_engine_bytes"),
                          destination_engine=memory.get("destination_engine_bytes"),
                          detail={k: got.get(k) for k in ("transport", "sent_bytes", "pages",
                                                          "downtime_ledger_us", "channels",
                                                          "setup_ms", "first_byte_ms")})
        except (OSError, ValueError, KeyError) as e:
            raise PeerError(f"read the JSON of tern bench: {type(e).__name__} {e}") from e


def _rounds(rounds):
    """A count, whether the JSON has a list of rounds or their number."""
    return len(rounds) if isinstance(rounds, list) else rounds
