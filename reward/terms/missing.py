"""What tells a value that is missing now from one that will never be there.

A judge that does not answer, and a verifier that is busy, may be there later: their groups are scored again. A judge
that refuses a question, or answers it with no grade each time, and an embedder that gives no numbers for a text, would
do the same the next time. The tools of a reward function note which of the two happened while it worked, and a function
may say itself that a value will never be there, by :data:`NEVER`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, TypeAlias


class Missing(Enum):
    """Why there is no value, where a function says so."""

    NEVER = "never"


NEVER: Final = Missing.NEVER
Never: TypeAlias = Literal[Missing.NEVER]


@dataclass
class Failures:
    """What the tools could not give while one group was scored.

    Attributes:
        for_now: values that may be there later.
        never: values that would be missing the next time, too.
        waiting: calls of tools that have not ended yet.
    """

    for_now: int = 0
    never: int = 0
    waiting: int = 0

    @property
    def any(self) -> bool:
        """Whether a tool failed at all."""
        return bool(self.for_now or self.never)

    @property
    def held_up(self) -> bool:
        """Whether it was, or is, the tools that take long: another time they may be quicker."""
        return bool(self.for_now or self.waiting)

    @property
    def never_alone(self) -> bool:
        """Whether all that failed would be missing the next time, too, so that scoring again would miss the same."""
        return self.never > 0 and not self.for_now


# Of the group that the running task scores; tasks that it starts share the object.
_of_group: ContextVar[Failures | None] = ContextVar("failures of the group", default=None)


def begin_group() -> Failures:
    """What the tools will fail to give in this task, and in those that it starts."""
    failures = Failures()
    _of_group.set(failures)
    return failures


def note(*, for_now: int = 0, never: int = 0) -> None:
    """Enters values that a tool could not give; nothing where no group is being scored."""
    failures = _of_group.get()
    if failures is not None:
        failures.for_now += for_now
        failures.never += never


@contextmanager
def waiting() -> Iterator[None]:
    """Surrounds a call of a tool, so that nobody is blamed for the time that it takes."""
    failures = _of_group.get()
    if failures is None:
        yield
        return
    failures.waiting += 1
    try:
        yield
    finally:
        failures.waiting -= 1
