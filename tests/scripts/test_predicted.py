"""The real trainer on a pretended GPU, by the command that predicts: devices, dtypes, waits, and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.bench.fake_cuda.shim import why_not

ROOT = Path(__file__).parents[2]
_PATIENCE_S = 800
pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"cannot pretend a GPU here: {why_not()}")


def predicted(*arguments: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Case -> metric -> row."""
    # A fresh process, as the pretended GPU must be there before torch is imported.
    command = [sys.executable, "-m", "scripts.bench.predicted", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    assert done.stdout, done.stderr[-3000:]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in json.loads(done.stdout.splitlines()[-1])["rows"]:
        case, _, metric = row["metric"].rpartition(": ")
        found.setdefault(case, {})[metric] = row
    wrong = [row for rows in found.values() for row in rows.values() if row["ok"] is False]
    assert not wrong and not done.returncode, wrong
    return found


def test_nothing_waits_is_foreign_or_float32_and_memory_is_as_dry_run_says() -> None:
    """Layers of Qwen2.5-1.5B's width, but two of them: every kind of tensor is there."""
    found = predicted("--layers", "2", "--quick")
    assert {name.partition(",")[0] for name in found} == {"1 rank", "4 ranks"}
    memory, time, kernels = "peak memory", "time of a micro-batch", "kernels of a micro-batch"
    plain, compiled = found["1 rank, no checkpointing"], found["1 rank, compiled, no checkpointing"]
    for figure in (memory, time, kernels):
        assert plain[figure]["value"] > compiled[figure]["value"]
    adapters, whole = found["1 rank, LoRA, checkpointing"], found["4 ranks, checkpointing, reference in host memory"]
    assert adapters[memory]["value"] < whole[memory]["value"] < plain[memory]["value"]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["qwen2.5-1.5b", "llama-3.2-1b", "gemma-3-4b"])
def test_whole_models_are_as_dry_run_says(shape: str) -> None:
    predicted("--shape", shape, "--ranks", "4")
