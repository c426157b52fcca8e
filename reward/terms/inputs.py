"""What a term reads of an answer, and what a term is: a function of the answers to one question."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from common.answer import Answer
from common.wire import ScoreRequest

if TYPE_CHECKING:
    from reward.embedder import Vectors


@dataclass(frozen=True)
class TermInput:
    """What a term may read of one answer.

    Attributes:
        answer: the answer, cut into its parts.
        detected: the language that the gate found it in, ``""`` where it found none.
        accepted: the answers that count as right; at least one.
        similarity: the calibrated similarity of the answer to its reference, in [0, 1]; nan where the embedder gave no
            numbers, or no term of the run uses embeddings.
        vector: [dimension] float32, the embedding of the answer; None where no term of the run uses embeddings. May
            hold nan.
        request: the question, its reference and the further columns of its row.
    """

    answer: Answer
    detected: str
    accepted: list[str]
    similarity: float
    vector: Vectors | None
    request: ScoreRequest

    @property
    def text(self) -> str:
        """The final answer."""
        return self.answer.final

    @property
    def language(self) -> str:
        """The language that the answer is in or, where the gate found none, the one asked for."""
        return self.detected or self.answer.asked


# The values of a term for the K answers to one question, in their order; None where a value cannot be had now, and nan
# where it never can. Values are in [0, 1] for all terms here. One of your own may have any range, if
# ``reward.bounded`` is off.
TermFunction: TypeAlias = Callable[[Sequence[TermInput]], Awaitable[Sequence[float | None]]]
