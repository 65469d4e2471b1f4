# SPDX-License-Identifier: BSD-2-Clause
"""What guests say on the serial port, and whether it is all there."""
import re
import time

from vmmtool import TIMEOUT

# A number that grows by one from line to line: what counts, and the number.
NUMBERED = re.compile(r"(counter: vcpu \d+ tick|counter: pit tick|check: vcpu \d+ line|"
                      r"dirty: vcpu \d+ line) (\d+)\b")
ONCE = re.compile(r"counter: started on \d+ vcpus|(?:check|dirty): vcpu \d+ has filled \d+ pages")
STEP = re.compile(r"check: (vcpu \d+) .* step (\d+)")
CLOCKS = re.compile(r"dirty: (vcpu \d+) .* back (\d+) clock_us (\d+)")


class Serial:
    """The output of one guest, wherever it has run."""

    def __init__(self, path):
        self.path = path

    def text(self):
        """All of it, up to now."""
        with open(self.path, encoding="ascii", errors="replace") as f:
            return f.read()

    def counts(self, text=None):
        """The last number of each counter.  Raises AssertionError where one jumps."""
        text = self.text() if text is None else text
        last, steps, clocks = {}, {}, {}
        for line in text.split("\n")[:-1]:
            m = NUMBERED.match(line)
            if not m:
                assert ONCE.fullmatch(line), f"odd line: {line}"
                continue
            what, number = m.group(1), int(m.group(2))
            assert number == last.get(what, 0) + 1, \
                f"{what} {number} follows {last.get(what, 0)}"
            last[what] = number
            m = STEP.match(line)
            if m:
                assert int(m.group(2)) >= steps.get(m.group(1), 0), line
                steps[m.group(1)] = int(m.group(2))
            m = CLOCKS.match(line)
            if m:
                assert m.group(2) == "0", f"the time stamp counter went back: {line}"
                assert int(m.group(3)) > clocks.get(m.group(1), 0), f"kvmclock went back: {line}"
                clocks[m.group(1)] = int(m.group(3))
        return last

    def wait_more(self, lines=2, seconds=TIMEOUT):
        """Wait until every counter has grown by so many lines; the counts."""
        begin = self.counts()
        end = time.monotonic() + seconds
        while True:
            now = self.counts()
            if begin and all(now[k] >= n + lines for k, n in begin.items()):
                return now
            if not begin:
                begin = now
            assert time.monotonic() < end, f"the guest says nothing more: {begin}, then {now}"
            time.sleep(0.01)

    def is_silent(self, seconds=0.3):
        """Does nothing come for a while?"""
        before = self.text()
        time.sleep(seconds)
        return self.text() == before
