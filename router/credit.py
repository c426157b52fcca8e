"""From the rewards of an interval to what each arm's logit moves towards; steps 1 to 3 of LRPO's router update."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
GroupNorm: TypeAlias = Literal["none", "center", "zscore"]
Buckets: TypeAlias = dict[tuple[str | None, str | None], list[list[float]]]  # (topic, region) -> [L][rollouts]

_STD_FLOOR = 1e-6


@dataclass(frozen=True)
class Observation:
    """One scored rollout; ``group`` names the rollouts of one question together, ``language`` was asked for."""

    group: str
    topics: tuple[str, ...]
    regions: tuple[str, ...]
    language: str
    reward: float


@dataclass(frozen=True)
class Target:
    """What a row of logits moves towards; ``values`` are 0 where a language is not ``present``."""

    values: Array  # [L]
    present: NDArray[np.bool_]  # [L]


def targets(
    observations: Sequence[Observation], languages: Sequence[str], *, center_by_question: bool, group_norm: GroupNorm
) -> dict[tuple[str, str], Target]:
    """The pooled credit of an interval, for each context ``("topic", name)`` and ``("region", name)`` met in it.

    Rollouts go into a bucket for every (topic, region) of their question, (topic, none) if it has no region.
    ``group_norm`` compares the languages of one bucket by their means, each language counted once. A context's value
    for a language is the mean over its buckets, weighted by their rollouts in that language. LRPO (arXiv 2605.25360)
    instead moves an arm once for each bucket, so a topic met with 24 regions moves nearly all the way, and by an amount
    that depends on their order.

    With ``center_by_question`` a rollout's credit is its reward minus the mean of its group, rollouts in languages
    outside ``languages`` included; those are then left out. The result does not depend on the observations' order.
    """
    arm = {language: n for n, language in enumerate(languages)}
    buckets: Buckets = {}
    credit = _centred(observations) if center_by_question else [observation.reward for observation in observations]
    for observation, value in zip(observations, credit, strict=True):
        if observation.language not in arm:
            continue
        for topic in _distinct(observation.topics):
            for region in _distinct(observation.regions):
                bucket = buckets.setdefault((topic, region), [[] for _ in languages])
                bucket[arm[observation.language]].append(value)
    return _pool(buckets, len(languages), group_norm)


def _distinct(names: Sequence[str]) -> list[str | None]:
    return [*dict.fromkeys(names)] or [None]


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)  # fsum is exact, so that order does not matter


def _centred(observations: Sequence[Observation]) -> list[float]:
    groups: dict[str, list[float]] = defaultdict(list)
    for observation in observations:
        groups[observation.group].append(observation.reward)
    means = {group: _mean(rewards) for group, rewards in groups.items()}
    return [observation.reward - means[observation.group] for observation in observations]


def _pool(buckets: Buckets, size: int, group_norm: GroupNorm) -> dict[tuple[str, str], Target]:
    weighted: dict[tuple[str, str], list[list[float]]] = defaultdict(lambda: [[] for _ in range(size)])
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * size)
    for (topic, region), bucket in buckets.items():
        present = [n for n, credit in enumerate(bucket) if credit]
        values = _normalise(np.array([_mean(bucket[n]) for n in present]), group_norm)
        for kind, name in (("topic", topic), ("region", region)):
            if name is not None:
                for n, value in zip(present, values.tolist(), strict=True):
                    weighted[kind, name][n].append(value * len(bucket[n]))
                    counts[kind, name][n] += len(bucket[n])
    return {
        context: Target(
            values=np.array([fsum(terms) / max(count, 1) for terms, count in zip(sums, counts[context], strict=True)]),
            present=np.array(counts[context]) > 0,
        )
        for context, sums in sorted(weighted.items())
    }


def _normalise(means: Array, group_norm: GroupNorm) -> Array:
    if group_norm == "none":
        return means
    centred: Array = means - means.mean()
    return centred if group_norm == "center" else centred / (means.std() + _STD_FLOOR)
