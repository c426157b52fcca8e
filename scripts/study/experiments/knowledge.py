"""Which languages know what in an offline world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

SETS = ("train", "heldout")


@dataclass(frozen=True)
class Knowledge:
    """Who knows what, by the row of a question in its file. One fact is asked in several rows, once in each language.

    Args:
        languages: set of questions -> row -> languages that know the answer.
        facts: row of a trained question -> the fact that it asks for.
    """

    languages: Mapping[str, Mapping[int, set[str]]]
    facts: Mapping[int, str]


def read_knowledge(world: Path) -> Knowledge:
    """The knowledge of the policies of an offline world before they are trained."""
    fact_of: dict[str, str] = {}
    known: dict[str, set[str]] = {}
    for row in pq.read_table(world / "warm_start.parquet").to_pylist():
        fact_of.update((question["text"], row["fact"]) for question in row["questions"])
        known.setdefault(row["fact"], set()).update([row["language"]] if row["sureness"] == 1.0 else [])
    texts = {name: pq.read_table(world / f"{name}.parquet")["question"].to_pylist() for name in SETS}
    return Knowledge(
        {name: {row: known[fact_of[text]] for row, text in enumerate(each)} for name, each in texts.items()},
        {row: fact_of[text] for row, text in enumerate(texts["train"])},
    )


def best_language(knowledge: Knowledge) -> str:
    """The language that knows most trained questions, which only hindsight tells; of equals the first by name."""
    counts: dict[str, int] = {}
    for languages in knowledge.languages["train"].values():
        for language in languages:
            counts[language] = counts.get(language, 0) + 1
    return min(counts, key=lambda language: (-counts[language], language))
