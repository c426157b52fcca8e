"""How a step reports what went wrong, and which settings a resumed run takes from its configuration."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from learner.checkpoint import Checkpoints
from learner.train.gradient_noise import noise_share
from learner.train.optimizer import parameter_groups
from learner.train.samples import group_samples
from learner.train.statistics import make_axes
from learner.train.trainer import BatchGradient, Trainer
from tests.support.train_once import configuration, random_batch, run_ranks

WRONG = "lm.model.layers.1.mlp.up_proj.weight"


def poisoned_gradient(out: Path, model: Path) -> None:
    trainer = Trainer(configuration(model))
    backward = trainer.backward

    def poisoned(*arguments: Any) -> BatchGradient:
        found = backward(*arguments)
        gradient = trainer.policy.get_parameter(WRONG).grad
        assert isinstance(gradient, DTensor)
        gradient.to_local()[0, 0] = torch.nan
        return found

    trainer.backward = poisoned  # type: ignore[assignment]
    out.write_text(trainer.step(random_batch(1), 0).problem)


def test_only_the_gradient_that_is_not_finite_is_named(tiny_policy: Path, tmp_path: Path) -> None:
    assert run_ranks(1, poisoned_gradient, tmp_path / "problem", tiny_policy) == [0]
    assert (tmp_path / "problem").read_text() == f"not finite: gradient of {WRONG}"


def poisoned_mini_batch(out: Path, model: Path) -> None:
    """One of four mini-batches, gone through twice, has a behaviour log-probability that is not a number."""
    trainer = Trainer(configuration(model, "--learner.minibatches", "4", "--learner.passes", "2"))
    batch = random_batch(1, groups=4)
    bad = batch[2].rollouts[1]
    bad.logprobs = np.full_like(bad.logprobs, np.nan)
    result = trainer.step(batch, 0)
    out.write_text(json.dumps([
        result.problem, result.left_out, result.optimizer_steps, sorted(result.skipped), result.means,
        result.by_lag["mismatch"][0],
        result.grad_norm,
    ]))  # fmt: skip


def test_one_bad_mini_batch_spoils_no_mean(tiny_policy: Path, tmp_path: Path) -> None:
    assert run_ranks(1, poisoned_mini_batch, tmp_path / "out", tiny_policy, output=tmp_path / "log") == [0], (
        tmp_path / "log"
    ).read_text()
    problem, left_out, steps, skipped, means, by_lag, grad_norm = json.loads((tmp_path / "out").read_text())
    assert problem.startswith("not finite: loss of train-2, answer 2")
    assert (left_out, steps, skipped) == (2, 8, [2])
    assert {"loss", "entropy", "mismatch", "effective_sample", "kl"} <= means.keys()
    assert all(np.isfinite(value) for value in [*means.values(), by_lag, grad_norm]), means


def agree_against_the_behaviour(out: Path, model: Path) -> None:
    """The agreement of a batch in four optimizer steps that move the policy far, and of its first mini-batch alone."""
    flags = ["--learner.proximal", "behaviour", "--learner.lr", "0.1"]
    batch, found = random_batch(3, groups=4), []
    for groups, more in ((batch, ["--learner.minibatches", "2", "--learner.passes", "2"]), (batch[:2], [])):
        result = Trainer(configuration(model, *flags, *more)).step(groups, 0)
        found.append({name: result.means[name] for name in ("mismatch", "outside_bounds", "effective_sample")})
        found[-1]["kl"] = result.means["kl"]
    out.write_text(json.dumps(found))


def test_the_agreement_with_the_engines_is_that_of_the_policy_before_it_moves(
    tiny_policy: Path, tmp_path: Path
) -> None:
    assert run_ranks(1, agree_against_the_behaviour, tmp_path / "out", tiny_policy) == [0]
    several, first = json.loads((tmp_path / "out").read_text())
    assert several.pop("kl") > 100 * first.pop("kl"), "the policy has moved far"
    assert several == pytest.approx(first, rel=1e-6)


def resume_with_other_settings(out: Path, model: Path) -> None:
    checkpoints, used = Checkpoints(out.parent / "checkpoints", 1), []
    decay = ["--learner.weight_decay", "0.5"]
    settings = [[], [*decay, "--learner.betas", "[0.8, 0.9]"], [*decay, "--learner.weight_decay_on", "all"]]
    for number, flags in enumerate(settings):
        trainer = Trainer(configuration(model, *flags))
        if latest := checkpoints.latest():
            checkpoints.load(latest.path, trainer.policy, trainer.optimizer)
        trainer.step(random_batch(1), 0)
        checkpoints.save(trainer.policy, trainer.optimizer, number, {})
        checkpoints.wait()
        used.append([(group["weight_decay"], *group["betas"]) for group in trainer.optimizer.param_groups])
    out.write_text(json.dumps(used))


def test_a_resumed_run_trains_with_the_settings_it_is_given(tiny_policy: Path, tmp_path: Path) -> None:
    assert run_ranks(1, resume_with_other_settings, tmp_path / "used", tiny_policy) == [0]
    matrices_and_vectors = [
        [[0.0, 0.9, 0.95], [0.0, 0.9, 0.95]], [[0.5, 0.8, 0.9], [0.0, 0.8, 0.9]], [[0.5, 0.9, 0.95], [0.5, 0.9, 0.95]],
    ]  # fmt: skip
    assert json.loads((tmp_path / "used").read_text()) == matrices_and_vectors


def measure_noise(out: Path, model: Path, seed: int, *flags: str) -> None:
    """Two steps with and without the measurement, and the gradient of every group by itself."""
    batches = [random_batch(seed + n) for n in range(2)]
    plain = Trainer(configuration(model, *flags))
    results = [plain.step(batch, number) for number, batch in enumerate(batches)]
    trainer = Trainer(configuration(model, *flags, "--learner.gradient_noise_every", "2"))
    samples, languages = group_samples(batches[0], configuration(model, *flags).learner)
    axes, gradients = make_axes(samples, batches[0], languages, 0), []
    for group in sorted({sample.group for sample in samples}):
        trainer.backward(trainer.divide([sample for sample in samples if sample.group == group]), axes)
        parts = [cast(DTensor, one.grad).full_tensor().flatten() for one in trainer.policy.parameters()]
        gradients.append(torch.cat(parts).double().cpu().numpy())
        trainer.optimizer.zero_grad()
    measured = [trainer.step(batch, number) for number, batch in enumerate(batches)]
    if dist.get_rank() == 0:
        found = [[(one.means["loss"], one.grad_norm) for one in some] for some in (results, measured)]
        noise = [one.gradient_noise for one in (*results, *measured)]
        np.savez(out, gradients=np.array(gradients))
        out.with_suffix(".json").write_text(json.dumps({"found": found, "noise": noise}))


@pytest.mark.parametrize("ranks", [1, 2])
def test_gradient_noise_is_the_variance_over_groups_and_changes_nothing(
    ranks: int, tiny_policy: Path, tmp_path: Path, seed: int
) -> None:
    flags = ["--learner.ranks", str(ranks), "--learner.microbatch_tokens", "90"]
    assert run_ranks(ranks, measure_noise, tmp_path / "out.npz", tiny_policy, seed, *flags) == [0] * ranks
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["found"][0] == told["found"][1], "to the last bit"
    gradients = np.load(tmp_path / "out.npz")["gradients"]
    variance = len(gradients) * gradients.var(axis=0, ddof=1).sum()  # of a sum of independent gradients
    assert len(gradients) > 1 and told["noise"][2] == pytest.approx(variance / (gradients.sum(0) ** 2).sum(), rel=1e-4)
    assert told["noise"][:2] == [None, None] and told["noise"][3] is None, "every second step"


@pytest.mark.parametrize(
    ("group_norms", "norm"),
    [([1.0, 2.0], math.inf), ([1.0, math.inf], 2.0), ([1.0, 2.0], math.nan), ([math.nan, 1.0], 2.0), ([1.0, 2.0], 0.0),
     ([1.0], 1.0), ([], 1.0)],
)  # fmt: skip
def test_a_gradient_that_is_not_finite_has_no_share_of_noise(group_norms: list[float], norm: float) -> None:
    assert noise_share(group_norms, norm) is None
    assert noise_share([3.0, 4.0], 5.0) == pytest.approx(1), "they are at right angles"


def test_biases_and_gains_of_norms_are_the_vectors() -> None:
    config = Qwen2Config(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = Qwen2ForCausalLM(config)
    names = {id(value): name for name, value in model.named_parameters()}
    matrices, vectors = ({names[id(one)] for one in group["params"]} for group in parameter_groups(model.parameters()))
    assert vectors == {name for name in names.values() if "norm" in name or name.endswith("bias")} != set()
    assert matrices == set(names.values()) - vectors != set()
