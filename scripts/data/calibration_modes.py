"""How well each calibration mode does on texts that it was not measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from reward.calibration.files import KINDS, Pair
from reward.calibration.formulas import Calibration, Mode
from scripts.data.similarity_samples import Samples, pair_statistics, quantiles
from scripts.study.statistics import Floats, Interval, percentile_interval

_RESAMPLES = 500
_AUC_RESAMPLES = 100  # an area takes longer to compute than a mean


@dataclass(frozen=True)
class ModeResult:
    """How a calibration mode does on texts it was not measured on; qualities in [0, 1]."""

    spread: Interval  # standard deviation over pairs of languages of the mean quality of equivalent texts
    auc: Interval  # of equivalent against hard pairs
    relative_spread: float  # spread over separation: modes stretch the scale differently
    separation: float  # mean quality of equivalent minus that of mismatched texts
    wrong_spread: Interval  # as the spread, of hard pairs; pairs of a language with itself are among the pairs

    def __str__(self) -> str:
        return (
            f"spread of equivalent texts {interval_text(self.spread)}, over separation {self.relative_spread:.3f}; "
            f"AUC against hard ones {interval_text(self.auc)}; spread of hard ones {interval_text(self.wrong_spread)}"
        )


def interval_text(value: Interval) -> str:
    return f"{value[0]:.4f} [{value[1]:.4f}, {value[2]:.4f}]"


def judge(samples: Samples, measured: Samples, seed: int = 0) -> dict[str, ModeResult]:
    """The result of each calibration mode.

    The spread is the standard deviation over pairs of the mean quality of equivalent texts; the AUC is the probability
    that an equivalent text pair is worth more than a hard one, both drawn from all pairs. Both are over pairs of
    different languages, because a text equals itself, whatever the mode. Wrong texts do differ within a language: the
    spread of hard pairs, over all pairs of languages, shows whether a wrong answer earns more in some of them.
    Intervals resample ids.

    Args:
        samples: of the texts to judge on.
        measured: of the texts whose statistics are used.
    """
    every = [pair for pair in samples if pair in measured]
    pairs = [pair for pair in every if pair[0] != pair[1]]
    found = [samples[pair].ids[kind] for pair in every for kind in KINDS]
    ids = np.unique(np.concatenate([np.empty(0, np.int64), *found]))
    draws = np.random.default_rng(seed).multinomial(len(ids), np.full(len(ids), 1 / max(len(ids), 1)), _RESAMPLES)
    weights = np.concatenate([np.ones((1, len(ids))), draws])  # first as it is, then resampled: [1 + resamples, ids]
    results: dict[str, ModeResult] = {}
    for mode in get_args(Mode) if pairs and len(ids) > 1 else ():
        calibrate = Calibration(mode, pair_statistics(measured), quantiles(measured))
        values = {k: {p: calibrated(samples[p].similarities[k], p, calibrate) for p in every} for k in KINDS}
        at = {k: {p: np.searchsorted(ids, samples[p].ids[k]) for p in every} for k in KINDS}
        good, bad, unlike = (
            np.concatenate([values[kind][pair] for pair in pairs]) for kind in ("equivalent", "hard", "mismatched")
        )
        good_at, bad_at = (np.concatenate([at[kind][pair] for pair in pairs]) for kind in ("equivalent", "hard"))
        aucs = [auc(good, bad, one[good_at], one[bad_at]) for one in weights[: 1 + _AUC_RESAMPLES]]
        apart = float(good.mean() - unlike.mean())
        spreads = _spreads(values["equivalent"], at["equivalent"], weights, pairs)
        results[mode] = ModeResult(
            spread=percentile_interval(spreads),
            auc=percentile_interval(aucs),
            relative_spread=spreads[0] / apart,
            separation=apart,
            wrong_spread=percentile_interval(_spreads(values["hard"], at["hard"], weights, every)),
        )
    return results


def calibrated(similarities: Floats, pair: Pair, calibrate: Calibration) -> Floats:
    """The qualities in [0, 1] of similarities in a pair of languages."""
    return np.array([calibrate(similarity, *pair) for similarity in similarities])


def _spreads(
    values: Mapping[Pair, Floats], at: Mapping[Pair, NDArray[np.intp]], weights: Floats, pairs: Sequence[Pair]
) -> Floats:
    """The standard deviation over pairs of their mean quality, for each row of the weights of ids."""
    spreads: Floats = np.nanstd(np.stack([_means(values[p], weights[:, at[p]]) for p in pairs]), axis=0)
    return spreads


def _means(values: Floats, weights: Floats) -> Floats:
    total = weights.sum(1)
    return np.where(total > 0, weights @ values / np.maximum(total, 1), np.nan)


def auc(good: Floats, bad: Floats, good_weights: Floats, bad_weights: Floats) -> float:
    """P(good > bad) + P(good = bad) / 2 for weighted samples."""
    order = np.argsort(bad)
    below = np.concatenate([[0.0], np.cumsum(bad_weights[order])])
    left, right = (below[np.searchsorted(bad[order], good, side)] for side in ("left", "right"))
    total = good_weights.sum() * bad_weights.sum()
    return float((good_weights * (left + right)).sum() / 2 / total) if total else float("nan")
