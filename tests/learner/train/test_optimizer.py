"""The optimizer in 8 bits: what it computes, what a checkpoint keeps of it, and what is said where it is not there."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.tensor import DTensor

from common.process import FatalError
from learner.checkpoint import Checkpoints
from learner.train.optimizer import check_same_state, describe_state, initialise, make_optimizer
from learner.train.trainer import Trainer
from tests.support.train_once import (
    configuration,
    copied_weights,
    random_batch,
    record_steps,
    run_ranks,
    train_recorded,
)

FLAGS = ["--learner.optimizer", "adamw_8bit"]
IN_8_BITS = "optim_parts.lm.model.layers.0.mlp.up_proj.weight.exp_avg.codes.0"
needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None,
    reason="the package torchao, which is optional, is not installed: pip install 'torchao>=0.18,<0.19'",
)


def test_without_its_package_the_optimizer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim", None)  # as where it is not installed
    parameters = [torch.nn.Parameter(torch.zeros(3))]
    with pytest.raises(FatalError, match=r"'adamw_8bit' needs the package torchao .*pip install 'torchao>=0.18,<0.19'"):
        make_optimizer(parameters, configuration(Path("m"), *FLAGS).learner)
    plain = make_optimizer(parameters, configuration(Path("m")).learner)
    assert isinstance(plain, torch.optim.AdamW) and describe_state(plain) is None


def test_a_parameter_that_had_no_gradient_yet_gets_a_state_and_the_others_keep_theirs() -> None:
    trained, idle = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = make_optimizer([trained, idle], configuration(Path("m")).learner)
    trained.grad = torch.ones(3)
    optimizer.step()
    moment = optimizer.state[trained]["exp_avg"].clone()
    assert idle not in optimizer.state and moment.any()
    initialise(optimizer)
    assert torch.equal(optimizer.state[trained]["exp_avg"], moment) and optimizer.state[trained]["step"] == 1
    assert not optimizer.state[idle]["exp_avg"].any() and optimizer.state[idle]["step"] == 0


def test_a_state_of_another_form_is_refused() -> None:
    plain = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])
    check_same_state(None, plain, "x")
    with pytest.raises(
        FatalError, match=r"cannot resume from x: .* in 8 bits, for weights in 2 shards, .* in float32: "
    ):
        check_same_state({"bits": 8, "shards": 2}, plain, "x")


def train(directory: Path, model: Path, seed: int) -> None:
    """Three steps with each optimizer; writes the weights before and after, and checkpoints in 8 bits."""
    for name, flags in (("float32", []), ("8 bits", FLAGS)):
        trainer = Trainer(configuration(model, *flags))
        before = copied_weights(trainer)
        checkpoints = Checkpoints(directory / f"checkpoints {name}", kept=2)
        checkpoints.save(trainer.policy, trainer.optimizer, 0, {"step": 0})  # which makes the state before any step
        checkpoints.wait()
        for number in range(3):
            trainer.step(random_batch(seed + number), number)
        checkpoints.save(trainer.policy, trainer.optimizer, 3, {"step": 3})
        checkpoints.wait()
        after = copied_weights(trainer)
        if dist.get_rank() == 0:
            save_file(before, directory / f"before {name}.safetensors")
            save_file(after, directory / f"after {name}.safetensors")
        sizes = [
            local.numel() * local.element_size() if type(local) is torch.Tensor else cast(Any, local).codes.numel()
            for state in trainer.optimizer.state.values()
            for moment in (state["exp_avg"], state["exp_avg_sq"])
            for local in [moment.to_local() if isinstance(moment, DTensor) else moment]
        ]
        (directory / f"bytes {name} {dist.get_rank()}").write_text(str(sum(sizes)))


@needs_torchao
@pytest.mark.parametrize("ranks", [1, 2])
def test_weights_move_as_with_float32_in_less_memory(ranks: int, tiny_policy: Path, tmp_path: Path, seed: int) -> None:
    log = tmp_path / "log"
    assert run_ranks(ranks, train, tmp_path, tiny_policy, seed, output=log) == [0] * ranks, log.read_text()[-3000:]
    moves = {}
    for name in ("float32", "8 bits"):
        before, after = (load_file(tmp_path / f"{when} {name}.safetensors") for when in ("before", "after"))
        moves[name] = torch.cat([(after[key] - before[key]).flatten() for key in before])
    assert torch.nn.functional.cosine_similarity(moves["float32"], moves["8 bits"], dim=0) > 0.98
    assert moves["8 bits"].norm() == pytest.approx(float(moves["float32"].norm()), rel=0.05)
    assert not torch.equal(moves["8 bits"], moves["float32"])
    size = {name: sum(int((tmp_path / f"bytes {name} {n}").read_text()) for n in range(ranks)) for name in moves}
    # What has fewer than 4096 values on a rank stays in float32, which is much of so small a model.
    assert size["8 bits"] < (0.35 if ranks == 1 else 0.8) * size["float32"]
    written = tmp_path / "checkpoints 8 bits" / "step-000003"
    assert IN_8_BITS in FileSystemReader(written).read_metadata().state_dict_metadata
    assert json.loads((written / "optimizer.json").read_text()) == {"bits": 8, "shards": ranks}
    assert not (tmp_path / "checkpoints float32" / "step-000003" / "optimizer.json").exists()


@needs_torchao
@pytest.mark.parametrize("adapters", [False, True])
def test_a_run_that_is_killed_and_resumed_has_the_losses_of_an_unbroken_run(
    adapters: bool, tiny_policy: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    """To the last bit; and a checkpoint of the one form is refused by the other."""
    steps, flags = 5, [*FLAGS, *(["--lora.rank", "64"] if adapters else [])]
    record = tmp_path / "record"
    assert run_ranks(1, record_steps, record, tiny_policy, steps, *flags) == [0]
    broken = (tmp_path / "broken", tiny_policy, record, tmp_path / "checkpoints", steps)
    assert run_ranks(1, train_recorded, *broken, int(rng.integers(2, steps)), *flags) == [-9]
    assert run_ranks(1, train_recorded, *broken, -1, *flags) == [0]
    found = {line[0]: line for line in map(json.loads, (tmp_path / "broken").read_text().splitlines())}
    unbroken = (tmp_path / "unbroken", tiny_policy, record, tmp_path / "checkpoints-0", steps)
    assert run_ranks(1, train_recorded, *unbroken, -1, *flags) == [0]
    wanted = [json.loads(line) for line in (tmp_path / "unbroken").read_text().splitlines()]
    assert [found[number] for number in range(steps)] == wanted, "losses must be equal to the last bit"
    log = tmp_path / "log"
    assert run_ranks(1, train_recorded, *broken, -1, *flags[len(FLAGS) :], output=log) == [1]
    assert "the state of its optimizer is in 8 bits, for weights in 1 shards, and that of this run is in float32" in (
        log.read_text()
    )
