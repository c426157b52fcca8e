"""Statistics of a step's tokens, kept apart by language, lag and actor, and what is reported of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from learner.groups import Group
from learner.train.packing import MicroBatch, Sample

_MOST_LAGS = 64  # rows of a table; older tokens are counted with the last of them
_FOR_SAMPLE_SIZE = ("raw_weight", "raw_weight_squared")
_AGREEMENT = frozenset({"mismatch", "outside_bounds", *_FOR_SAMPLE_SIZE})  # of engines and learner
Name = TypeVar("Name")


@dataclass(frozen=True)
class Axes:
    """What the cells of a table of statistics stand for; a table is [languages, lags, actors].

    Args:
        languages: that ``Sample.language`` indexes.
        lags: how many lags there are, from 0 on, in policy updates.
        actors: that ``Sample.actor`` indexes.
        version: the policy version that the step begins with.
    """

    languages: Sequence[str]
    lags: int
    actors: Sequence[str]
    version: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a table."""
        return len(self.languages), self.lags, len(self.actors)

    def cells(self, batch: MicroBatch) -> Tensor:
        """The cell of each response token in a flattened table, [R] int64."""
        lag_R = (self.version - batch.versions_R).clamp(0, self.lags - 1)
        return (batch.language_R * self.lags + lag_R) * len(self.actors) + batch.actor_R


class StepSums:
    """Sums of the statistics of a step over its optimizer steps, each a table [languages, lags, actors].

    Those that say how well engines and learner agree may be of fewer optimizer steps than the others.
    """

    def __init__(self) -> None:
        self._training: dict[str, Tensor] = {}
        self._agreement: dict[str, Tensor] = {}

    def add(self, sums: Mapping[str, Tensor], *, agreement: bool) -> None:
        """Adds the sums of an optimizer step; those of the agreement only if ``agreement``."""
        for name, table in sums.items():
            if name not in _AGREEMENT:
                self._training[name] = self._training.get(name, torch.zeros_like(table)) + table
            if agreement and (name in _AGREEMENT or name == "tokens"):
                self._agreement[name] = self._agreement.get(name, torch.zeros_like(table)) + table

    def total(self, name: str) -> float:
        """The sum of a statistic over all cells."""
        return float(self._training[name].sum())

    def means(self) -> dict[str, float]:
        """See :func:`means`; empty where nothing was added."""
        return {name: value for sums in self._parts() for name, value in means(sums).items()}

    def means_along(self, axis: int, names: Sequence[Name]) -> dict[str, dict[Name, float]]:
        """See :func:`means_along`; empty where nothing was added."""
        return {name: one for sums in self._parts() for name, one in means_along(sums, axis, names).items()}

    def _parts(self) -> list[Mapping[str, Tensor]]:
        return [sums for sums in (self._training, self._agreement) if sums]


def make_axes(samples: Sequence[Sample], batch: Sequence[Group], languages: Sequence[str], version: int) -> Axes:
    """The axes for the samples of a step, which ``group_samples`` made of ``batch``; the same on every rank."""
    oldest = min((int(sample.rollout.versions.min()) for sample in samples), default=version)
    return Axes(languages, min(max(version - oldest, 0) + 1, _MOST_LAGS), actor_names(batch), version)


def actor_names(batch: Sequence[Group]) -> list[str]:
    """The actors of a batch, sorted."""
    return sorted({group.actor for group in batch})


def means(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean of each statistic over all tokens; see :func:`means_along`."""
    return {name: values[0] for name, values in _means({name: one.sum()[None] for name, one in sums.items()}).items()}


def means_along(sums: Mapping[str, Tensor], axis: int, names: Sequence[Name]) -> dict[str, dict[Name, float]]:
    """The mean of each statistic over the tokens of each place on an axis; places without tokens are left out.

    In place of the sums of ``raw_weight`` w and ``raw_weight_squared`` the result has ``effective_sample``, which is
    (Σw)² / (n Σw²) over the n tokens: the share of them that importance weights which are all equal would need for an
    estimate of the same variance (Kong 1992). It is 1 where all weights are equal.

    Args:
        sums: statistic -> sums over tokens [languages, lags, actors]; ``tokens`` is their number.
        axis: 0, 1 or 2.
        names: of its places.
    """
    others = [other for other in range(3) if other != axis]
    found = _means({name: one.sum(others) for name, one in sums.items()})
    present = sums["tokens"].sum(others) > 0
    return {
        statistic: {name: value for name, value, there in zip(names, values, present.tolist(), strict=True) if there}
        for statistic, values in found.items()
    }


def _means(sums: Mapping[str, Tensor]) -> dict[str, list[float]]:
    tokens = sums["tokens"].clamp(min=1)
    plain = {name: one / tokens for name, one in sums.items() if name not in ("tokens", *_FOR_SAMPLE_SIZE)}
    if all(name in sums for name in _FOR_SAMPLE_SIZE):
        weights, squares = (sums[name] for name in _FOR_SAMPLE_SIZE)
        plain["effective_sample"] = torch.where(squares == 0, 1.0, weights**2 / (tokens * squares))  # NaN stays NaN
    return {name: one.tolist() for name, one in plain.items()}
