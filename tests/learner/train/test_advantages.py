"""Advantages, compared with the formulas written again, with verl and TRL's, and by what they promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl.rewards.other_rewards import get_soft_overlong_punishment

from common.config import LearnerConfig, load
from common.wire import Rollout
from learner.groups import Group
from learner.train.advantages import AdvantageForm, advantages, decoupled_sum, overlong_penalty, whiten
from learner.train.outcomes import group_advantages, group_outcome
from learner.train.samples import group_samples
from tests.support.groups import random_rollout, work
from tests.support.train_once import configuration

ROLLOUTS = st.lists(st.tuples(st.floats(0.25, 1, width=32), st.booleans()), min_size=1, max_size=8)


def _values(
    answers: list[tuple[float, bool]], form: AdvantageForm, *, divide_by_std: bool = True, ddof: int = 1,
    weight: float = 1.0,
) -> list[float]:  # fmt: skip
    kept = np.array([compliant for _, compliant in answers])
    rewards = np.array([quality * compliant for quality, compliant in answers])
    found = advantages(rewards, kept, form=form, divide_by_std=divide_by_std, ddof=ddof, compliance_weight=weight)
    return list(found)


def _deviation(values: list[float], divide_by_std: bool, ddof: int) -> float:
    mean = sum(values) / len(values)
    return (sum((value - mean) ** 2 for value in values) / (len(values) - ddof)) ** 0.5 + 1e-6 if divide_by_std else 1


def _normalised(values: list[float], divide_by_std: bool, ddof: int) -> list[float]:
    if len(values) == 1:
        return [0.0]
    mean, deviation = sum(values) / len(values), _deviation(values, divide_by_std, ddof)
    return [(value - mean) / deviation for value in values]


@given(answers=ROLLOUTS, divide_by_std=st.booleans(), ddof=st.sampled_from([0, 1]))
def test_advantages_follow_the_formulas(answers: list[tuple[float, bool]], divide_by_std: bool, ddof: int) -> None:
    gated = _normalised([quality * compliant for quality, compliant in answers], divide_by_std, ddof)
    found = {form: _values(answers, form, divide_by_std=divide_by_std, ddof=ddof) for form in ("gated", "split")}
    np.testing.assert_allclose(found["gated"], gated, rtol=1e-5, atol=1e-8)
    kept = [quality for quality, compliant in answers if compliant]
    share = len(kept) / len(answers)
    quality = [quality if compliant else min(kept) for quality, compliant in answers] if kept else [0.0] * len(answers)
    deviation = _deviation(kept, divide_by_std, ddof) if len(set(kept)) > 1 else 1.0
    mean = sum(quality) / len(quality)
    split = [
        (q - mean if len(set(kept)) > 1 else 0) / deviation + compliant - share
        for q, (_, compliant) in zip(quality, answers, strict=True)
    ]
    np.testing.assert_allclose(found["split"], split, rtol=1e-5, atol=1e-7)


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
    assert _values(faithful, "split") == pytest.approx(_values(faithful, "gated"), abs=1e-9)
    assert _values(answers[:1], form) == [0.0], "with one answer there is nothing to compare"


@given(answers=ROLLOUTS, weight=st.floats(0, 3), divide_by_std=st.booleans())
def test_leaving_the_language_is_never_worth_more_than_keeping_it(
    answers: list[tuple[float, bool]], weight: float, divide_by_std: bool
) -> None:
    found = _values(answers, "split", weight=weight, divide_by_std=divide_by_std)
    kept = [value for value, (_, compliant) in zip(found, answers, strict=True) if compliant]
    left = [value for value, (_, compliant) in zip(found, answers, strict=True) if not compliant]
    if kept and left:
        assert max(left) == pytest.approx(min(kept) - weight, abs=1e-6)


def test_split_keeps_the_differences_of_quality_that_one_gate_failure_crushes() -> None:
    answers = [(quality, True) for quality in np.linspace(0.96, 1.0, 7)] + [(0.98, False)]
    spread = {form: np.ptp(_values(answers, form)[:7]) for form in ("gated", "split")}
    assert spread["split"] > 20 * spread["gated"]
    found = _values(answers, "split")
    assert found[7] < found[0] == min(found[:7])


def _scored(rng: np.random.Generator, terms: dict[str, float], **changes: object) -> Rollout:
    rollout = random_rollout(rng)
    score = rollout.score.model_copy(update={"terms": terms, **changes})
    return rollout.model_copy(update={"score": score})


def _group(number: int, rollouts: list[Rollout]) -> Group:
    return Group(work=work(number, [r.language for r in rollouts]), actor="a", rollouts=rollouts)


def _decoupled(*flags: str) -> LearnerConfig:
    parts = ["--reward.terms.default", '{"math" = 1.0, "format" = 1.0}']
    mine = ["--learner.advantage", "decoupled", "--learner.decoupled_parts", '{"math" = 1.0, "format" = 0.5}']
    return load([*parts, *mine, *flags]).learner


def test_decoupled_advantages_are_those_of_gdpo_in_trl(rng: np.random.Generator) -> None:
    """GRPOTrainer with multi_objective_aggregation = "normalize_then_sum", whose lines cannot be called alone."""
    groups, answers, weights = 5, 4, torch.tensor([1.0, 0.5], dtype=torch.float64)
    rewards = torch.from_numpy(rng.random((groups, answers, 2)).round(1))
    rewards[1, :, 0] = 0.7  # a part that is equal in its group
    rewards[3] = 0.2  # a group in which nothing differs
    rewards[2, 1, 1] = torch.nan  # a part that one answer does not have
    normal = rewards - rewards.nanmean(1, keepdim=True)
    count = (~rewards.isnan()).sum(1, keepdim=True)
    normal = normal / ((normal.nan_to_num() ** 2).sum(1, keepdim=True).div(count - 1).sqrt() + 1e-4)
    summed = (normal * weights).nansum(-1).flatten()
    wanted = ((summed - summed.mean()) / (summed.std() + 1e-4)).reshape(groups, answers)
    names = ("math", "format")
    batch = [
        _group(g, [
            _scored(rng, {n: float(v) for n, v in zip(names, rewards[g, k], strict=True) if not v.isnan()})
            for k in range(answers)
        ])
        for g in range(groups)
    ]  # fmt: skip
    samples, _ = group_samples(batch, _decoupled("--learner.drop_zero_variance", "false"))
    found = np.reshape([sample.advantage for sample in samples], (groups, answers))
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
    assert not found[3].any() and group_outcome(batch[3], _decoupled()) == "zero_variance"


def test_a_part_that_is_equal_adds_nothing_and_all_parts_balance(rng: np.random.Generator) -> None:
    parts = np.vstack([np.full(6, 0.1), rng.random(6)])
    alone = decoupled_sum(parts[1:], np.ones(1), divide_by_std=True)
    assert decoupled_sum(parts, np.array([7.0, 1.0]), divide_by_std=True).tolist() == alone.tolist()
    assert alone.sum() == pytest.approx(0, abs=1e-9)
    assert whiten(alone).std(ddof=1) == pytest.approx(1, rel=1e-3)
    assert not whiten(np.ones(1)).any(), "one answer has no deviation"


def test_compliance_can_be_a_part(rng: np.random.Generator) -> None:
    kept = [True, False, True, True]
    config = load(["--learner.advantage", "decoupled", "--learner.decoupled_parts", '{"compliance" = 2.0}']).learner
    group = _group(0, [_scored(rng, {}, compliant=one) for one in kept])
    found = group_advantages(group, config)
    values = torch.tensor(kept, dtype=torch.float64)
    np.testing.assert_allclose(found, 2 * (values - values.mean()) / (values.std() + 1e-4), rtol=1e-9)


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1), limit=st.integers(2, 200), share=st.floats(0.01, 1),
)  # fmt: skip
def test_the_penalty_for_length_is_that_of_dapo(lengths: list[int], limit: int, share: float) -> None:
    """Equation 13 of arXiv 2503.14476, a case for each length."""
    buffer = max(1, round(limit * share))

    def by_case(length: int) -> float:
        if length <= limit - buffer:
            return 0.0
        return (length - (limit - buffer)) / buffer if length <= limit else 1.0

    found = overlong_penalty(np.array(lengths, np.float64), limit, buffer, 1.5)
    np.testing.assert_allclose(found, [1.5 * by_case(length) for length in lengths], rtol=1e-12)
    theirs = get_soft_overlong_punishment(limit, buffer)(completion_ids=[[1] * length for length in lengths])
    np.testing.assert_allclose(found, [-1.5 * one for one in theirs], rtol=1e-12, err_msg="TRL's")


def test_long_answers_are_worth_less_and_a_group_of_equal_rewards_is_still_left_out(rng: np.random.Generator) -> None:
    config = load(["--learner.overlong_limit", "20", "--learner.overlong_buffer", "10", "--learner.advantage_std", "0"])
    rollouts = [random_rollout(rng, reward=reward) for reward in (1.0, 1.0, 0.0)]
    rollouts = [
        one.model_copy(update={name: np.zeros(length, np.int32) for name in ("response_ids", "versions")})
        for one, length in zip(rollouts, (5, 15, 25), strict=True)
    ]
    rewards = np.array([1.0, 0.5, -1.0])
    assert group_advantages(_group(0, rollouts), config.learner) == pytest.approx(rewards - rewards.mean())
    equal = _group(0, rollouts[:2])
    assert group_advantages(equal, config.learner).any()
    assert group_outcome(equal, config.learner) == "zero_variance", "as in DAPO, length alone does not make a group"


@pytest.mark.parametrize("divides", [True, False])
@pytest.mark.parametrize("penalty", [0.01, 1.0, 3.0])
def test_with_decoupled_the_penalty_for_length_is_a_part_and_its_size_the_weight(
    rng: np.random.Generator, penalty: float, divides: bool
) -> None:
    lengths, math = [10, 15, 18, 20], rng.random(4)
    rollouts = [_scored(rng, {"math": float(one), "format": 0.5}) for one in math]
    rollouts = [
        one.model_copy(update={name: np.zeros(length, np.int32) for name in ("response_ids", "versions")})
        for one, length in zip(rollouts, lengths, strict=True)
    ]
    flags = ["--learner.overlong_limit", "20", "--learner.overlong_buffer", "10"]
    flags += ["--learner.overlong_penalty", str(penalty), "--learner.advantage_std", str(divides)]
    found = group_advantages(_group(0, rollouts), _decoupled(*flags))
    too_long = np.array([0.0, 0.5, 0.8, 1.0])
    normal = [(v - v.mean()) / (v.std(ddof=1) + 1e-4 if divides else 1.0) for v in (math, -too_long)]
    np.testing.assert_allclose(found, normal[0] + penalty * normal[1], rtol=1e-9)
    alike = _group(0, [one.model_copy(update={"score": rollouts[0].score}) for one in rollouts])
    assert group_advantages(alike, _decoupled(*flags)).any()
    assert group_outcome(alike, _decoupled(*flags)) == "zero_variance", "length alone does not make a group"


def test_minibatches_divide_the_groups_that_are_trained(rng: np.random.Generator) -> None:
    batch = [_group(n, [random_rollout(rng, reward=r) for r in ((0.5, 0.5) if n == 2 else (0, 1))]) for n in range(8)]
    config = load(["--learner.minibatches", "3"]).learner
    samples, _ = group_samples(batch, config)
    groups = [{sample.group for sample in samples if sample.minibatch == n} for n in range(3)]
    assert groups == [{0, 1, 3}, {4, 5}, {6, 7}]
    for n in range(3):
        some = [sample for sample in samples if sample.minibatch == n]
        assert sum(s.weight * len(s.rollout.response_ids) for s in some) == pytest.approx(1)
    few, _ = group_samples(batch[:2], config)
    assert {sample.minibatch for sample in few} == {0, 1}, "no mini-batch is empty"
