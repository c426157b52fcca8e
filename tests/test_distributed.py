"""The trainer under torchrun: any number of ranks and any micro-batching make the same step, and checkpoints move."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[1]


def train_once(ranks: int, model: Path, out: Path, seed: int, budget: int, *checkpoints: str) -> dict[str, Any]:
    out.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    arguments = ["-m", "tests.train_once", str(model), str(out), str(seed), str(budget), *checkpoints]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    return result


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=2e-5)


def test_ranks_and_micro_batches_do_not_change_the_step(tiny_policy: Path, tmp_path: Path) -> None:
    seed = int(np.random.default_rng().integers(2**31))
    one = train_once(1, tiny_policy, tmp_path / "one", seed, 100_000)
    two = train_once(2, tiny_policy, tmp_path / "two", seed, 90)
    for key, value in one.items():
        assert two[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    first = load_file(tmp_path / "one" / "weights.safetensors")
    close(first, load_file(tmp_path / "two" / "weights.safetensors"))
    before = AutoModelForCausalLM.from_pretrained(tiny_policy)
    assert set(first) == {name for name, _ in before.named_parameters()}, "names are those of the checkpoint"
    assert one["kl"] == pytest.approx(0, abs=1e-6), "the policy starts at its reference"
    moved = max(float((first[name] - value.detach()).abs().max()) for name, value in before.named_parameters())
    assert moved > 1e-4

    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "model", dtype=torch.float32)
    close(dict(exported.named_parameters()), first)

    # A checkpoint of two ranks goes on on one, optimizer included: as if it had been one all along.
    train_once(1, tiny_policy, tmp_path / "three", seed + 1, 100_000, str(tmp_path / "two" / "checkpoints"))
    train_once(1, tiny_policy, tmp_path / "four", seed + 1, 100_000, str(tmp_path / "one" / "checkpoints"))
    close(load_file(tmp_path / "three" / "weights.safetensors"), load_file(tmp_path / "four" / "weights.safetensors"))
