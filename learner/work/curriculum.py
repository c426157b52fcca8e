"""Asks a question less often whose answers lately were all right, or none of them: those teach nothing.

The questions come in the run's shuffled order, epoch after epoch. With ``data.curriculum`` below 1 a question is passed
over with a probability that grows with the number of times in a row that it taught nothing, and the next one in the
order is asked instead. Each group carries the probability with which its question was not passed over, and the ledger
has a line for each question that was. Nothing random is remembered: whether the question at a place of the order is
passed over depends on the seed, the place and the answers so far, so that a resumed run decides as the first one did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from common.diagnostics import solves
from common.wire import Question, Score
from learner.work.questions import ShuffledQuestions

LEAST = 0.05  # with this probability a question is asked in any case
_STREAM = 1  # tells these draws from those of the order


class Asked(msgspec.Struct, frozen=True):
    """The question of a group that no step has taken yet.

    Args:
        place: in the order of questions, from 0, all epochs counted on.
        propensity: with which it was not passed over.
    """

    place: int
    propensity: float


class SavedCurriculum(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A curriculum in a checkpoint.

    Args:
        next_place: the first place in the order that no group has looked at.
        asked: sequence number, place and propensity of each group that no step has taken.
        streaks: row of a question, and how often in a row it taught nothing; those of which it is never are left out.
    """

    next_place: int = 0
    asked: list[tuple[int, int, float]] = []
    streaks: list[tuple[int, int]] = []


@dataclass
class CurriculumState:
    """What a curriculum remembers; ``first_fresh`` is the first sequence number that this process hands out."""

    next_place: int = 0
    asked: dict[int, Asked] = field(default_factory=dict)  # by sequence number
    streaks: dict[int, int] = field(default_factory=dict)  # by row
    first_fresh: int = 0

    def capture(self, untaken: Iterable[int]) -> SavedCurriculum:
        """The state as it is, of the groups that no step has taken."""
        alive = set(untaken)
        return SavedCurriculum(
            next_place=self.next_place,
            asked=[(n, one.place, one.propensity) for n, one in sorted(self.asked.items()) if n in alive],
            streaks=sorted(self.streaks.items()),
        )

    @classmethod
    def restore(cls, saved: SavedCurriculum, next_sequence: int) -> CurriculumState:
        """The state that was captured. A run that had none asked the question at place n in group n."""
        asked = {sequence: Asked(place, propensity) for sequence, place, propensity in saved.asked}
        return cls(saved.next_place, asked, dict(saved.streaks), next_sequence)

    def record(
        self, sequence: int, row: int, scores: Sequence[Score], right: float | None = None, *, gated: bool = True
    ) -> None:
        """Learns from a group that a step has taken; answers that could not be scored, or judged, say nothing.

        Args:
            row: of its question.
            right: from what on an answer is right, see :func:`common.diagnostics.is_right`. Rewards do not tell: they
                may be of a stage or of a step term, or have further parts.
            gated: whether an answer in another language teaches nothing, as ``reward.gated`` has it.
        """
        self.asked.pop(sequence, None)
        known = [solves(score, least=right, gated=gated) for score in scores if score.scored]
        solved = [one for one in known if one is not None]
        if not solved:
            return
        if any(solved) and not all(solved):
            self.streaks.pop(row, None)
        else:
            self.streaks[row] = self.streaks.get(row, 0) + 1


class Curriculum:
    """Chooses the question of each group.

    Args:
        questions: in the run's order.
        factor: ``data.curriculum``; a question that taught nothing n times in a row is asked with the probability
            max(0.05, factorⁿ).
        state: of the run; guarded by whoever calls.
    """

    def __init__(self, questions: ShuffledQuestions, factor: float, state: CurriculumState) -> None:
        self._questions, self._factor, self._state = questions, factor, state

    def question(
        self, sequence: int, passed_over: Callable[[Question, int, float], None] = lambda *_: None
    ) -> tuple[Question, float]:
        """The question of a group, and its propensity; the same ones as long as no step has taken the group.

        Args:
            passed_over: is called with each question that is passed over for it, how often in a row it taught nothing,
                and its propensity.
        """
        asked = self._state.asked.get(sequence)
        if asked is None and sequence < self._state.first_fresh:  # of a run that had no curriculum
            asked = Asked(sequence, 1.0)
        if asked is None:
            asked = self._next(sequence, passed_over)
        self._state.asked[sequence] = asked
        return self._questions[asked.place], asked.propensity

    def forget(self, sequence: int) -> None:
        """The group was given up."""
        self._state.asked.pop(sequence, None)

    def _next(self, sequence: int, passed_over: Callable[[Question, int, float], None]) -> Asked:
        place = max(self._state.next_place, sequence)
        while True:
            question = self._questions[place]
            streak = self._state.streaks.get(question.index, 0)
            propensity = max(LEAST, self._factor**streak)
            place += 1
            if propensity == 1 or self._uniform(place - 1) < propensity:
                self._state.next_place = place
                return Asked(place - 1, propensity)
            passed_over(question, streak, propensity)

    def _uniform(self, place: int) -> float:
        return float(np.random.default_rng([self._questions.seed, place, _STREAM]).random())
