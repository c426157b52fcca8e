"""Texts that mean the same in several languages, by language; what ``scripts.data.calibrate`` measures on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.endpoint import Failure
from common.languages import code_of
from common.process import FatalError
from learner.work.tables import read_table
from reward.embedder import Vectors
from reward.gate import LanguageGate
from scripts.data.endpoint import translate
from scripts.data.prepare import write

_NOT_EMBEDDED: Vectors = np.empty((0, 0), np.float32)


@dataclass(frozen=True)
class Texts:
    """The texts of one language."""

    ids: NDArray[np.int64]  # [n], no id twice
    articles: NDArray[np.int64]  # [n]
    texts: list[str]
    vectors: Vectors  # [n, dimension], rows of length 1; empty until embedded

    def part(self, rows: NDArray[np.intp]) -> Texts:
        """The texts of these rows."""
        texts = [self.texts[row] for row in rows]
        return Texts(
            self.ids[rows], self.articles[rows], texts, self.vectors[rows] if len(self.vectors) else _NOT_EMBEDDED
        )


def read_parallel(path: Path, columns: str = "id,article,language,text") -> dict[str, Texts]:
    """The texts of a parquet file, by language code.

    Args:
        columns: the file's names for id, article, language and text, in this order, separated by commas.

    Raises:
        FatalError: the file cannot be read, lacks a column, or has an unknown language or an id twice in one.
    """
    try:
        of_id, of_article, of_language, of_text = columns.split(",")
        table = read_table(str(path))
        codes = np.array([code_of(name) for name in table[of_language].to_pylist()])
        ids, articles = (np.unique(table[name].to_pylist(), return_inverse=True)[1] for name in (of_id, of_article))
    except (ValueError, TypeError, KeyError) as error:
        raise FatalError(f"cannot read parallel texts {path} (columns {columns}): {error}") from None
    every = Texts(ids, articles, table[of_text].to_pylist(), _NOT_EMBEDDED)
    parallel: dict[str, Texts] = {}
    for code in sorted(set(codes.tolist())):
        rows = np.flatnonzero(codes == code)
        if len(np.unique(ids[rows])) < len(rows):
            raise FatalError(f"{path}: an id occurs twice among the texts in {code!r}")
        parallel[code] = every.part(rows)
    return parallel


def halves(parallel: Mapping[str, Texts], seed: int) -> list[dict[str, Texts]]:
    """The texts in two random halves of the ids: one to measure on, one to judge on."""
    ids = np.unique(np.concatenate([texts.ids for texts in parallel.values()]))
    chosen = np.random.default_rng(seed).permutation(ids)[: len(ids) // 2]
    return [
        {
            language: texts.part(rows)
            for language, texts in parallel.items()
            if len(rows := np.flatnonzero(np.isin(texts.ids, chosen) == inside))
        }
        for inside in (True, False)
    ]


def translate_references(references: Path, url: str, model: str, languages: list[str], out: Path) -> None:
    """Writes the references of a data set and their translations as parallel texts; blocks until all are translated.

    Raises:
        FatalError: the references cannot be read, or no translation was usable.
    """
    try:
        rows = read_table(str(references)).to_pylist()
        sources = {row["reward_model"]["ground_truth"]: code_of(row["extra_info"]["language"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise FatalError(f"cannot read references {references}: {error!r}") from None
    wanted = [
        {"id": id, "article": id, "language": language, "text": text, "translated": language != source}
        for id, (text, source) in enumerate(sources.items())
        for language in dict.fromkeys([source, *languages])
    ]
    asked = [row for row in wanted if row["translated"]]
    texts = [(row["text"], row["language"]) for row in asked]
    answers = translate(f"{model}@{url}", out.with_suffix(".answers.sqlite"), texts)
    for row, answer in zip(asked, answers, strict=True):
        row["text"] = "" if isinstance(answer, Failure) else answer
    spoken = LanguageGate().detect([row["text"] for row in wanted])
    kept = [row for row, language in zip(wanted, spoken, strict=True) if language == row["language"]]
    print(f"{len(kept)} of {len(wanted)} texts are in their language")
    if not any(row["translated"] for row in kept):
        raise FatalError(f"{url} gave no translation in the language asked for")
    write(kept, out)
