"""A few disasters in the normal tests; ``pytest -m slow tests/system/test_chaos.py`` for many, and for real SGLang."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support import processes

ROOT = Path(__file__).parents[2]


def survives(engine: str, events: int, seed: int, directory: Path) -> None:
    command = [sys.executable, "-m", "scripts.bench.chaos", "--engine", engine, "--events", str(events)]
    command += ["--seed", str(seed), "--dir", str(directory), "--json"]
    done = processes.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, (found, done.stderr)
    assert (found["events"], found["lost"], found["doubled"], found["failed"]) == (events, 0, 0, 0)
    assert found["staleness_max"] <= found["staleness_bound"] and found["leftover_processes"] == 0
    assert found["longest_stall_s"] <= found["stall_bound_s"]


def test_a_few_disasters(tmp_path: Path) -> None:
    survives("light", 4, 5, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("engine", "events"), [("light", 100), ("sglang", 50)])
def test_many_disasters(engine: str, events: int, tmp_path: Path) -> None:
    survives(engine, events, 0, tmp_path)
