"""The formulas that turn the similarity of an answer to its reference into a quality in [0, 1].

An encoder places translations of one text nearer to each other in some pairs of languages than in others. Without a
correction this offset would reward the choice of a language, not a good answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from reward.calibration.files import Pair, PairStatistics, Quantiles, pair_of, quantile_path

Mode: TypeAlias = Literal["raw", "mean", "quantile", "zscore"]

_LEAST_STD = 0.5  # of the common one: a few texts that agree by chance must not stretch a pair's scale without bound


class Line(NamedTuple):
    """A corrected similarity s' = slope s + shift."""

    slope: float
    shift: float


_RAW = Line(1.0, 0.0)


def trust(count: int, weight: float, shrink: float) -> float:
    """w = lambda n / (n + k): how much of a pair's measured offset is removed.

    Args:
        count: n, the number of texts that the pair was measured on; at least 1.
        weight: lambda.
        shrink: k, at least 0. The larger it is, the less the statistics of few texts count.
    """
    return weight * count / (count + shrink)


def mean_lines(statistics: PairStatistics, weight: float, shrink: float) -> dict[Pair, Line]:
    """s' = s - w (mu - mu_ref) for each pair, as in LRPO (arXiv 2605.25360)."""
    return _lines(statistics, weight, shrink, zscore=False)


def zscore_lines(statistics: PairStatistics, weight: float, shrink: float) -> dict[Pair, Line]:
    """s' = mu_ref + sigma_ref (s - m) / d for each pair.

    Here m = mu_ref + w (mu - mu_ref) and d = max(sigma_ref / 2, sigma_ref + w (sigma - sigma_ref)). Without any spread
    in the statistics it equals :func:`mean_lines`.
    """
    return _lines(statistics, weight, shrink, zscore=True)


def _lines(statistics: PairStatistics, weight: float, shrink: float, zscore: bool) -> dict[Pair, Line]:
    center, spread = statistics.mean, statistics.std
    lines = {}
    for pair, level in statistics.levels.items():
        w = trust(level.count, weight, shrink)
        mean, std = center + w * (level.mean - center), spread + w * (level.std - spread)
        ratio = spread / max(std, _LEAST_STD * spread) if zscore and spread else 1.0
        lines[pair] = Line(ratio, center - ratio * mean)
    return lines


def line_quality(similarity: float, line: Line, scale: tuple[float, float]) -> float:
    """clip((s' - low) / (high - low), 0, 1), where s' is first clipped to [-1, 1]. LRPO's (s' + 1) / 2 is (-1, 1)."""
    low, high = scale
    return min(1.0, max(0.0, (min(1.0, max(-1.0, line.slope * similarity + line.shift)) - low) / (high - low)))


def quantile_quality(similarity: float, pair: Pair, quantiles: Quantiles) -> float:
    """The share of the pair's offline distribution up to the similarity.

    A pair without a table gets the median of what all pairs with a table give.
    """
    pairs = [pair] if pair in quantiles.tables else list(quantiles.tables)
    return float(np.median([quantiles.cdf(similarity, each) for each in pairs]))


class Calibration:
    """Turns the similarity of an answer to its reference into its quality in [0, 1], by one of the modes:

    * ``raw``: the similarity itself, by :func:`line_quality`;
    * ``mean``: :func:`mean_lines`, then :func:`line_quality`;
    * ``zscore``: :func:`zscore_lines`, then :func:`line_quality`;
    * ``quantile``: :func:`quantile_quality`.

    In the first three modes a pair without statistics is left raw.

    Args:
        mode: which formula.
        statistics: mean and standard deviation of each pair; read by ``mean`` and ``zscore``.
        quantiles: the tables of each pair; read by ``quantile``, which needs them.
        weight: lambda; 0 leaves every similarity raw, 1 removes a pair's whole offset.
        shrink: k; the larger it is, the less the statistics of few texts count.
        scale: the corrected similarities that are worth 0 and 1.
    """

    def __init__(
        self,
        mode: Mode,
        statistics: PairStatistics,
        quantiles: Quantiles | None = None,
        weight: float = 1.0,
        shrink: float = 0.0,
        scale: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        self._mode, self._scale = mode, scale
        self._quantiles = quantiles if mode == "quantile" else None
        self._lines: Mapping[Pair, Line] = {}
        if mode == "mean":
            self._lines = mean_lines(statistics, weight, shrink)
        elif mode == "zscore":
            self._lines = zscore_lines(statistics, weight, shrink)

    @classmethod
    def load(
        cls, mode: Mode, path: Path | None, weight: float, shrink: float, scale: tuple[float, float]
    ) -> Calibration:
        """Reads the files that a mode needs.

        Args:
            path: the CSV of pair statistics. None leaves every similarity raw, whatever the mode.

        Raises:
            ConfigError: a file that the mode needs is missing or malformed.
        """
        if path is None or mode == "raw":
            return cls("raw", PairStatistics({}), None, weight, shrink, scale)
        quantiles = Quantiles.read(quantile_path(path)) if mode == "quantile" else None
        return cls(mode, PairStatistics.read(path), quantiles, weight, shrink, scale)

    def knows(self, language: str, other: str) -> bool:
        """Whether the pair has the statistics that the mode needs; true for every pair in the mode ``raw``."""
        known = self._quantiles.tables if self._quantiles is not None else self._lines
        return self._mode == "raw" or pair_of(language, other) in known

    def __call__(self, similarity: float, language: str, other: str) -> float:
        """The quality in [0, 1] of a similarity in [-1, 1] between texts in two languages, in either order.

        That of nan is nan.
        """
        if math.isnan(similarity):  # which min and max would take for one of the bounds
            return math.nan
        pair = pair_of(language, other)
        if self._quantiles is not None:
            return quantile_quality(similarity, pair, self._quantiles)
        return line_quality(similarity, self._lines.get(pair, _RAW), self._scale)
