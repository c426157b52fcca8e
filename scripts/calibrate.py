"""Measures how similar an embedder finds equal texts in each pair of languages: the file ``reward.calibration`` names.

    python -m scripts.calibrate --parallel parallel.parquet --out pairs.csv [--embedder use]

``parallel.parquet`` has the columns ``id``, ``article`` (integers), ``language`` (code or English name) and ``text``.
Texts of one id mean the same; texts of different articles do not. Beside the CSV, a JSON file holds the mean calibrated
similarity of equivalent and of mismatched texts, which help to choose ``reward.similarity_range``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.languages import code_of
from common.process import FatalError
from reward.calibration import MeanCalibration, PairStatistics, measure_pairs
from reward.similarity import Embedder, Vectors


@dataclass(frozen=True)
class Texts:
    """The texts of one language."""

    ids: NDArray[np.int64]  # [n], no id twice
    articles: NDArray[np.int64]  # [n]
    texts: list[str]


def read_parallel(path: Path) -> dict[str, Texts]:
    """The texts by language code.

    Raises:
        FatalError: the file cannot be read, lacks a column, or has an unknown language or an id twice in one.
    """
    try:
        table = pq.read_table(path, columns=["id", "article", "language", "text"])
        names: list[str] = table["language"].to_pylist()
        codes = np.array([code_of(name) for name in names])
        ids, articles = (np.asarray(table[name].to_pylist(), np.int64) for name in ("id", "article"))
    except (OSError, ValueError, TypeError, pa.ArrowInvalid, KeyError) as error:
        raise FatalError(f"cannot read parallel texts {path}: {error}") from None
    texts: list[str] = table["text"].to_pylist()
    parallel: dict[str, Texts] = {}
    for code in sorted(set(codes.tolist())):
        rows = np.flatnonzero(codes == code)
        if len(np.unique(ids[rows])) < len(rows):
            raise FatalError(f"{path}: an id occurs twice among the texts in {code!r}")
        parallel[code] = Texts(ids[rows], articles[rows], [texts[row] for row in rows])
    return parallel


def measure_levels(
    parallel: dict[str, Texts], embeddings: dict[str, Vectors], statistics: PairStatistics
) -> dict[str, float]:
    """Mean calibrated similarity over all text pairs with one id, and over all whose articles differ."""
    calibration = MeanCalibration(statistics)
    equivalent, mismatched = [], []
    for language, other in combinations_with_replacement(sorted(parallel), 2):
        first, second = parallel[language], parallel[other]
        similarities = embeddings[language] @ embeddings[other].T - calibration.offset(language, other)
        similarities = similarities.clip(-1, 1)
        equivalent.append(similarities[first.ids[:, None] == second.ids])
        mismatched.append(similarities[first.articles[:, None] != second.articles])
    return {
        "equivalent": float(np.concatenate(equivalent).mean()),
        "mismatched": float(np.concatenate(mismatched).mean()),
        "retained pairs": len(statistics.levels),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parallel", type=Path, required=True, help="parquet file of parallel texts")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write; the levels go into a JSON beside it")
    parser.add_argument("--embedder", default="use", help="as reward.embedder")
    parser.add_argument("--device", default="auto", help="as reward.device")
    arguments = parser.parse_args()
    try:
        parallel = read_parallel(arguments.parallel)
        embedder = Embedder(arguments.embedder, arguments.device)
    except FatalError as error:
        raise SystemExit(f"error: {error}") from None
    embeddings = {language: embedder.embed(texts.texts) for language, texts in parallel.items()}
    statistics = measure_pairs({language: texts.ids for language, texts in parallel.items()}, embeddings)
    levels = measure_levels(parallel, embeddings, statistics)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    statistics.write(arguments.out)
    arguments.out.with_suffix(".json").write_text(json.dumps(levels, indent=2) + "\n")
    print(f"{arguments.out}: {len(statistics.levels)} pairs of {len(parallel)} languages, mean {statistics.mean:.4f}")
    print(f"calibrated similarity: equivalent {levels['equivalent']:.3f}, mismatched {levels['mismatched']:.3f}")


if __name__ == "__main__":
    main()
