"""Makes similarities of different language pairs comparable.

An encoder puts translations of one text nearer to each other in some pairs of languages than in others. Uncorrected,
that offset is reward for choosing a language, not for answering well.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.config import ConfigError
from common.languages import code_of, english_name

Pair: TypeAlias = tuple[str, str]  # two language codes in alphabetical order, possibly equal
Mode: TypeAlias = Literal["raw", "mean", "quantile", "zscore"]
KINDS = ("equivalent", "mismatched", "hard")  # of text pairs
_HEADER = ["lang_a", "lang_b", "count", "mean", "std"]
_LEAST_STD = 0.5  # of the common one: a few texts that happen to agree must not stretch a pair's scale without bound


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
        return self._pooled([level.mean for level in self.levels.values()])

    @property
    def std(self) -> float:
        """sigma_ref = sqrt(sum(n sigma^2) / sum(n)) over all pairs; nan without pairs."""
        return math.sqrt(self._pooled([level.std**2 for level in self.levels.values()]))

    def _pooled(self, values: list[float]) -> float:
        counts = [level.count for level in self.levels.values()]
        return sum(n * value for n, value in zip(counts, values, strict=True)) / sum(counts) if counts else math.nan

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
            raise ConfigError(
                f"cannot read reward.calibration = {path}: {error}. scripts.data.calibrate writes it; without one set "
                'reward.calibration_mode = "raw"'
            ) from None
        return cls(levels)

    def write(self, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(_HEADER)
            for pair, level in sorted(self.levels.items()):
                rows.writerow([*map(display, pair), level.count, level.mean, level.std])


def display(code: str) -> str:
    return english_name(code).capitalize()


def _parse(row: list[str]) -> tuple[Pair, Level]:
    if len(row) != len(_HEADER):
        raise ValueError(f"{len(row)} fields instead of {len(_HEADER)}")
    level = Level(int(row[2]), float(row[3]), float(row[4]))
    if level.count < 1 or not -1 <= level.mean <= 1 or not 0 <= level.std < math.inf:
        raise ValueError("count must be positive, mean a cosine and std not negative")
    return pair_of(code_of(row[0]), code_of(row[1])), level


@dataclass(frozen=True)
class Quantiles:
    """Similarities at given cumulative shares, of each kind of text pair and of all pooled, per pair of languages.

    As a file: JSON ``{"shares": [0, ..., 1], "pairs": [{"lang_a", "lang_b", "anchor", "all", "equivalent", ...}]}``.
    ``anchor`` is the upper anchor U of the published form, whose tables hold s / U; 1 where it is left out. Only "all"
    is needed to calibrate.
    """

    shares: NDArray[np.float64]  # [knots], from 0 to 1
    tables: Mapping[Pair, Mapping[str, NDArray[np.float64]]]  # kind or "all" -> [knots], not decreasing
    anchors: Mapping[Pair, float]

    def cdf(self, similarity: float, pair: Pair) -> float:
        """The share of a pair's pooled distribution up to min(1, s / U), linear between knots: 0 below, 1 above."""
        table = self.tables[pair]["all"]
        return float(np.interp(min(1.0, similarity / self.anchors.get(pair, 1.0)), table, self.shares, 0.0, 1.0))

    @classmethod
    def read(cls, path: Path) -> Quantiles:
        """
        Raises:
            ConfigError: the file cannot be read, or is malformed; names file and pair.
        """
        where = str(path)
        tables, anchors = {}, {}
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            shares = np.array(raw["shares"], np.float64)
            if not _increases(shares) or (shares[0], shares[-1]) != (0, 1):
                raise ValueError('"shares" must increase from 0 to 1')
            for row in raw["pairs"]:
                where = f"{path}, pair {row['lang_a']}, {row['lang_b']}"
                pair = pair_of(code_of(row["lang_a"]), code_of(row["lang_b"]))
                tables[pair] = {kind: np.array(row[kind], np.float64) for kind in ("all", *KINDS) if kind in row}
                anchors[pair] = float(row.get("anchor", 1.0))
                if not anchors[pair] > 0:
                    raise ValueError("the anchor must be positive")
                for kind, table in {"all": tables[pair]["all"], **tables[pair]}.items():
                    if table.shape != shares.shape or not _increases(table):
                        raise ValueError(f'"{kind}" must be {len(shares)} similarities in increasing order')
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}; scripts.data.calibrate writes it") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{where}: {error!r}") from None
        return cls(shares, tables, anchors)

    def write(self, path: Path) -> None:
        pairs = [
            {"lang_a": display(pair[0]), "lang_b": display(pair[1]), "anchor": self.anchors.get(pair, 1.0)}
            | {kind: table.round(6).tolist() for kind, table in tables.items()}
            for pair, tables in sorted(self.tables.items())
        ]
        path.write_text(json.dumps({"shares": self.shares.tolist(), "pairs": pairs}) + "\n", encoding="utf-8")


def _increases(values: NDArray[np.float64]) -> bool:
    return values.ndim == 1 and len(values) > 1 and bool((np.diff(values) >= 0).all())  # false with a nan


def quantile_path(calibration: Path) -> Path:
    """The quantile tables that belong to a CSV of statistics: beside it, under its name."""
    return calibration.with_suffix(".quantiles.json")


class Calibration:
    """Turns the similarity of an answer to its reference into its quality in [0, 1].

    With w = lambda n / (n + k) for a pair of n texts, and mu, sigma of its equivalent texts:

    * ``raw``: s' = s;
    * ``mean``: s' = s - w (mu - mu_ref), LRPO's;
    * ``zscore``: s' = mu_ref + sigma_ref (s - m) / d, m = mu_ref + w (mu - mu_ref),
      d = max(sigma_ref / 2, sigma_ref + w (sigma - sigma_ref));
    * ``quantile``: the quality is the share of the pair's offline distribution up to s.

    The first three clip s' to [-1, 1], and the quality is then clip((s' - low) / (high - low), 0, 1); LRPO's
    (s' + 1) / 2 is the range (-1, 1). A pair without statistics is left raw, or under ``quantile`` takes the median of
    what the pairs with statistics give.

    Args:
        weight: lambda; 0 leaves every similarity raw, 1 removes a pair's whole offset.
        shrink: k; the larger, the less the statistics of few texts count.
        scale: (low, high).
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
        self._lines: dict[Pair, tuple[float, float]] = {}  # s' = slope s + shift
        if mode in ("mean", "zscore"):
            center, spread = statistics.mean, statistics.std
            for pair, level in statistics.levels.items():
                trust = weight * level.count / (level.count + shrink)
                mean, std = center + trust * (level.mean - center), spread + trust * (level.std - spread)
                ratio = spread / max(std, _LEAST_STD * spread) if mode == "zscore" and spread else 1.0
                self._lines[pair] = (ratio, center - ratio * mean)

    @classmethod
    def load(
        cls, mode: Mode, path: Path | None, weight: float, shrink: float, scale: tuple[float, float]
    ) -> Calibration:
        """
        Raises:
            ConfigError: a file that the mode needs is missing or malformed.
        """
        if path is None or mode == "raw":
            return cls("raw", PairStatistics({}), None, weight, shrink, scale)
        quantiles = Quantiles.read(quantile_path(path)) if mode == "quantile" else None
        return cls(mode, PairStatistics.read(path), quantiles, weight, shrink, scale)

    def knows(self, language: str, other: str) -> bool:
        """Whether the pair has the statistics that the mode needs."""
        known = self._quantiles.tables if self._quantiles is not None else self._lines
        return self._mode == "raw" or pair_of(language, other) in known

    def __call__(self, similarity: float, language: str, other: str) -> float:
        pair = pair_of(language, other)
        if self._quantiles is not None:
            asked = [pair] if pair in self._quantiles.tables else list(self._quantiles.tables)
            return float(np.median([self._quantiles.cdf(similarity, each) for each in asked]))
        slope, shift = self._lines.get(pair, (1.0, 0.0))
        low, high = self._scale
        return min(1.0, max(0.0, (min(1.0, max(-1.0, slope * similarity + shift)) - low) / (high - low)))
