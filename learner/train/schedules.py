"""The learning rate of each step: warm-up, then constant, linear or cosine, as a pure function."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate(
    number: int, *, lr: float, schedule: Schedule, warmup_steps: int = 0, steps: int = 1, min_lr: float = 0.0
) -> float:
    """The learning rate of step ``number``, counted from 0.

    In the warm-up it is lr · (number + 1) / warmup_steps, so that the first step is not wasted with a rate of 0. After
    it, with p = (number − warmup_steps) / (steps − warmup_steps), the rate is min_lr + (lr − min_lr) · f:

    * ``constant``: lr.
    * ``linear``: f = 1 − p, as ``get_linear_schedule_with_warmup`` of transformers where min_lr is 0.
    * ``cosine``: f = (1 + cos(π p)) / 2, as ``get_cosine_with_min_lr_schedule_with_warmup`` of transformers.

    Args:
        steps: of the run; from there on the rate stays ``min_lr``.
    """
    if number < warmup_steps:
        return lr * (number + 1) / warmup_steps
    if schedule == "constant":
        return lr
    progress = min(1.0, (number - warmup_steps) / max(1, steps - warmup_steps))
    fraction = 1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return min_lr + (lr - min_lr) * fraction
