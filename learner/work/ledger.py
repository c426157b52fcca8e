"""The ledger of a run: one line for every group, which says what became of it.

It is the evidence that no question was lost and that no group was trained on twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from common.process import FatalError
from common.wire import Work
from learner.groups import Outcome

_ENCODER = msgspec.json.Encoder()
_OF_WORK = ("languages", "propensities", "router_version", "question_propensity")
_NO_END: tuple[Outcome, ...] = ("stale", "passed_over")  # of a group that is still alive, or asks another question


class Ledger:
    """An append-only JSONL file whose lines have the keys ``sequence``, ``row``, ``outcome``, ``step`` and ``reason``.

    The line of a group that was answered also says how it was routed, in ``languages`` [K], ``propensities`` [K], null
    for a language that the policy was to choose and did not, and ``router_version``, with which probability its
    question was not passed over, in ``question_propensity``, and how it was made: ``actor``, ``lengths`` [K] in tokens,
    and ``timing`` as in ``wire.Timing``.

    Args:
        path: the file; it is made, with its directory, if it is missing.
        size: bytes of it that belong to this run. A run that resumes from a checkpoint cuts off the lines that were
            written after it, because the training that they record is undone. 0: a run begins.

    Raises:
        FatalError: the file is shorter than ``size``, holds the lines of another run, or cannot be written.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        except OSError as error:
            self._fail(error)
        if (present := self._file.tell()) < size:
            raise FatalError(
                f"{path} has {present} bytes and had {size} when the checkpoint was written: put the file back, or "
                "begin in another run.dir"
            )
        if present and not size:
            raise FatalError(f"{path} holds the lines of another run: move it away, or begin in another run.dir")
        if present > size:
            self._file.truncate(size)
            self._file.seek(size)

    def enter(
        self, sequence: int, row: int, outcome: Outcome, step: int, reason: str = "", work: Work | None = None,
        **details: Any,
    ) -> None:  # fmt: skip
        """Adds a line, which may stay in a buffer until ``flush``.

        Args:
            sequence: number of the prompt group, see ``Work.sequence``.
            row: the question's row in its file.
            outcome: what became of the group.
            step: the training step that took it, counted from 1; for a failed one, the last step that was finished.
            reason: free text; may be empty.
            work: says how the group was routed, if it was answered.
            details: further keys of the line.

        Raises:
            FatalError: it cannot be written; most often the disk is full.
        """
        line = {"sequence": sequence, "row": row, "outcome": outcome, "step": step, "reason": reason, **details}
        if work is not None:
            line |= {name: getattr(work, name) for name in _OF_WORK}
        try:
            self._file.write(_ENCODER.encode(line) + b"\n")
        except OSError as error:  # of lines before it, for which the buffer had no room left
            self._fail(error)

    def size(self) -> int:
        """Bytes of all lines so far, which the checkpoint keeps; some may still be in the buffer. Does not block."""
        return self._file.tell()

    def flush(self) -> int:
        """Gives the buffer to the system, which blocks for as long as the file system does. Returns ``size``.

        The lines are on the disk when a checkpoint is that depends on the file, see ``learner.checkpoint``.

        Raises:
            FatalError: it cannot be written; most often the disk is full.
        """
        try:
            self._file.flush()
        except OSError as error:
            self._fail(error)
        return self.size()

    def _fail(self, error: OSError) -> NoReturn:
        raise FatalError(f"cannot write the ledger {self._path}: {error.strerror}") from None


class _Line(msgspec.Struct):
    """What the audit reads of a line."""

    sequence: int
    row: int
    outcome: str
    step: int
    languages: list[str] | None = None


_DECODER = msgspec.json.Decoder(_Line)


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

    Raises:
        FatalError: a line cannot be read.
    """
    outcomes: Counter[str] = Counter()
    once, twice = bytearray(next_sequence // 8 + 1), bytearray(next_sequence // 8 + 1)  # a bit for each number
    strangers: Counter[int] = Counter()  # numbers that were not handed out; there should be none
    for line in _read(path):
        outcomes[line.outcome] += 1
        if line.outcome in _NO_END:
            continue
        if not 0 <= line.sequence < next_sequence:
            strangers[line.sequence] += 1
            continue
        place, bit = divmod(line.sequence, 8)
        twice[place] |= once[place] & 1 << bit
        once[place] |= 1 << bit
    duplicated = int.from_bytes(twice).bit_count() + sum(count > 1 for count in strangers.values())
    for number in pending:
        once[number // 8] |= 1 << number % 8
    lost = next_sequence - int.from_bytes(once).bit_count()
    return Audit(outcomes=dict(outcomes), lost=lost, duplicated=duplicated)


def read_routed(path: Path, after: int) -> Iterator[tuple[int, list[str]]]:
    """The question's row and the languages [K] of every answered group that a step later than ``after`` took."""
    for line in _read(path):
        if line.step > after and line.languages is not None:
            yield line.row, line.languages


def _read(path: Path) -> Iterator[_Line]:
    """One line after another, so that a ledger of any length needs no memory.

    Raises:
        FatalError: a line is none of a ledger.
    """
    with path.open("rb") as lines:  # str.splitlines would also break lines at characters such as U+2028
        for number, line in enumerate(lines, start=1):
            try:
                yield _DECODER.decode(line)
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                raise FatalError(f"line {number} of the ledger {path} cannot be read: {error}") from None
