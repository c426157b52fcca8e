"""The objective, compared with plain float64 code, the published formulas and, where it is installed, TRL."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from common.config import LearnerConfig
from learner.train.grpo import AdvantageForm, Aggregation, Objective, advantages, token_weights
from learner.train.logprob import chunked_logp
from tests.support.train_once import configuration, random_batch, run_ranks, write_gradients

ROLLOUTS = st.lists(st.tuples(st.floats(0.25, 1, width=32), st.booleans()), min_size=2, max_size=8)


def _values(
    answers: list[tuple[float, bool]], form: AdvantageForm, *, divide_by_std: bool = True, ddof: int = 1
) -> list[float]:
    kept = np.array([compliant for _, compliant in answers])
    rewards = np.array([quality * compliant for quality, compliant in answers])
    return list(advantages(rewards, kept, form=form, divide_by_std=divide_by_std, ddof=ddof))


def _normalised(values: list[float], divide_by_std: bool, ddof: int) -> list[float]:
    if len(values) == 1:
        return [0.0]
    mean = sum(values) / len(values)
    std = (sum((value - mean) ** 2 for value in values) / (len(values) - ddof)) ** 0.5
    return [(value - mean) / (std + 1e-6 if divide_by_std else 1) for value in values]


@given(answers=ROLLOUTS, divide_by_std=st.booleans(), ddof=st.sampled_from([0, 1]))
def test_advantages_follow_the_formulas(answers: list[tuple[float, bool]], divide_by_std: bool, ddof: int) -> None:
    gated = _normalised([quality * compliant for quality, compliant in answers], divide_by_std, ddof)
    found = {form: _values(answers, form, divide_by_std=divide_by_std, ddof=ddof) for form in ("gated", "split")}
    np.testing.assert_allclose(found["gated"], gated, rtol=1e-5, atol=1e-8)
    share = sum(compliant for _, compliant in answers) / len(answers)
    among = iter(_normalised([q for q, compliant in answers if compliant], divide_by_std, ddof) if share else [])
    split = [next(among) + 1 - share if compliant else -share for _, compliant in answers]
    np.testing.assert_allclose(found["split"], split, rtol=1e-5, atol=1e-8)


def test_the_default_deviation_is_that_of_torch(rng: np.random.Generator) -> None:
    """verl and TRL take torch.std of the rewards of a group, and add 1e-6 (TRL: 1e-4)."""
    rewards = torch.from_numpy(rng.random(8))
    wanted = (rewards - rewards.mean()) / (torch.std(rewards) + 1e-6)
    found = _values([(float(reward), True) for reward in rewards], "gated")
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert configuration(Path("model")).learner.std_ddof == 1


@given(answers=ROLLOUTS, form=st.sampled_from(["gated", "split"]))
def test_advantages_balance_and_vanish_where_nothing_differs(
    answers: list[tuple[float, bool]], form: AdvantageForm
) -> None:
    assert sum(_values(answers, form)) == pytest.approx(0, abs=1e-6)
    assert not any(_values([answers[0]] * len(answers), form))
    assert not any(_values([(quality, False) for quality, _ in answers], form))
    faithful = [(quality, True) for quality, _ in answers]
    assert _values(faithful, "split") == _values(faithful, "gated")


def test_split_keeps_the_differences_of_quality_that_one_gate_failure_crushes() -> None:
    answers = [(quality, True) for quality in np.linspace(0.96, 1.0, 7)] + [(0.98, False)]
    spread = {form: np.ptp(_values(answers, form)[:7]) for form in ("gated", "split")}
    assert spread["split"] > 20 * spread["gated"]
    assert _values(answers, "split")[7] == pytest.approx(-7 / 8)


@given(
    rollouts=st.lists(st.tuples(st.integers(1, 999), st.sampled_from(["en", "zh", "th"])), min_size=1),
    aggregation=st.sampled_from(["token", "sequence", "fertility"]),
)
def test_token_weights_make_the_means_they_name(rollouts: list[tuple[int, str]], aggregation: Aggregation) -> None:
    losses = [np.random.default_rng(n).normal(size=n) for n, _ in rollouts]
    weights = token_weights([n for n, _ in rollouts], [language for _, language in rollouts], aggregation)
    ours = sum(weight * loss.sum() for weight, loss in zip(weights, losses, strict=True))
    by_language = defaultdict(list)
    for (_, language), loss in zip(rollouts, losses, strict=True):
        by_language[language].append(loss)
    wanted = {
        "token": np.concatenate(losses).mean(),
        "sequence": np.mean([loss.mean() for loss in losses]),
        "fertility": sum(len(some) * np.concatenate(some).mean() for some in by_language.values()) / len(losses),
    }
    assert ours == pytest.approx(wanted[aggregation], rel=1e-9, abs=1e-12)


def _token_loss(logp: float, old: float, behaviour: float, advantage: float, ref: float, o: Objective) -> float:
    """The definition, one token at a time, in Python floats."""
    ratio = np.exp(logp - old)
    clipped = min(max(ratio, 1 - o.clip_low), 1 + o.clip_high)
    objective = min(advantage * ratio, advantage * clipped)
    if advantage < 0:
        objective = max(objective, o.dual_clip * advantage)
    weight = np.exp(old - behaviour)
    if o.correction == "mask" and not o.importance_floor <= weight <= o.importance_cap:
        weight = 0
    weight = 1.0 if o.correction == "none" else min(weight, o.importance_cap)
    k3 = np.exp(ref - logp) - (ref - logp) - 1
    return float(-weight * objective + o.kl * k3)


@pytest.mark.parametrize("correction", ["truncate", "mask", "none"])
def test_objective_and_its_gradient_match_the_definition(correction: Any, rng: np.random.Generator) -> None:
    objective = Objective(
        clip_low=0.2, clip_high=0.28, kl=0.1, importance_cap=2.0, importance_floor=0.5, correction=correction
    )
    old, behaviour, ref, advantage = rng.normal(size=(4, 400))
    shift = rng.normal(size=400) * 0.6
    kinks = np.log([1 - objective.clip_low, 1 + objective.clip_high, objective.dual_clip])
    logp = old + np.where((abs(shift[:, None] - kinks) < 1e-4).any(1), 0.0, shift)  # no slope is that across a kink
    leaf = torch.tensor(logp, requires_grad=True)
    loss, stats = objective(leaf, *(torch.tensor(x) for x in (old, behaviour, advantage, ref)))
    wanted = [_token_loss(*row, objective) for row in zip(logp, old, behaviour, advantage, ref, strict=True)]
    np.testing.assert_allclose(loss.detach(), wanted, rtol=1e-9, atol=1e-12)  # exp(d) - d - 1 cancels where d is small
    loss.sum().backward()
    h = 1e-6
    slope = [
        (_token_loss(row[0] + h, *row[1:], objective) - _token_loss(row[0] - h, *row[1:], objective)) / (2 * h)
        for row in zip(logp, old, behaviour, advantage, ref, strict=True)
    ]
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad, slope, rtol=1e-4, atol=1e-6)
    assert set(stats) == {"clip_share", "importance_weight", "importance_limited", "mismatch", "kl"}
    limited = float(stats["importance_limited"].mean())
    assert limited == 0 if correction == "none" else 0 < limited < 1


@pytest.mark.parametrize(("aggregation", "loss_type"), [("token", "bnpo"), ("sequence", "grpo")])
def test_loss_and_gradient_are_those_of_trl(aggregation: Aggregation, loss_type: str, rng: np.random.Generator) -> None:
    """Needs TRL; the test is skipped without it."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer", exc_type=ImportError).GRPOTrainer
    lengths = rng.integers(1, 30, 12)
    mask = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])
    old, behaviour, ref, noise = torch.from_numpy(rng.normal(size=(4, *mask.shape)).astype(np.float32))
    advantage = torch.from_numpy(rng.normal(size=12).astype(np.float32))
    theirs, ours = ((old + 0.6 * noise).requires_grad_() for _ in range(2))
    options = SimpleNamespace(delta=3.0, use_bias_correction_kl=False)
    accelerator = SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x)
    this = SimpleNamespace(
        args=options, accelerator=accelerator, model=SimpleNamespace(training=True),
        aux_loss_enabled=False, top_entropy_quantile=1.0,
        off_policy_mask_threshold=None, importance_sampling_level="token", beta=0.1, loss_type=loss_type,
        epsilon_low=0.2, epsilon_high=0.28, use_vllm=True, vllm_importance_sampling_correction=True,
        current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False, use_adaptive_entropy=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (theirs, torch.zeros_like(old), None),
    )  # fmt: skip
    inputs = {
        "prompt_ids": torch.ones(12, 1), "prompt_mask": torch.ones(12, 1), "completion_ids": torch.ones(mask.shape),
        "completion_mask": mask.float(), "advantages": advantage, "old_per_token_logps": old,
        "ref_per_token_logps": ref, "importance_sampling_ratio": torch.exp(old - behaviour).clamp(max=2.0),
    }  # fmt: skip
    wanted = trainer._compute_loss(this, None, inputs)
    wanted.backward()
    objective = Objective(clip_low=0.2, clip_high=0.28, kl=0.1, importance_cap=2.0)
    weights = torch.from_numpy(token_weights(lengths.tolist(), ["en"] * 12, aggregation)).float()
    tokens = (x[mask] for x in (ours, old, behaviour, advantage[:, None].expand(mask.shape), ref))
    losses, _ = objective(*tokens)
    loss = losses @ weights[:, None].expand(mask.shape)[mask]
    loss.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)


def test_chunked_log_probabilities_match_float64(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(37, 16, generator=generator), torch.randn(101, 16, generator=generator)
    targets, upstream = torch.randint(0, 101, (37,), generator=generator), torch.randn(37, generator=generator)
    exact = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    logits = torch.log_softmax(exact[0] @ exact[1].T / 0.7, -1)
    (logits[torch.arange(37), targets] * upstream).sum().backward()
    ours = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    logp, entropy = chunked_logp(ours[0], ours[1], targets, 0.7, 8)
    (logp * upstream).sum().backward()
    torch.testing.assert_close(logp.double(), logits[torch.arange(37), targets], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), -(logits.exp() * logits).sum(-1), rtol=1e-5, atol=1e-5)
    for mine, reference in zip(ours, exact, strict=True):
        assert mine.grad is not None and reference.grad is not None
        torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=1e-4, atol=1e-4)  # sums that cancel


def _reference_loss(policy: Any, reference: Any, seed: int, config: LearnerConfig, temperature: float) -> Tensor:
    """The loss of a batch with two float64 models: a sequence, then a token at a time, whole softmaxes."""
    losses: list[tuple[str, Tensor]] = []
    for group in random_batch(seed):
        scores = [rollout.score for rollout in group.rollouts]
        if len({score.reward for score in scores}) == 1 and config.drop_zero_variance:
            continue
        worth = _values([(score.reward, score.compliant) for score in scores], config.advantage, ddof=config.std_ddof)
        for rollout, advantage in zip(group.rollouts, worth, strict=True):
            if rollout.truncated and config.mask_truncated:
                continue
            ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.response_ids]).astype(np.int64))[None]
            mine = torch.log_softmax(policy(ids).logits[0] / temperature, -1)
            theirs = torch.log_softmax(reference(ids).logits[0].detach() / temperature, -1)
            tokens = []
            for position, behaviour in enumerate(rollout.logprobs.tolist(), start=len(rollout.prompt_ids)):
                logp, ref = (table[position - 1, ids[0, position]] for table in (mine, theirs))
                weight = float(torch.exp(logp.detach() - behaviour))
                inside = config.importance_floor <= weight <= config.importance_cap
                weight = {
                    "truncate": min(weight, config.importance_cap), "mask": weight * inside, "none": 1.0
                }[config.importance]  # fmt: skip
                ratio, k3 = torch.exp(logp - logp.detach()), torch.exp(ref - logp) - (ref - logp) - 1
                tokens.append(-weight * advantage * ratio + config.kl * k3)
            losses.append((rollout.language, torch.stack(tokens)))
    if config.aggregation == "token":
        return torch.cat([loss for _, loss in losses]).mean()
    if config.aggregation == "sequence":
        return torch.stack([loss.mean() for _, loss in losses]).mean()
    parts = [
        (len(some), torch.cat(some).mean())
        for language in {language for language, _ in losses}
        if (some := [loss for other, loss in losses if other == language])
    ]
    return torch.stack([count * mean for count, mean in parts]).sum() / len(losses)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--learner.aggregation", "sequence", "--learner.importance", "mask", "--sampling.temperature", "0.7"],
        ["--learner.aggregation", "fertility", "--learner.advantage", "split", "--learner.mask_truncated", "true"],
        ["--learner.importance", "none", "--learner.std_ddof", "0", "--learner.drop_zero_variance", "false"],
    ],
    ids=[
        "token-mean",
        "sequence-mean, mask, temperature",
        "fertility, split, over-long masked",
        "no weight, ddof 0, all groups",
    ],
)
def test_loss_and_gradient_of_a_batch_match_float64_code(
    flags: list[str], tiny_policy: Path, tmp_path: Path, seed: int
) -> None:
    plain = configuration(tiny_policy, *flags)
    flags = [*flags, "--learner.microbatch_tokens", "200"]
    assert run_ranks(1, write_gradients, tmp_path / "ours.pt", tiny_policy, seed, 0, *flags) == [0]
    ours = torch.load(tmp_path / "ours.pt")
    reference = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float64)
    policy = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float64)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.05)  # as write_gradients does, so that the policy is not its reference
    loss = _reference_loss(policy, reference, seed, plain.learner, plain.sampling.temperature)
    loss.backward()
    assert float(ours["sums"]["loss"].sum()) == pytest.approx(loss.item(), rel=1e-5, abs=1e-6), (
        "terms of order 1 cancel"
    )
    wanted = {name: parameter.grad for name, parameter in policy.named_parameters()}
    assert wanted.keys() == ours["gradients"].keys()
    for name, gradient in wanted.items():
        assert gradient is not None
        assert (ours["gradients"][name] - gradient).norm() <= 1e-4 * gradient.norm(), name  # of float32: 1e-5
