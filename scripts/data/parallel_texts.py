"""Texts that mean the same in several languages, by language; what ``scripts.data.calibrate`` measures on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.endpoint import Failure
from common.process import FatalError
from learner.data.problems import PROBLEMS_SUFFIX, Place, Problems, RowError
from learner.data.records import Record, Unreadable, read_records
from learner.data.rows import Rules, check_text, parse_language
from reward.embedder import Vectors
from reward.gate import LanguageGate
from scripts.data.endpoint import translate
from scripts.data.sources import read, tell
from scripts.data.tables import write

_KEYS = ("id", "article", "language", "text")
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
    """The texts of a file, by language code. Rows that are broken are printed with file, row, key and reason.

    Args:
        path: a file or directory in any form that ``learner/data/records.py`` reads.
        columns: the file's names for id, article, language and text, in this order, separated by commas.

    Raises:
        FatalError: the file cannot be read, lacks a column, or has no good row.
    """
    names = columns.split(",")
    if len(names) != len(_KEYS):
        raise FatalError(f"--columns {columns!r}: the four names of {', '.join(_KEYS)} are needed")
    problems, seen = Problems(), dict[tuple[str, str], Place]()
    good: dict[str, list[tuple[str, str, str]]] = {}
    for place, record in read_records(str(path)):
        try:
            id_, article, language, text = _parallel_row(record, names)
            if (first := seen.setdefault((id_, language), place)) is not place:
                raise RowError(names[0], f"{first} has the same id {id_!r} in the same language")
            good.setdefault(language, []).append((id_, article, text))
        except RowError as error:
            problems.add(place, error)
    for line in problems.lines("broken"):
        print(f"broken: {line}")
    if not good:
        raise FatalError(f"{path} has no good row: {next(iter(problems.found), 'it is empty')}")
    numbers: dict[str, dict[str, int]] = {"id": {}, "article": {}}
    return {
        language: Texts(
            np.array([numbers["id"].setdefault(id_, len(numbers["id"])) for id_, _, _ in rows], np.int64),
            np.array([numbers["article"].setdefault(one, len(numbers["article"])) for _, one, _ in rows], np.int64),
            [text for _, _, text in rows],
            _NOT_EMBEDDED,
        )
        for language, rows in sorted(good.items())
    }


def _parallel_row(record: Record | Unreadable, names: list[str]) -> tuple[str, str, str, str]:
    if isinstance(record, Unreadable):
        raise RowError("", record.reason)
    if missing := [name for name in names if name not in record]:
        raise RowError(missing[0], f"there is no such column among {', '.join(record)}: name yours with --columns")
    id_, article, language, text = (record[name] for name in names)
    for name, value in zip(names[:2], (id_, article), strict=True):
        if value is None:
            raise RowError(name, "it is missing (null)")
    return str(id_), str(article), parse_language(language), check_text(text, names[3])


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


def translate_references(references: str, rules: Rules, url: str, model: str, languages: list[str], out: Path) -> None:
    """Writes the references of a data set and their translations as parallel texts; blocks until all are translated.

    Args:
        rules: how the rows of the data set are read.

    Raises:
        FatalError: the references cannot be read, or no translation was usable.
    """
    problems = Problems()
    sources = {row.reference: row.language for row in read([references], rules, problems)}
    tell(problems, out.with_suffix(PROBLEMS_SUFFIX))
    if not sources:
        raise FatalError(f"{references} has no good row: {next(iter(problems.found), 'it is empty')}")
    wanted: list[dict[str, Any]] = [
        {"id": id, "article": id, "language": language, "text": text, "translated": language != source}
        for id, (text, source) in enumerate(sources.items())
        for language in dict.fromkeys([source, *languages])
    ]
    asked = [row for row in wanted if row["translated"]]
    texts = [(row["text"], row["language"]) for row in asked]
    answers = translate(f"{model}@{url}", out.with_suffix(".answers.sqlite"), texts)
    for row, answer in zip(asked, answers, strict=True):
        row["text"] = "" if isinstance(answer, Failure) else answer
    found = LanguageGate().judge([row["text"] for row in wanted], [row["language"] for row in wanted])
    kept = [row for row, one in zip(wanted, found, strict=True) if one.matches]
    print(f"{len(kept)} of {len(wanted)} texts are in their language")
    if not any(row["translated"] for row in kept):
        raise FatalError(f"{url} gave no translation in the language asked for")
    write(kept, out)
