"""The ledger of a run: one line for every group, which says what became of it.

It is the evidence that no question was lost and that no group was trained on twice.
"""

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
_OF_WORK = ("languages", "propensities", "router_version", "question_propensity")
_NO_END: tuple[Outcome, ...] = ("stale", "passed_over")  # of a group that is still alive, or asks another question


class Ledger:
    """An append-only JSONL file whose lines have the keys ``sequence``, ``row``, ``outcome``, ``step`` and ``reason``.

    The line of a group that was answered also says how it was routed, in ``languages`` [K], ``propensities`` [K] and
    ``router_version``, with which probability its question was not passed over, in ``question_propensity``, and how it
    was made: ``actor``, ``lengths`` [K] in tokens, and ``timing`` as in ``wire.Timing``.

    Args:
        path: the file; it is made, with its directory, if it is missing.
        size: bytes to keep. A run that resumes from a checkpoint cuts off the lines that were written after it, because
            the training that they record is undone.

    Raises:
        FatalError: the file is shorter than ``size``.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        if (present := self._file.tell()) < size:
            raise FatalError(
                f"{path} has {present} bytes and had {size} when the checkpoint was written: put the file back, or "
                "begin in another run.dir"
            )
        self._file.truncate(size)
        self._file.seek(size)

    def enter(
        self, sequence: int, row: int, outcome: Outcome, step: int, reason: str = "", work: Work | None = None,
        **details: Any,
    ) -> None:  # fmt: skip
        """Adds a line, which may stay in a buffer until ``flush``.

        Args:
            sequence: the group's position in the order of questions.
            row: the question's row in its file.
            outcome: what became of the group.
            step: the training step that took it, counted from 1; for a failed one, the last step that was finished.
            reason: free text; may be empty.
            work: says how the group was routed, if it was answered.
            details: further keys of the line.
        """
        line = {"sequence": sequence, "row": row, "outcome": outcome, "step": step, "reason": reason, **details}
        if work is not None:
            line |= {name: getattr(work, name) for name in _OF_WORK}
        self._file.write(_ENCODER.encode(line) + b"\n")

    def flush(self) -> int:
        """Writes the buffer to the file. Returns the file's size in bytes, which the checkpoint keeps."""
        self._file.flush()
        return self._file.tell()


@dataclass(frozen=True)
class Audit:
    """What the ledger shows when it is compared with the sequence numbers that were handed out."""

    outcomes: dict[str, int]  # number of lines by outcome
    lost: int  # sequence numbers that were handed out, are not pending, and have no line
    duplicated: int  # sequence numbers that have more than one line that says how their group ended


def audit(path: Path, next_sequence: int, pending: Iterable[int]) -> Audit:
    """Reads the ledger back and compares it with the sequence numbers that were handed out, 0 … next_sequence − 1.

    Args:
        path: the ledger, flushed.
        next_sequence: the first number that was not handed out.
        pending: numbers that were handed out and that no step has taken; a resumed run takes them up again.
    """
    lines = _read(path)
    entries = Counter(line["sequence"] for line in lines if line["outcome"] not in _NO_END)
    expected = set(range(next_sequence)) - set(pending)
    return Audit(
        outcomes=dict(Counter(line["outcome"] for line in lines)),
        lost=len(expected - set(entries)),
        duplicated=sum(count > 1 for count in entries.values()),
    )


def read_routed(path: Path, after: int) -> list[tuple[int, list[str]]]:
    """The question's row and the languages [K] of every answered group that a step later than ``after`` took."""
    return [(line["row"], line["languages"]) for line in _read(path) if line["step"] > after and "languages" in line]


def _read(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as lines:  # str.splitlines would also break lines at characters such as U+2028
        return [json.loads(line) for line in lines]
