"""The alarm when engines and learner disagree: it names the cause by the pattern, once, and ends."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from learner.groups import StepResult
from learner.report.watch import MismatchWatch
from learner.train.statistics import StepSums, means, means_along


def step(
    by_lag: dict[int, float], by_actor: dict[str, float] | None = None, outside: float = 0.0, effective: float = 1.0
) -> StepResult:
    mean = sum(by_lag.values()) / len(by_lag)
    return StepResult(
        means={"mismatch": mean, "outside_bounds": outside, "effective_sample": effective},
        by_language={}, fill=1.0, grad_norm=1.0, lr=1e-3,
        by_lag={"mismatch": by_lag}, by_actor={"mismatch": by_actor or {}},
    )  # fmt: skip


FINE = {0: 0.01}
BAD: dict[str, Any] = {"outside": 0.3, "effective": 0.2}


@pytest.mark.parametrize(
    ("steps", "cause", "words"),
    [
        ([step({0: 0.01, 1: 0.1, 3: 0.5}, **BAD)], "stale answers", "0.5 at lag 3"),
        ([step(FINE), step({2: 0.4}, **BAD)], "stale answers", "0.01 nats in fresh tokens, 0.4 at lag 2"),
        ([step({0: 0.6}, {"a": 0.01, "b": 2.0, "c": 0.02}, **BAD)], "wrong weights", "those of actor b"),
        ([step(FINE), step({0: 0.6}, {"a": 0.6, "b": 0.5}, **BAD)], "wrong weights", "fresh tokens agreed to 0.01"),
        ([step({0: 0.6}), step({0: 0.5, 1: 0.55}, {"a": 0.5, "b": 0.6})], "wrong architecture", "model.dtype"),
    ],
)  # fmt: skip
def test_the_cause_follows_from_the_pattern(
    steps: list[StepResult], cause: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    watch = MismatchWatch()
    alarms = [watch.check(number, one) for number, one in enumerate(steps, start=1)]
    assert alarms[-1] is not None and alarms[-1].cause == cause and words in alarms[-1].sentence
    assert caplog.text.count("Likely cause") == 1 and words in caplog.text


def test_an_alarm_is_told_once_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    watch = MismatchWatch()
    nothing = StepResult(means={}, by_language={}, fill=0.0, grad_norm=0.0, lr=1e-3)
    bad = step({0: 0.02, 1: 0.4}, **BAD)
    found = [watch.check(number, one) for number, one in enumerate([step(FINE), bad, bad, nothing, step(FINE)])]
    assert [one is not None for one in found] == [False, True, True, True, False]
    assert caplog.text.count("stale answers") == 1 and caplog.text.count("agree again") == 1


def test_means_are_over_the_tokens_of_a_place_and_the_effective_sample_is_kongs(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 5, (2, 3, 2), generator=generator).double()
    tokens[:, 1] = 0
    weights = [[[torch.rand(int(n), generator=generator) for n in row] for row in plane] for plane in tokens.tolist()]

    def table(power: int) -> torch.Tensor:
        return torch.tensor([[[float((w.double() ** power).sum()) for w in row] for row in plane] for plane in weights])

    sums = {"tokens": tokens, "mismatch": table(1), "raw_weight": table(1), "raw_weight_squared": table(2)}
    by_lag = means_along(sums, 1, range(3))
    assert by_lag["mismatch"].keys() == {0, 2}, "no tokens, no mean"
    every = {
        lag: torch.cat([weights[language][lag][actor] for language in range(2) for actor in range(2)]) for lag in (0, 2)
    }
    for lag, w in every.items():
        assert by_lag["mismatch"][lag] == pytest.approx(float(w.mean()), rel=1e-5)
        assert by_lag["effective_sample"][lag] == pytest.approx(float(w.sum() ** 2 / (w**2).sum() / len(w)), rel=1e-5)
    whole = torch.cat(list(every.values()))
    assert means(sums)["effective_sample"] == pytest.approx(
        float(whole.sum() ** 2 / (whole**2).sum() / len(whole)), rel=1e-5
    )
    assert set(means(sums)) == {"mismatch", "effective_sample"}


def test_weights_that_are_no_numbers_have_no_effective_sample_of_one() -> None:
    sums = {name: torch.ones(1, 1, 2).double() for name in ("tokens", "raw_weight", "raw_weight_squared")}
    assert means(sums)["effective_sample"] == 1
    sums["raw_weight_squared"] = torch.tensor([[[1.0, torch.nan]]]).double()
    assert np.isnan(means(sums)["effective_sample"])
    assert means_along(sums, 2, ["a", "b"])["effective_sample"] == {"a": 1, "b": pytest.approx(np.nan, nan_ok=True)}


def test_the_agreement_may_be_of_fewer_optimizer_steps_than_the_rest() -> None:
    sums = StepSums()
    assert sums.means() == {} and sums.means_along(0, ["de"]) == {}
    for tokens, mismatch, agreement in ((2.0, 0.2, True), (6.0, 6.0, False)):
        table = {"tokens": tokens, "mismatch": mismatch, "entropy": tokens, "loss": 3.0}
        table |= {"raw_weight": tokens, "raw_weight_squared": tokens}
        sums.add({name: torch.full((1, 1, 1), value).double() for name, value in table.items()}, agreement=agreement)
    assert sums.means() == pytest.approx({"entropy": 1, "loss": 0.75, "mismatch": 0.1, "effective_sample": 1})
    assert sums.means_along(0, ["de"])["mismatch"] == pytest.approx({"de": 0.1}) and sums.total("loss") == 6
