"""The rows that became no question, with file, row, key and reason: none is left out in silence."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

PROBLEMS_SUFFIX = ".problems.jsonl"  # in place of the suffix of the file whose rows they are
ANSWERS_SUFFIX = ".answers.jsonl"  # the same of the file that is made of these answers
# What commands and runs write beside data and is none: lists of unused rows, and answers that are kept.
NOT_DATA = ("problems.jsonl", "*_problems.jsonl", f"*{PROBLEMS_SUFFIX}", f"*{ANSWERS_SUFFIX}")
_SHOWN = 20  # problems that a message lists
_LONGEST_REASON = 500  # characters


class Place(NamedTuple):
    """Where a row is."""

    file: str
    row: int  # from 0; of a file of lines the number of the line

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}"


class RowError(ValueError):
    """What is wrong with a row.

    Args:
        key: the column or key that the reason speaks of; empty where it is the whole row.
        reason: what is wrong, and what to do.
        kind: "broken"; or "too long", "repeated", "pass rate" or "left out" for a row that is not broken and yet is not
            used.
    """

    def __init__(self, key: str, reason: str, kind: str = "broken") -> None:
        super().__init__(reason)
        self.key = key
        self.kind = kind


@dataclass(frozen=True)
class Problem:
    """A row that is not used."""

    file: str
    row: int
    key: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}{f', {self.key}' if self.key else ''}: {self.reason}"


@dataclass
class Problems:
    """All rows that are not used."""

    found: list[Problem] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        """The number of problems of each kind."""
        return Counter(problem.kind for problem in self.found)

    def add(self, place: Place, error: RowError) -> None:
        """Lists a row."""
        self.found.append(Problem(place.file, place.row, error.key, error.kind, str(error)[:_LONGEST_REASON]))

    def of(self, *kinds: str) -> list[Problem]:
        """The problems of these kinds, in order."""
        return [problem for problem in self.found if problem.kind in kinds]

    def lines(self, kind: str) -> Iterator[str]:
        """A line for each of the first 20 problems of a kind, and one with the number of the others."""
        chosen = self.of(kind)
        yield from map(str, chosen[:_SHOWN])
        if len(chosen) > _SHOWN:
            yield f"and {len(chosen) - _SHOWN} more"

    def write(self, path: Path) -> None:
        """Writes all problems as JSONL; the directory is made where it is missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(asdict(problem), ensure_ascii=False) + "\n" for problem in self.found)
        path.write_bytes(text.encode("utf-8", errors="backslashreplace"))  # a reason may quote a lone surrogate
