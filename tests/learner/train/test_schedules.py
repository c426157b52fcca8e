"""The learning rate, compared with the schedules of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup, get_linear_schedule_with_warmup

from learner.train.schedules import Schedule, learning_rate


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@given(warmup=st.integers(0, 12), more=st.integers(1, 40), share=st.floats(0, 1))
def test_after_the_warm_up_rates_are_those_of_transformers(
    schedule: Schedule, warmup: int, more: int, share: float
) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    least = 0.3 * share if schedule == "cosine" else 0.0  # transformers' linear schedule ends at 0
    lr: Any = (
        get_linear_schedule_with_warmup(optimizer, warmup, warmup + more)
        if schedule == "linear"
        else get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, warmup + more, min_lr=least)
    ).lr_lambdas[0]
    for number in range(warmup + more):
        found = learning_rate(number, lr=0.3, schedule=schedule, warmup_steps=warmup, steps=warmup + more, min_lr=least)
        # transformers begins its warm-up at 0, which wastes a step.
        wanted = 0.3 * lr(number) if number >= warmup else 0.3 * (number + 1) / warmup
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_the_rate_stays_where_the_schedule_ends() -> None:
    some: dict[str, Any] = {"lr": 1.0, "warmup_steps": 2, "steps": 6}
    linear = [learning_rate(n, schedule="linear", min_lr=0.2, **some) for n in (0, 1, 2, 4, 6, 60)]
    assert linear == pytest.approx([0.5, 1.0, 1.0, 0.6, 0.2, 0.2])
    assert [learning_rate(n, schedule="constant", **some) for n in (0, 5, 60)] == [0.5, 1.0, 1.0]
    assert learning_rate(0, lr=1.0, schedule="cosine", warmup_steps=0, steps=1) == 1.0
