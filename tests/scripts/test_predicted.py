"""The real trainer on a pretended GPU, by the command that predicts: devices, dtypes, waits, and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.bench.fake_cuda import shim

ROOT = Path(__file__).parents[2]
_PATIENCE_S = 1800  # of the largest shape, on a busy machine
# Kernels and GB of a micro-batch with three layers, as this version has them. More of either is a slower step; less
# is a part of the step that is no longer counted, or a new record to enter here.
RECORD = {
    "1 rank, LoRA, compiled, checkpointing": (1036, 152.9),
    "4 ranks, compiled, no checkpointing, weights stay gathered": (499, 154.8),
    "4 ranks, checkpointing, reference in host memory": (879, 285.2),
}
pytestmark = pytest.mark.skipif(bool(shim.why_not()), reason=f"cannot pretend a GPU here: {shim.why_not()}")


# As the command, but with the library of the pretended GPU as the first argument, which is compiled once.
COMPILED = """
import sys
from pathlib import Path
from scripts.bench.fake_cuda import shim
library = Path(sys.argv.pop(1))
shim.build = lambda directory: library
from scripts.bench.predicted import main
main()
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shim.build(tmp_path_factory.mktemp("pretended")))


def predicted(*arguments: str, library: str = "") -> dict[str, dict[str, dict[str, Any]]]:
    """Case -> metric -> row."""
    # A fresh process, as the pretended GPU must be there before torch is imported.
    program = ["-c", COMPILED, library] if library else ["-m", "scripts.bench.predicted"]
    command = [sys.executable, *program, "--json", *arguments]
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
        assert found[name]["kernels of a micro-batch"]["value"] == pytest.approx(kernels, rel=0.02), name
        assert found[name]["bytes of a micro-batch"]["value"] == pytest.approx(gigabytes, rel=0.02), name
    times = {name: rows["time of a micro-batch"]["value"] for name, rows in found.items()}
    assert max(times, key=times.__getitem__) == "4 ranks, checkpointing, reference in host memory", "it is not compiled"


def test_so_it_is_with_layers_of_another_architecture(library: str) -> None:
    """Six layers of Gemma-3 4B: its norms, both of its kinds of attention, and a vocabulary of 262,208."""
    name = "1 rank, LoRA, compiled, checkpointing"
    found = predicted("--shape", "gemma-3-4b", "--layers", "6", "--ranks", "1", "--only", name, library=library)
    assert found.keys() == {name} and found[name]["waits, foreign and float32 operations"]["value"] == 0
    assert found[name]["kernels of a micro-batch"]["value"] == pytest.approx(2672, rel=0.02)
    assert found[name]["bytes of a micro-batch"]["value"] == pytest.approx(477.2, rel=0.02)
    assert found[name]["peak memory"]["ok"]


def test_the_table_has_a_line_for_each_case_and_leaves_out_what_does_not_fit(library: str) -> None:
    """Its figures are those of the rows, and a step that needs more memory than a GPU has is not predicted."""
    command = [sys.executable, "-c", COMPILED, library, "--layers", "3", "--ranks", "1", "--markdown"]
    command += ["--only", "LoRA, compiled", "--gpu-gb", "4", "--shape", "qwen3-8b", "--shape", "qwen2.5-1.5b"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    assert not done.returncode, done.stderr[-3000:]
    header, rule, *lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    assert len(lines) == 4 and {len(line) for line in (header, rule, *lines)} == {len(header)}, done.stdout
    found = {(line[0], line[1]): dict(zip(header, line, strict=True)) for line in lines}
    assert {names for names, cells in found.items() if cells["ms"].strip()} == {
        ("qwen2.5-1.5b", "1 rank, LoRA, compiled, checkpointing")
    }
    for cells in found.values():
        expected = float(cells["`dry-run` GB"])
        assert bool(cells["ms"].strip()) == (expected <= 4), cells
        if cells["ms"].strip():
            assert float(cells["peak GB"]) == pytest.approx(expected, rel=0.05, abs=0.1)


WITHOUT_OVERLAP = """
import sys
from pathlib import Path
from unittest.mock import patch
from scripts.bench.fake_cuda import shim
shim.load(Path(sys.argv[1]))
from dataclasses import replace
from torch import Tensor
from learner.train.packing import MicroBatch
from scripts.bench.fake_cuda.learner import predict
from scripts.bench.predicted import cases, configure
[case] = [one for one in cases(1) if one.name == "1 rank, checkpointing"]
config = configure("configs/models/qwen2.5-1.5b.json", 2048, 1, case)
for asynchronous in (False, True):
    def move(batch, device):
        tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
        return replace(batch, **{n: t.to(device, non_blocking=asynchronous) for n, t in tensors.items()})
    with patch.object(MicroBatch, "to", move):
        print("|".join(sorted(set(predict(config, layers=1).waits))))
"""


def test_a_copy_to_the_gpu_that_the_host_waits_for_is_found(library: str) -> None:
    """Of a micro-batch: one that is not asynchronous, and one from memory that is not pinned."""
    command = [sys.executable, "-c", WITHOUT_OVERLAP, library]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    assert not done.returncode, done.stderr[-3000:]
    blocking, pageable = done.stdout.splitlines()[-2:]
    assert "copies to the device and waits for it" in blocking and "pinned" not in blocking
    assert "copies to the device from memory that is not pinned" in pageable and "waits for it" not in pageable


@pytest.mark.slow
@pytest.mark.timeout(_PATIENCE_S + 60)
@pytest.mark.parametrize("shape", ["qwen2.5-1.5b", "llama-3.2-1b", "gemma-3-4b", "qwen3-8b"])
def test_whole_models_are_as_dry_run_says(shape: str) -> None:
    predicted("--shape", shape, "--ranks", "4")
