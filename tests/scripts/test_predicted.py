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
# Kernels and GB of a micro-batch with three layers, as this version has them: more of either is a slower step.
RECORD = {
    "1 rank, LoRA, compiled, checkpointing": (1036, 152.9),
    "4 ranks, compiled, no checkpointing, weights stay gathered": (499, 154.8),
    "4 ranks, checkpointing, reference in host memory": (879, 285.2),
}
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
    """Layers of Qwen2.5-1.5B's width, but three of them: every kind of tensor is there."""
    found = predicted("--layers", "3", "--quick")
    assert found.keys() == RECORD.keys()
    for name, (kernels, gigabytes) in RECORD.items():
        assert found[name]["kernels of a micro-batch"]["value"] <= 1.02 * kernels, name
        assert found[name]["bytes of a micro-batch"]["value"] <= 1.02 * gigabytes, name
    times = {name: rows["time of a micro-batch"]["value"] for name, rows in found.items()}
    assert max(times, key=times.__getitem__) == "4 ranks, checkpointing, reference in host memory", "it is not compiled"


def test_the_table_has_a_line_for_each_case_and_leaves_out_what_does_not_fit() -> None:
    """Its figures are those of the rows, and a step that needs more memory than a GPU has is not predicted."""
    command = [sys.executable, "-m", "scripts.bench.predicted", "--layers", "1", "--ranks", "4", "--markdown"]
    command += ["--only", "ranks, checkpointing", "--only", "LoRA, no checkpointing", "--gpu-gb", "10"]
    command += ["--shape", "qwen3-8b", "--shape", "qwen2.5-1.5b"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    assert not done.returncode, done.stderr[-3000:]
    header, rule, *lines = [line.strip("| ").split("|") for line in done.stdout.splitlines()]
    assert len(lines) == 6 and {len(line) for line in (header, rule, *lines)} == {len(header)}, done.stdout
    for line in lines:
        cells = {name.strip(): cell.strip() for name, cell in zip(header, line, strict=True)}
        expected = float(cells["`dry-run` GB"])
        assert bool(cells["ms"]) == (expected <= 10), cells
        if cells["ms"]:
            assert float(cells["peak GB"]) == pytest.approx(expected, rel=0.05, abs=0.1)
    assert {bool(line[2].strip()) for line in lines} == {True, False}, "some fit and some do not"


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["qwen2.5-1.5b", "llama-3.2-1b", "gemma-3-4b", "qwen3-8b"])
def test_whole_models_are_as_dry_run_says(shape: str) -> None:
    predicted("--shape", shape, "--ranks", "4")
