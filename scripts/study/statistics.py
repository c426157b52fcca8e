"""Means with their 95% intervals, over seeds, over questions and over both, and tests of paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from common.intervals import half_width

Floats = NDArray[np.float64]
Interval = tuple[float, float, float]  # a value, and the bounds of its 95% interval

_MEAN_RESAMPLES = 1000
_ROUNDING = 1e-12  # of differences between figures of about 1 that are equal but for the last bits


def percentile_interval(values: Sequence[float] | Floats) -> Interval:
    """The interval of an estimate, which is the first value, from its bootstrap resamples, which are the others."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return float(values[0]), float(low), float(high)


def mean_interval(values: Floats, generator: np.random.Generator, ids: Sequence[str] | None = None) -> Interval:
    """The mean of values [n], with the interval of a bootstrap over them.

    Args:
        ids: [n] of the question that each value is of. A question and its translations have one id, and are drawn
            together; None: each value is of a question of its own.
    """
    if ids is None or len({*ids}) == len(ids):
        resampled = generator.choice(values, (_MEAN_RESAMPLES, len(values))).mean(1)
    else:
        question = np.unique(ids, return_inverse=True)[1]
        totals, counts = np.bincount(question, values), np.bincount(question)
        drawn = generator.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), _MEAN_RESAMPLES)
        resampled = drawn @ totals / (drawn @ counts)
    return percentile_interval(np.concatenate([[values.mean()], resampled]))


def crossed_interval(values: Floats) -> Interval:
    """The mean of values [seeds, questions], with an interval over other seeds and other questions; nan is no value.

    Seeds and questions are crossed random effects. With the mean squares M of the two-way analysis of variance, the
    mean of S seeds and Q questions has the variance (M_seeds + M_questions - M_rest) / (S Q). Each part is estimated
    from few values of its own, so each gets the quantile t of its own degrees of freedom:

        half width^2 = (t[S-1]^2 M_seeds + t[Q-1]^2 max(M_questions - M_rest, 0)) / (S Q)

    A bootstrap over seeds is far too narrow for two to five of them; ``scripts.study.coverage`` compares both. With one
    seed the interval says nothing of other seeds, with one question nothing of other questions. A seed or a question
    without any value counts as not there; where none has one, mean and bounds are nan.
    """
    values = _without_empty(values)
    if not values.size:
        return float("nan"), float("nan"), float("nan")
    mean = float(np.nanmean(values))
    filled = _filled(values)
    seeds, questions = filled.shape
    of_seeds, of_questions = filled.mean(1), filled.mean(0)
    square = 0.0
    if seeds > 1:
        square += stats.t.ppf(0.975, seeds - 1) ** 2 * of_seeds.var(ddof=1) / seeds
    if questions > 1:
        variance = of_questions.var(ddof=1) / questions
        if seeds > 1:
            rest = filled - of_seeds[:, None] - of_questions[None] + filled.mean()
            variance -= (rest**2).sum() / ((seeds - 1) * (questions - 1)) / (seeds * questions)
        square += stats.t.ppf(0.975, questions - 1) ** 2 * max(variance, 0.0)
    half = float(np.sqrt(square)) if seeds > 1 or questions > 1 else float("nan")
    return mean, mean - half, mean + half


def translated_interval(values: Floats, ids: Sequence[str]) -> Interval:
    """As :func:`crossed_interval`, of values [seeds, items] some of which are of translations of one question.

    The mean over items is a ratio: the sum of the values of a question's items, over how many items it has, each
    averaged over questions. So what varies over questions is the sum of the items' distances from the mean, to first
    order (the linearised variance of a ratio; Cochran, Sampling Techniques, 1977, section 6.4). The sums themselves
    would vary with the number of translations, even where all values are equal.

    Args:
        ids: [items] of the question that each is of; translations have the same one.
    """
    scored = np.flatnonzero((~np.isnan(values)).any(0))
    values, ids = _without_empty(values), [ids[int(number)] for number in scored]
    if not values.size or len({*ids}) == len(ids):
        return crossed_interval(values)
    question = np.unique(ids, return_inverse=True)[1]
    count = int(question.max()) + 1
    center = float(np.nanmean(values))
    totals = np.stack([np.bincount(question, row - center, count) for row in _filled(values)])
    mean, low, high = crossed_interval(totals * count / len(ids))
    return center, center - (mean - low), center + (high - mean)


def _without_empty(values: Floats) -> Floats:
    """The values [seeds, questions] without the seeds and the questions that have none."""
    given = ~np.isnan(values)
    return values[given.any(1)][:, given.any(0)]


def _filled(values: Floats) -> Floats:
    """The values with what the additive model of rows and columns says in the place of nan; none may be all nan."""
    missing = np.isnan(values)
    if not missing.any():
        return values
    mean = np.nanmean(values)
    rows, columns = np.nanmean(values, 1, keepdims=True) - mean, np.nanmean(values, 0, keepdims=True) - mean
    return np.where(missing, mean + rows + columns, values)


def seed_means(values: Floats) -> Floats:
    """The mean [seeds] of each seed's values [seeds, questions]; nan for a seed that has none."""
    counts = (~np.isnan(values)).sum(1)
    return np.where(counts > 0, np.nansum(values, 1) / np.maximum(counts, 1), np.nan)


def seed_interval(values: Floats) -> Interval:
    """The mean of values [n], one a seed, with the interval of Student's t; nan bounds with one seed."""
    mean, half = float(values.mean()), half_width(values)
    return mean, mean - half, mean + half


def paired_test(differences: Floats) -> tuple[float, float]:
    """Of paired differences [n], one a seed: the p-value of the t test against 0, and the effect size g.

    A seed whose difference is nan counts as not there.

    g is the mean in standard deviations of the differences, without the bias of few seeds. Both are nan with one seed,
    or where all differences are equal but for rounding, as 0.7 - 0.6 and 0.8 - 0.7 are; g also with two, whose standard
    deviation says too little for any correction.
    """
    differences = differences[~np.isnan(differences)]
    count = len(differences)
    if count < 2 or np.ptp(differences) <= _ROUNDING * max(1.0, float(np.abs(differences).max())):
        return float("nan"), float("nan")
    g = float(differences.mean() / differences.std(ddof=1)) * _correction(count - 1)
    return float(stats.ttest_1samp(differences, 0).pvalue), g


def _correction(freedom: int) -> float:
    """Hedges' correction Gamma(f/2) / (sqrt(f/2) Gamma((f - 1)/2)) for f degrees of freedom (Hedges 1981, equation 6e).

    nan for f = 1: the mean over standard deviation of two values has no expectation, and the correction would be 0.
    """
    if freedom < 2:
        return float("nan")
    logarithm = special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2) - np.log(freedom / 2) / 2
    return float(np.exp(logarithm))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number by Holm's method, which bounds the chance of any false alarm; nan stays nan.

    The i-th smallest of m is multiplied by m - i + 1, and none is below a smaller one's (Holm 1979).
    """
    given = np.array(p_values, np.float64)
    order = [position for position in np.argsort(given) if not np.isnan(given[position])]
    adjusted, largest = given.copy(), 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * given[position]))
        adjusted[position] = largest
    return [float(value) for value in adjusted]


def without_nan(value: Any) -> Any:
    """The value for JSON, which has no nan: None in its place, and a list for a tuple."""
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and np.isnan(value) else value
