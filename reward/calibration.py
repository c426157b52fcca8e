"""Makes similarities of different language pairs comparable.

An encoder puts translations of one text nearer to each other in some pairs of languages than in others. Uncorrected,
that offset is reward for choosing a language, not for answering well.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.config import ConfigError
from common.languages import code_of, english_name

Pair: TypeAlias = tuple[str, str]  # two language codes in alphabetical order, possibly equal
_HEADER = ["lang_a", "lang_b", "count", "mean", "std"]


def pair_of(language: str, other: str) -> Pair:
    return (language, other) if language <= other else (other, language)


@dataclass(frozen=True)
class Level:
    """Similarity of ``count`` equivalent texts in the two languages of a pair."""

    count: int
    mean: float
    std: float


@dataclass(frozen=True)
class PairStatistics:
    """The level of each unordered pair of languages, a language with itself included.

    As a file: the CSV of the LRPO reference, ``lang_a,lang_b,count,mean,std``, with English names ("Chinese").
    """

    levels: Mapping[Pair, Level]

    @property
    def mean(self) -> float:
        """mu_ref = sum(n mu) / sum(n) over all pairs; nan without pairs."""
        count = sum(level.count for level in self.levels.values())
        return sum(level.count * level.mean for level in self.levels.values()) / count if count else math.nan

    @classmethod
    def read(cls, path: Path) -> PairStatistics:
        """
        Raises:
            ConfigError: the file cannot be read, or is malformed; the message names file and line.
        """
        levels: dict[Pair, Level] = {}
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.reader(file)
                if next(rows, None) != _HEADER:
                    raise ConfigError(f"{path}, line 1: the header must be {','.join(_HEADER)}")
                for row in rows:
                    try:
                        pair, level = _parse(row)
                        if pair in levels:
                            raise ValueError(f"the pair {row[0]}, {row[1]} was given before")
                    except ValueError as error:
                        raise ConfigError(f"{path}, line {rows.line_num}: {error}") from None
                    levels[pair] = level
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"cannot read calibration {path}: {error}") from None
        return cls(levels)

    def write(self, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(_HEADER)
            for (language, other), level in sorted(self.levels.items()):
                names = [english_name(code).capitalize() for code in (language, other)]
                rows.writerow([*names, level.count, level.mean, level.std])


def _parse(row: list[str]) -> tuple[Pair, Level]:
    if len(row) != len(_HEADER):
        raise ValueError(f"{len(row)} fields instead of {len(_HEADER)}")
    level = Level(int(row[2]), float(row[3]), float(row[4]))
    if level.count < 1 or not -1 <= level.mean <= 1 or not 0 <= level.std < math.inf:
        raise ValueError("count must be positive, mean a cosine and std not negative")
    return pair_of(code_of(row[0]), code_of(row[1])), level


class MeanCalibration:
    """s' = clip(s - lambda w (mu_pair - mu_ref), -1, 1) with w = n / (n + k), LRPO's mean calibration.

    Args:
        statistics: gives mu_pair, mu_ref and n; the similarity of a pair it does not hold is left raw.
        weight: lambda; 0 leaves every similarity raw, 1 removes a pair's whole offset.
        shrink: k; the larger, the less the statistics of few texts count.
    """

    def __init__(self, statistics: PairStatistics, weight: float = 1.0, shrink: float = 0.0) -> None:
        center = statistics.mean
        self._offsets = {
            pair: weight * level.count / (level.count + shrink) * (level.mean - center)
            for pair, level in statistics.levels.items()
        }

    def offset(self, language: str, other: str) -> float:
        """lambda w (mu_pair - mu_ref): what an equivalent pair of texts has too much; 0 without statistics."""
        return self._offsets.get(pair_of(language, other), 0.0)

    def __call__(self, similarity: float, language: str, other: str) -> float:
        return min(1.0, max(-1.0, similarity - self.offset(language, other)))


def on_scale(similarity: float, similarity_range: tuple[float, float]) -> float:
    """r = clip((s' - low) / (high - low), 0, 1); the paper's (s' + 1) / 2 is the range (-1, 1)."""
    low, high = similarity_range
    return min(1.0, max(0.0, (similarity - low) / (high - low)))


def measure_pairs(
    ids: Mapping[str, NDArray[np.int64]], embeddings: Mapping[str, NDArray[np.float32]]
) -> PairStatistics:
    """Statistics from parallel texts: texts of one id mean the same.

    The diagonal follows from the same rule: a text and itself, mean 1 and std 0. That is the level of an answer that
    equals its reference, and calibration brings it to mu_ref as it does that of every other pair. Without the diagonal,
    answers in the reference's own language would stay 1 - mu_ref above the rest, the wrong ones too.

    Args:
        ids: by language, [n], no id twice.
        embeddings: by language, [n, dimension], rows of length 1 in the order of its ids.

    Returns:
        The sample mean and standard deviation (0 for a single text) of each pair of languages with an id in common.
    """
    levels: dict[Pair, Level] = {}
    for language, other in combinations_with_replacement(sorted(ids), 2):
        common, rows, other_rows = np.intersect1d(ids[language], ids[other], assume_unique=True, return_indices=True)
        if not len(common):
            continue
        cosines = np.einsum("nd,nd->n", embeddings[language][rows], embeddings[other][other_rows], dtype=np.float64)
        cosines = cosines.clip(-1, 1)
        levels[language, other] = Level(len(common), float(cosines.mean()), float(cosines.std(ddof=len(common) > 1)))
    return PairStatistics(levels)
