"""The files of a calibration: a CSV with the statistics of each pair of languages, and JSON tables of quantiles.

``scripts.data.calibrate`` measures and writes them; ``reward.calibration`` names the CSV.
"""

from __future__ import annotations

import csv
import functools
import json
import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.config import ConfigError, RewardConfig
from common.languages import code_of, display_name, is_variety, near_names

logger = logging.getLogger("reward")

Pair: TypeAlias = tuple[str, str]  # two language codes in alphabetical order, possibly equal
KINDS = ("equivalent", "mismatched", "hard")  # the kinds of text pairs that are measured
MEASURED_IN = "embedder dtype"  # key of the summary
_HEADER = ["lang_a", "lang_b", "count", "mean", "std"]


def pair_of(language: str, other: str) -> Pair:
    """The pair of two language codes, the same in either order."""
    return (language, other) if language <= other else (other, language)


@dataclass(frozen=True)
class Level:
    """Mean and standard deviation of the cosine similarities of ``count`` pairs of equivalent texts."""

    count: int
    mean: float
    std: float


@dataclass(frozen=True)
class PairStatistics:
    """The statistics of each unordered pair of languages; a language may form a pair with itself.

    The file is the CSV of the LRPO reference, ``lang_a,lang_b,count,mean,std``, with English names ("Chinese").
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
        """Reads the CSV. Rows of languages that this process does not know are left out, and a warning names them.

        Raises:
            ConfigError: the file cannot be read or is malformed, also where a name is misspelt; the message names
                file and line. Or all rows are left out.
        """
        levels: dict[Pair, Level] = {}
        known = _KnownLanguages(path)
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.reader(file)
                if next(rows, None) != _HEADER:
                    raise ConfigError(f"{path}, line 1: the header must be {','.join(_HEADER)}")
                for row in rows:
                    try:
                        level = _parse(row)
                        pair = known.pair(row[0], row[1])
                        if pair in levels:
                            raise ValueError(f"the pair {row[0]}, {row[1]} already occurred before")
                    except ValueError as error:
                        raise ConfigError(f"{path}, line {rows.line_num}: {error}") from None
                    if pair is not None:
                        levels[pair] = level
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(
                f"cannot read reward.calibration = {path}: {error}. scripts.data.calibrate writes this file; to run "
                'without it, with similarities as they are, set reward.calibration = "" and '
                'reward.calibration_mode = "raw"'
            ) from None
        known.report(levels)
        return cls(levels)

    def write(self, path: Path) -> None:
        """Writes the CSV, pairs in alphabetical order of their codes. Raises OSError."""
        with path.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(_HEADER)
            for pair, level in sorted(self.levels.items()):
                rows.writerow([*map(display, pair), level.count, level.mean, level.std])


def display(code: str) -> str:
    """The English name of a language with a capital letter, as the files spell it."""
    return display_name(code)


class _KnownLanguages:
    """The languages of a file that this process knows: a run may have declared others before it was measured."""

    def __init__(self, path: Path) -> None:
        self._path, self._unknown = path, set[str]()

    def pair(self, first: str, second: str) -> Pair | None:
        """The pair of two languages by name; None where one is not known, or only as a variety of another.

        Raises:
            ValueError: a name is none, or seems to be a known one that is misspelt.
        """
        codes = [code for code in map(self._code, (first, second)) if code]
        return pair_of(codes[0], codes[1]) if len(codes) == 2 else None

    def _code(self, name: str) -> str:
        try:
            code = code_of(name)
        except ValueError as error:
            if not name.strip():
                raise
            if near_names(name):
                raise ValueError(f"{error} If it is another language, declare it with run.other_languages") from None
            code = ""
        if not code or is_variety(name):
            self._unknown.add(name)
            return ""
        return code

    def report(self, kept: Collection[Pair]) -> None:
        """Names the languages that were not known, by a warning where there are pairs of others.

        Raises:
            ConfigError: every pair is left out.
        """
        if self._unknown and not kept:
            raise ConfigError(
                f"{self._path}: no pair of languages that this run knows, as all are with "
                f"{', '.join(sorted(self._unknown))}: declare those with run.other_languages that the run has, or name "
                "another file in reward.calibration"
            )
        if self._unknown:
            stem = self._path.name.removesuffix(".quantiles.json").removesuffix(".csv")
            _warn_of_unknown(self._path.with_name(stem), tuple(sorted(self._unknown)))


@functools.cache  # once for a calibration, whose files are read one after the other
def _warn_of_unknown(stem: Path, names: tuple[str, ...]) -> None:
    logger.warning(
        "%s.csv: the pairs with %s are left out, as this run does not know such a language: correct it where it is "
        "misspelt, or declare it with run.other_languages where the run has it",
        stem,
        ", ".join(names),
    )


def _parse(row: list[str]) -> Level:
    if len(row) != len(_HEADER):
        raise ValueError(f"{len(row)} fields instead of {len(_HEADER)}")
    level = Level(int(row[2]), float(row[3]), float(row[4]))
    if level.count < 1 or not -1 <= level.mean <= 1 or not 0 <= level.std < math.inf:
        raise ValueError("count must be positive, mean a cosine and std not negative")
    return level


@dataclass(frozen=True)
class Quantiles:
    """Tables of quantiles for each pair of languages: similarities at given cumulative shares.

    A pair has one table for each kind of text pair, and one, "all", for the three kinds pooled. Only "all" is needed to
    calibrate.

    The file is JSON, ``{"shares": [0, ..., 1], "pairs": [{"lang_a", "lang_b", "anchor", "all", "equivalent", ...}]}``.
    ``anchor`` is the upper anchor U of the published form, in which tables hold s / U; it is 1 where it is left out.
    """

    shares: NDArray[np.float64]  # [knots], from 0 to 1
    tables: Mapping[Pair, Mapping[str, NDArray[np.float64]]]  # kind or "all" -> [knots], in increasing order
    anchors: Mapping[Pair, float]

    def cdf(self, similarity: float, pair: Pair) -> float:
        """The share of a pair's pooled distribution that lies at or below min(1, s / U).

        The distribution function is linear between the knots of the table, 0 below them and 1 above them.

        Raises:
            KeyError: the pair has no table.
        """
        table = self.tables[pair]["all"]
        return float(np.interp(min(1.0, similarity / self.anchors.get(pair, 1.0)), table, self.shares, 0.0, 1.0))

    @classmethod
    def read(cls, path: Path) -> Quantiles:
        """Reads the JSON tables. Pairs of languages that this process does not know are left out, and a warning names
        them.

        Raises:
            ConfigError: the file cannot be read or is malformed, also where a name is misspelt; the message names
                file and pair. Or all pairs are left out.
        """
        where = str(path)
        tables, anchors = {}, {}
        known = _KnownLanguages(path)
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            shares = np.array(raw["shares"], np.float64)
            if not _increases(shares) or (shares[0], shares[-1]) != (0, 1):
                raise ValueError('"shares" must increase from 0 to 1')
            for row in raw["pairs"]:
                where = f"{path}, pair {row['lang_a']}, {row['lang_b']}"
                pair = known.pair(row["lang_a"], row["lang_b"])
                if pair is None:
                    continue
                tables[pair] = {kind: np.array(row[kind], np.float64) for kind in ("all", *KINDS) if kind in row}
                anchors[pair] = float(row.get("anchor", 1.0))
                if not anchors[pair] > 0:
                    raise ValueError("the anchor must be positive")
                for kind, table in {"all": tables[pair]["all"], **tables[pair]}.items():
                    if table.shape != shares.shape or not _increases(table):
                        raise ValueError(f'"{kind}" must be {len(shares)} similarities in increasing order')
        except OSError as error:
            raise ConfigError(
                f"cannot read {path}: {error.strerror}; scripts.data.calibrate writes this file"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{where}: {error!r}") from None
        known.report(tables)
        return cls(shares, tables, anchors)

    def write(self, path: Path) -> None:
        """Writes the JSON tables, similarities rounded to six decimals. Raises OSError."""
        pairs = [
            {"lang_a": display(pair[0]), "lang_b": display(pair[1]), "anchor": self.anchors.get(pair, 1.0)}
            | {kind: table.round(6).tolist() for kind, table in tables.items()}
            for pair, tables in sorted(self.tables.items())
        ]
        path.write_text(json.dumps({"shares": self.shares.tolist(), "pairs": pairs}) + "\n", encoding="utf-8")


def _increases(values: NDArray[np.float64]) -> bool:
    return (
        values.ndim == 1 and len(values) > 1 and bool((np.diff(values) >= 0).all())
    )  # also false where a value is nan


def warning_of_dtype(config: RewardConfig, dtype: str) -> str:
    """What to say where ``reward.calibration`` was measured by an embedder that computed in another dtype.

    Empty where it was not, where nothing is calibrated, and where the file beside the CSV does not say: that of the
    public code has none.

    Args:
        dtype: in which the embedder of this process computes.
    """
    if config.calibration is None or config.calibration_mode == "raw":
        return ""
    try:
        measured = json.loads(summary_path(config.calibration).read_text(encoding="utf-8"))[MEASURED_IN]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if measured == dtype:
        return ""
    return (
        f"{config.calibration} was measured by an embedder in {measured}, and this one computes in {dtype}: set "
        f'reward.embedder_dtype = "{measured}", or calibrate again with --dtype {dtype}'
    )


def summary_path(calibration: Path) -> Path:
    """The path of what was measured besides, as JSON: beside the CSV, ``NAME.json``."""
    return calibration.with_suffix(".json")


def quantile_path(calibration: Path) -> Path:
    """The path of the quantile tables that belong to a CSV of statistics: beside it, ``NAME.quantiles.json``."""
    return calibration.with_suffix(".quantiles.json")
