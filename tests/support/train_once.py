"""Learner ranks as processes of a test, without torchrun, and what they do there."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from common import wire
from common.config import Config, load
from common.net.ports import reserve_port
from learner import recording
from learner.checkpoint import Checkpoints
from learner.export import export
from learner.groups import Group
from learner.ranks import Ranks
from learner.train.policy import full_weights
from learner.train.samples import group_samples
from learner.train.statistics import make_axes
from learner.train.trainer import Trainer
from tests.support.groups import random_rollout, work
from tests.support.processes import Popen
from tests.support.rank import TIMEOUT_S

ROOT = Path(__file__).parents[2]


def run_ranks(
    ranks: int, body: Callable[..., object], *arguments: Any, output: Path = Path(os.devnull), nodes: int = 1
) -> list[int]:
    """Runs ``body(*arguments)`` in ``ranks`` processes with a default process group and returns their exit codes.

    Args:
        body: a function of a module, which the processes import.
        output: a file for what they write to stdout and stderr.
        nodes: as if the ranks were on so many machines.
    """
    deadline = time.monotonic() + TIMEOUT_S
    with reserve_port() as holder, tempfile.NamedTemporaryFile() as task, output.open("ab") as log:
        pickle.dump((body, arguments), task)
        task.flush()
        common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(holder.getsockname()[1])}
        processes = [
            Popen(
                [sys.executable, "-m", "tests.support.rank", task.name], cwd=ROOT,
                env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank % (ranks // nodes))},
                stdout=log, stderr=log,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        try:
            return [process.wait(max(0.0, deadline - time.monotonic())) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()


def configuration(model: Path, *flags: str) -> Config:
    """Settings of a small exact step: float32, a visible learning rate and a KL penalty."""
    base = ["--model.path", str(model), "--learner.param_dtype", "float32", "--learner.lr", "1e-3"]
    # Sequences of this module are short, so that micro-batches may be too.
    short = ["--data.max_prompt_tokens", "4", "--sampling.max_new_tokens", "8"]
    return load([*base, *short, "--learner.kl", "0.05", *flags])


def random_batch(seed: int, groups: int = 5) -> list[Group]:
    """Groups of four random answers each, and one more whose answers all have the same reward."""
    rng = np.random.default_rng(seed)
    answers = [[random_rollout(rng) for _ in range(4)] for _ in range(groups)]
    answers.append([random_rollout(rng, reward=0.5) for _ in range(4)])
    return [
        Group(work=work(n, [r.language for r in rollouts]), actor="a", rollouts=rollouts)
        for n, rollouts in enumerate(answers)
    ]


def write_gradients(out: Path, model: Path, seed: int, order: int, *flags: str) -> None:
    """Writes the gradient of a batch and the sums of its statistics.

    Args:
        order: seed of the order in which the answers are packed.
    """
    config = configuration(model, *flags)
    trainer = Trainer(config)
    with torch.no_grad():
        for parameter in trainer.policy.parameters():
            parameter.mul_(1.05)  # so that the policy is not its reference
    batch = random_batch(seed)
    samples, languages = group_samples(batch, config.learner)
    np.random.default_rng(order).shuffle(samples)
    sums = trainer.backward(trainer.divide(samples), make_axes(samples, batch, languages, 0)).sums
    found = full_gradients(trainer)
    if dist.get_rank() == 0:
        torch.save({"gradients": found, "sums": sums}, out)


def full_gradients(trainer: Trainer) -> dict[str, Any]:
    """The whole gradient of every weight, by its name in a checkpoint. A collective of all ranks."""
    return {
        name.removeprefix("lm."): value.grad.full_tensor() if isinstance(value.grad, DTensor) else value.grad
        for name, value in trainer.policy.named_parameters()
    }


def copied_weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in full_weights(trainer.policy)}


def train_one_step(out: Path, model: Path, seed: int, checkpoints: Path, *flags: str) -> None:
    """Trains one step more than the newest checkpoint; writes the weights, a checkpoint and an export."""
    trainer = Trainer(configuration(model, *flags))
    kept = Checkpoints(checkpoints, kept=2)
    latest = kept.latest()
    queued = random_batch(99, groups=2)
    if latest is not None:
        kept.load(latest.path, trainer.policy, trainer.optimizer)
        assert wire.encode(latest.read_queued()) == wire.encode(queued), "groups that waited come back"
    step = latest.state["step"] if latest is not None else 0
    batch = random_batch(seed)
    ranks = Ranks({"train": lambda command: trainer.step(command.batch, command.number)})
    if dist.get_rank() == 0:
        result = ranks.run("train", number=step, batch=batch)
        ranks.run("stop")
        assert not result.problem
    else:
        ranks.follow()
    kept.save(trainer.policy, trainer.optimizer, step + 1, {"step": step + 1}, queued)
    kept.wait()
    weights = copied_weights(trainer)
    export(trainer.policy, None, out.with_suffix(""))
    if dist.get_rank() == 0:
        save_file(weights, out)


def train_recorded(
    losses: Path, model: Path, record_dir: Path, checkpoints: Path, steps: int, die_at: int, *flags: str
) -> None:
    """Trains recorded groups with a checkpoint every second step, from the newest checkpoint on.

    Args:
        losses: where a line [step, loss, gradient norm] is appended for every step.
        die_at: the step in whose middle the process kills itself; -1 for none.
    """
    trainer = Trainer(configuration(model, *flags))
    kept = Checkpoints(checkpoints, kept=2)
    latest = kept.latest()
    if latest is not None:
        kept.load(latest.path, trainer.policy, trainer.optimizer)
    for number in range(latest.state["step"] if latest is not None else 0, steps):
        batch = list(recording.read(record_dir)[1])[number].groups
        if number == die_at:
            samples, languages = group_samples(batch, configuration(model).learner)
            trainer.backward(trainer.divide(samples), make_axes(samples, batch, languages, number))
            os.kill(os.getpid(), signal.SIGKILL)
        result = trainer.step(batch, number)
        with losses.open("a") as lines:
            lines.write(json.dumps([number, result.means["loss"], result.grad_norm]) + "\n")
        if number % 2:
            kept.save(trainer.policy, trainer.optimizer, number + 1, {"step": number + 1})
    kept.wait()


def record_steps(directory: Path, model: Path, steps: int, *flags: str) -> None:
    """Trains random groups and records them as a run with ``learner.record`` does."""
    config = configuration(model, *flags)
    trainer = Trainer(config)
    if dist.get_rank() == 0:
        recording.begin(directory, config, 0)
    for number in range(steps):
        batch = random_batch(number, groups=2)
        result = trainer.step(batch, number)
        if dist.get_rank() == 0:
            recording.write(directory, number + 1, batch, result)


def record_with_a_resume(directory: Path, model: Path, first: list[str], second: list[str]) -> None:
    """Records two steps, and two more after a resume with other settings, as a run does."""
    checkpoints = Checkpoints(directory.parent / f"{directory.name}-checkpoints", kept=1)
    for begin, flags in ((0, first), (2, second)):
        config = configuration(model, *flags)
        trainer = Trainer(config)
        if (latest := checkpoints.latest()) is not None:
            found = checkpoints.load(latest.path, trainer.policy, trainer.optimizer, trainer.reference.copy)
            trainer.reference.resume(found, begin)
        if dist.get_rank() == 0:
            recording.begin(directory, config, begin)
        for number in (begin, begin + 1):
            batch = random_batch(number, groups=4)
            result = trainer.step(batch, number)
            if dist.get_rank() == 0:
                recording.write(directory, number + 1, batch, result)
        stage = trainer.reference.state.stage
        checkpoints.save(trainer.policy, trainer.optimizer, begin + 2, {}, reference_stage=stage)
        checkpoints.wait()


def train_poisoned(out: Path, model: Path) -> None:
    """A step in which one behaviour log-probability is not a number, then one without; writes what became of them."""
    trainer = Trainer(configuration(model))
    batch = random_batch(1)
    bad = batch[2].rollouts[1]
    poisoned = bad.model_copy(update={"logprobs": np.full_like(bad.logprobs, np.nan)})
    rollouts = [poisoned if rollout is bad else rollout for rollout in batch[2].rollouts]
    before = copied_weights(trainer)
    result = trainer.step([*batch[:2], batch[2].model_copy(update={"rollouts": rollouts}), *batch[3:]], 0)
    after = copied_weights(trainer)
    following = trainer.step(batch, 1)
    moved = copied_weights(trainer)
    if dist.get_rank() == 0:
        torch.save({
            "problem": result.problem, "next": following.problem, "language": bad.language,
            "same": all(torch.equal(before[name], after[name]) for name in before),
            "moved": any(not torch.equal(after[name], moved[name]) for name in before),
        }, out)  # fmt: skip
