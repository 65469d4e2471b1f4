#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
"""Tests of results.py: what counts as passed, failed, or neither."""

import json
import os
import subprocess
import sys
import tempfile
import unittest

RESULTS = os.path.join(os.path.dirname(os.path.realpath(__file__)), "results.py")


def count(*tests, leave_out=""):
    """(passed, failed, what was shown) for tests given as (result, output)."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as f:
        for i, (result, output) in enumerate(tests):
            print(json.dumps({"name": f"t{i}", "result": result, "stdout": output,
                              "returncode": 0, "duration": 0.1}), file=f)
        f.flush()
        got = subprocess.run([sys.executable, RESULTS, "--leave-out", leave_out, f.name],
                             capture_output=True, text=True, check=True)
    passed, failed = got.stdout.split()
    return int(passed), int(failed), got.stderr


class Counting(unittest.TestCase):
    """One condition each."""

    def test_ok_passes(self):
        self.assertEqual(count(("OK", ""), ("OK", ""))[:2], (2, 0))

    def test_every_other_result_fails(self):
        for result in ("FAIL", "TIMEOUT", "ERROR", "INTERRUPT", "UNEXPECTEDPASS"):
            self.assertEqual(count((result, ""))[:2], (0, 1), result)

    def test_log_of_a_failure_is_shown(self):
        self.assertIn("it broke", count(("FAIL", "it broke"))[2])

    def test_skip_fails(self):
        self.assertEqual(count(("SKIP", ""))[:2], (0, 1))

    def test_skip_left_out_by_name_is_neither(self):
        self.assertEqual(count(("SKIP", "left out: kvm"), leave_out="qemu,kvm")[:2], (0, 0))

    def test_skip_for_another_part_fails(self):
        self.assertEqual(count(("SKIP", "left out: kvm"), leave_out="qemu")[:2], (0, 1))

    def test_cmocka_skip_fails(self):
        output = "[  SKIPPED ] one\n[  PASSED  ] 3 test(s).\n[  SKIPPED ] one\n"
        self.assertEqual(count(("OK", output))[:2], (0, 1))

    def test_cmocka_skip_left_out_by_name_passes(self):
        output = "left out: hugetlb\n[  SKIPPED ] one\n[  SKIPPED ] one\n"
        self.assertEqual(count(("OK", output), leave_out="hugetlb")[:2], (1, 0))

    def test_second_cmocka_skip_needs_a_reason_too(self):
        output = "left out: hugetlb\n[  SKIPPED ] one\n[  SKIPPED ] two\n"
        self.assertEqual(count(("OK", output), leave_out="hugetlb")[:2], (0, 1))


if __name__ == "__main__":
    unittest.main()
