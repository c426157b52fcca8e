"""From the rewards of an interval to what each arm's logit moves towards; steps 1 to 3 of LRPO's router update."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
GroupNorm: TypeAlias = Literal["none", "center", "zscore"]

_STD_FLOOR = 1e-6


@dataclass(frozen=True)
class Observation:
    """One scored rollout; ``group`` names the question's rollouts of one lease, ``language`` was asked for."""

    group: str
    topics: tuple[str, ...]
    regions: tuple[str, ...]
    language: str
    reward: float


@dataclass
class _Sums:
    """Of one context's rollouts, each [L]."""

    total: Array
    count: Array


def credits(observations: Sequence[Observation], center_by_question: bool) -> list[float]:
    """Reward of each rollout, less the mean of its question's rollouts: a hard question is no bad language.

    The mean is over all of a group, rollouts in languages that are no arm included. Sums are exact, so the order of
    the observations does not show.
    """
    if not center_by_question:
        return [observation.reward for observation in observations]
    groups: dict[str, list[float]] = defaultdict(list)
    for observation in observations:
        groups[observation.group].append(observation.reward)
    mean = {group: _mean(rewards) for group, rewards in groups.items()}
    return [observation.reward - mean[observation.group] for observation in observations]
