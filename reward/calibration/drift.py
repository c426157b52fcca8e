"""Whether answers still look like the texts the calibration was measured on."""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from itertools import product

import numpy as np
from numpy.typing import NDArray

from reward.calibration.files import KINDS, Pair, Quantiles, pair_of

logger = logging.getLogger("reward")

_WINDOW = 512  # similarities of a pair that are compared
_LEAST = 64  # with fewer, chance alone moves an empirical distribution by a sixth
_EVERY = 32
_GRID = np.linspace(-1, 1, 201)
_MIXTURES = np.array([(a, b, 10 - a - b) for a, b in product(range(11), range(11)) if a + b <= 10]) / 10


class Drift:
    """Compares the running similarities of each pair of languages with the offline ones.

    How many answers are right is the policy's affair and no drift, so the comparison is with the nearest mixture of the
    equivalent, mismatched and hard text pairs: D = min over mixtures of max over s |F_online(s) - F_mixture(s)|, a
    Kolmogorov-Smirnov distance in [0, 1].

    Args:
        quantiles: offline; a pair it lacks, or has without its kinds, has no drift.
        warn_above: logs a warning when a pair's drift rises above this.
    """

    def __init__(self, quantiles: Quantiles | None, warn_above: float) -> None:
        self._warn_above = warn_above
        self._mixtures: dict[Pair, NDArray[np.float64]] = {}  # cumulative shares, [mixtures, grid]
        if quantiles is not None:
            for pair, tables in quantiles.tables.items():
                if all(kind in tables for kind in KINDS):
                    shares = [np.interp(_GRID, tables[kind], quantiles.shares, 0.0, 1.0) for kind in KINDS]
                    self._mixtures[pair] = _MIXTURES @ np.array(shares)
        self._seen: defaultdict[Pair, deque[float]] = defaultdict(lambda: deque(maxlen=_WINDOW))
        self._counts: defaultdict[Pair, int] = defaultdict(int)
        self.by_pair: dict[Pair, float] = {}

    def observe(self, similarity: float, language: str, other: str) -> float:
        """Enters a similarity. Returns the pair's drift as last computed; 0 while too little is known."""
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
                    "similarities of %s and %s answers have drifted from their calibration: distance %.2f over the "
                    "last %d. Consider measuring it again on texts like these", *pair, now, len(ordered),
                )  # fmt: skip
        return self.by_pair.get(pair, 0.0)
