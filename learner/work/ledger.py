"""What became of every group, in one line each: the proof that nothing is lost and nothing trained twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from common.process import FatalError
from common.wire import Work
from learner.groups import Outcome

_ENCODER = msgspec.json.Encoder()


class Ledger:
    """An append-only JSONL file: ``{"sequence", "row", "outcome", "step", "reason"}``.

    A group that was answered also has how it was routed, ``languages`` and ``propensities``, both [K], and
    ``router_version``; and what it took: ``actor``, ``lengths`` [K] in tokens, and ``timing`` as in wire.Timing.

    Args:
        path: the file; it is cut to ``size`` bytes, so that lines written after the checkpoint a run resumes from,
            whose training is undone, do not count.

    Raises:
        FatalError: it is shorter than that.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        if (present := self._file.tell()) < size:
            raise FatalError(f"{path} has {present} bytes and had {size}: put it back, or begin in another run.dir")
        self._file.truncate(size)
        self._file.seek(size)

    def enter(
        self, sequence: int, row: int, outcome: Outcome, step: int, reason: str = "", work: Work | None = None,
        **took: Any,
    ) -> None:  # fmt: skip
        line = {"sequence": sequence, "row": row, "outcome": outcome, "step": step, "reason": reason, **took}
        if work is not None:
            line |= {name: getattr(work, name) for name in ("languages", "propensities", "router_version")}
        self._file.write(_ENCODER.encode(line) + b"\n")

    def sync(self) -> int:
        """Writes everything out; the size of the file, to be kept in the checkpoint."""
        self._file.flush()
        return self._file.tell()


@dataclass(frozen=True)
class Audit:
    outcomes: dict[str, int]
    lost: int  # handed out, not pending, and in no line
    duplicated: int  # in more than one line


def audit(path: Path, next_sequence: int, pending: Iterable[int]) -> Audit:
    """Reads the ledger back and compares it with the numbers handed out, 0 … next_sequence − 1.

    Args:
        pending: handed out, to be done after a resume.
    """
    lines = _read(path)
    entries = Counter(line["sequence"] for line in lines)
    expected = set(range(next_sequence)) - set(pending)
    return Audit(
        outcomes=dict(Counter(line["outcome"] for line in lines)),
        lost=len(expected - set(entries)),
        duplicated=sum(count > 1 for count in entries.values()),
    )


def routed(path: Path, after: int) -> list[tuple[int, list[str]]]:
    """Row and languages [K] of every answered group that a step > ``after`` took."""
    return [(line["row"], line["languages"]) for line in _read(path) if line["step"] > after and "languages" in line]


def _read(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as lines:  # not splitlines of a text, which breaks at more than the ends of lines
        return [json.loads(line) for line in lines]
