"""Checks whether answers still look like the texts that the calibration was measured on."""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from itertools import product

import numpy as np
from numpy.typing import NDArray

from reward.calibration.files import KINDS, Pair, Quantiles, pair_of

logger = logging.getLogger("reward")

_WINDOW = 512  # the newest similarities of a pair, which are compared
_LEAST = 64  # with fewer similarities, chance alone moves an empirical distribution by a sixth
_EVERY = 32  # new similarities of a pair between two comparisons
_GRID = np.linspace(-1, 1, 201)  # similarities at which distributions are compared
# Shares of equivalent, mismatched and hard text pairs, in steps of a tenth: [mixtures, 3].
_MIXTURES = np.array([(a, b, 10 - a - b) for a, b in product(range(11), range(11)) if a + b <= 10]) / 10


class Drift:
    """Compares the newest similarities of each pair of languages with those measured offline.

    How many answers are right depends on the policy and is not drift. The comparison is therefore with the nearest
    mixture of the equivalent, mismatched and hard text pairs, by the Kolmogorov-Smirnov distance in [0, 1]:

        D = min over mixtures of max over s of |F_online(s) - F_mixture(s)|.

    ``by_pair`` holds the drift of each pair as last computed.

    Args:
        quantiles: what was measured offline. A pair that is missing, or that lacks a kind of text pair, has no drift.
        warn_above: a warning is logged when the drift of a pair rises above this.
    """

    def __init__(self, quantiles: Quantiles | None, warn_above: float) -> None:
        self._warn_above = warn_above
        self._mixtures: dict[Pair, NDArray[np.float64]] = {}  # cumulative shares, [mixtures, grid]
        if quantiles is not None:
            for pair, tables in quantiles.tables.items():
                if all(kind in tables for kind in KINDS):
                    # Tables hold s / U, as ``Quantiles.cdf`` reads them, and what is observed is s.
                    at = np.minimum(1, _GRID / quantiles.anchors.get(pair, 1.0))
                    shares = [np.interp(at, tables[kind], quantiles.shares, 0.0, 1.0) for kind in KINDS]
                    self._mixtures[pair] = _MIXTURES @ np.array(shares)
        self._seen: defaultdict[Pair, deque[float]] = defaultdict(lambda: deque(maxlen=_WINDOW))
        self._counts: defaultdict[Pair, int] = defaultdict(int)
        self.by_pair: dict[Pair, float] = {}

    def observe(self, similarity: float, language: str, other: str) -> float:
        """Adds the similarity of an answer.

        Returns:
            The drift of the pair in [0, 1] as last computed; 0 while too little is known.
        """
        pair = pair_of(language, other)
        if pair not in self._mixtures:
            return 0.0
        self._seen[pair].append(similarity)
        self._counts[pair] += 1
        if self._counts[pair] >= _LEAST and self._counts[pair] % _EVERY == 0:
            ordered = np.sort(np.array(self._seen[pair]))
            online = np.searchsorted(ordered, _GRID, side="right") / len(ordered)
            before = self.by_pair.get(pair, 0.0)
            now = self.by_pair[pair] = float(np.abs(self._mixtures[pair] - online).max(1).min())
            if now > self._warn_above >= before:
                logger.warning(
                    "the similarities of answers for the pair %s and %s have drifted from their calibration: the "
                    "distance is %.2f over the last %d answers. Consider measuring the calibration again on such texts",
                    *pair,
                    now,
                    len(ordered),
                )
        return self.by_pair.get(pair, 0.0)
