"""Shared memory of the learner, made while signals come."""

from __future__ import annotations

import os
import re
import subprocess
import sys


def test_a_signal_while_shared_memory_is_made_does_not_hang_the_process() -> None:
    command = [sys.executable, "-m", "tests.support.shared_under_signals"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert re.fullmatch(r"3 fields, [1-9]\d* signals\n", done.stdout), "and the signals are handled afterwards"
