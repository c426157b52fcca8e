"""Means with their 95% intervals: bootstraps over questions and seeds, and Student's t over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Interval = tuple[float, float, float]  # a value, and the bounds of its 95% interval

_MEAN_RESAMPLES = 1000
_TWO_WAY_RESAMPLES = 2000


def percentile_interval(values: Sequence[float] | Floats) -> Interval:
    """The interval of an estimate, which is the first value, from its bootstrap resamples, which are the others."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return float(values[0]), float(low), float(high)


def mean_interval(values: Floats, generator: np.random.Generator) -> Interval:
    """The mean of values [n], with the interval of a bootstrap over them."""
    resampled = generator.choice(values, (_MEAN_RESAMPLES, len(values))).mean(1)
    return percentile_interval(np.concatenate([[values.mean()], resampled]))


def two_way_interval(values: Floats, seed: int = 0) -> Interval:
    """The mean of values [seeds, questions], with the interval of a bootstrap over both; nan is no value."""
    random = np.random.default_rng(seed)
    rows, columns = values.shape
    estimates = [float(np.nanmean(values))]
    for _ in range(_TWO_WAY_RESAMPLES):
        part = values[np.ix_(random.integers(0, rows, rows), random.integers(0, columns, columns))]
        estimates.append(float(np.nanmean(part)) if np.isfinite(part).any() else float("nan"))
    return percentile_interval(estimates)


def half_width(values: Floats) -> float:
    """Half the width of the interval of the mean of values [n], n at least 2, by Student's t."""
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
