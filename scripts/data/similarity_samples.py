"""Similarities of text pairs in each pair of languages, and the statistics that the reward calibrates with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from reward.calibration.files import KINDS, Level, Pair, PairStatistics, Quantiles
from scripts.data.parallel_texts import Texts
from scripts.study.statistics import Floats

_MISMATCHES, _HARD = 10, 2  # text pairs of these kinds for each text
_PROPORTIONS = {"equivalent": 1, "mismatched": _MISMATCHES, "hard": _HARD}  # of the kinds, where they are pooled
_SHARES = np.linspace(0, 1, 41)


@dataclass(frozen=True)
class Sample:
    """Similarities of the text pairs of one pair of languages, and the id of the text each was drawn for; by kind."""

    similarities: Mapping[str, Floats]
    ids: Mapping[str, NDArray[np.int64]]


Samples = dict[Pair, Sample]


def sample_pairs(parallel: Mapping[str, Texts], seed: int = 0) -> Samples:
    """The three kinds of text pairs of each unordered pair of languages with an id in common.

    For a language with itself the rule is the same: an equivalent pair is a text and itself, with similarity 1. That is
    the level of an answer that equals its reference, and calibration brings it to the common level as it does that of
    every other pair. Without it, answers in the reference's own language would be rated above all others, the wrong
    ones too.
    """
    random = np.random.default_rng(seed)
    samples: Samples = {}
    for pair in combinations_with_replacement(sorted(parallel), 2):
        first, second = (parallel[language] for language in pair)
        cosines = (first.vectors.astype(np.float64) @ second.vectors.T.astype(np.float64)).clip(-1, 1)
        rows, columns = np.nonzero(first.ids[:, None] == second.ids)
        if not len(rows):
            continue
        found: dict[str, list[tuple[int, float]]] = {kind: [] for kind in KINDS}
        found["equivalent"] = [(first.ids[r], cosines[r, c]) for r, c in zip(rows, columns, strict=True)]
        sides = [(first, second, cosines), (second, first, cosines.T)][: 1 if pair[0] == pair[1] else 2]
        for texts, others, table in sides:  # each text of either language is a reference once
            for row, (id, article) in enumerate(zip(texts.ids, texts.articles, strict=True)):
                wrong = np.flatnonzero(others.articles != article)
                drawn = random.choice(wrong, min(_MISMATCHES, len(wrong)), replace=False)
                near = np.where(others.ids == id, -2.0, table[row])
                hard = np.argsort(near)[max(len(near) - _HARD, 0) :]
                found["mismatched"] += [(id, table[row, column]) for column in drawn]
                found["hard"] += [(id, table[row, column]) for column in hard if near[column] > -2]
        samples[pair] = Sample(
            {kind: np.array([value for _, value in entries], np.float64) for kind, entries in found.items()},
            {kind: np.array([id for id, _ in entries], np.int64) for kind, entries in found.items()},
        )
    return samples


def pair_statistics(samples: Samples) -> PairStatistics:
    """Count, mean and standard deviation (0 for a single text) of the equivalent pairs."""
    levels = {}
    for pair, sample in samples.items():
        values = sample.similarities["equivalent"]
        levels[pair] = Level(len(values), float(values.mean()), float(values.std(ddof=len(values) > 1)))
    return PairStatistics(levels)


def quantiles(samples: Samples) -> Quantiles:
    """Quantiles of the similarities of each kind of text pairs, and of all kinds pooled ("all").

    Pooled, the kinds weigh 1 : 10 : 2, as LRPO (arXiv 2605.25360) draws them for each reference, however many of each
    there are. Between two languages the texts of both are references, so that an equivalent pair comes with twice as
    many wrong ones as within a language, and with more where one language has texts that the other lacks. Pooled as
    they come, an equally wrong answer would be worth more in another language.
    """
    tables = {}
    for pair, sample in samples.items():
        kinds = {kind: values for kind, values in sample.similarities.items() if len(values)}
        of_kinds = {kind: np.quantile(values, _SHARES) for kind, values in kinds.items()}
        tables[pair] = {"all": _pooled(kinds), **of_kinds}
    return Quantiles(_SHARES, tables, {})


def _pooled(kinds: Mapping[str, Floats]) -> Floats:
    """Quantiles of a mixture of the kinds in their proportions.

    Each value stands in the middle of its weight, and quantiles are linear in between, from the least value to the
    largest: ``np.quantile``, which has no weights for its linear method, gives the same where all weigh alike.
    """
    values = np.concatenate(list(kinds.values()))
    weights = np.concatenate([np.full(len(some), _PROPORTIONS[kind] / len(some)) for kind, some in kinds.items()])
    order = np.argsort(values)
    middle = np.cumsum(weights[order]) - weights[order] / 2
    span = middle[-1] - middle[0]
    pooled: Floats = np.interp(_SHARES, (middle - middle[0]) / span if span else middle * 0, values[order])
    return pooled
