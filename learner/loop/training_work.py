"""How a number of a prompt group becomes work for an actor, and what is entered when it fails."""

from __future__ import annotations

from functools import partial

from common import wire
from learner.loop.publishing import Publishing
from learner.state import RunState
from learner.work.admission import Limits
from learner.work.curriculum import Curriculum
from learner.work.server import WorkServer


class TrainingWork:
    """The training questions as the server hands them out.

    The server calls :meth:`make`, :meth:`enter_failure` and :meth:`enter_stale` while it holds ``state.lock``.

    Args:
        server: hands out the work.
        state: has the queue, the router that draws languages, and the ledger.
        curriculum: chooses the questions.
        publishing: knows the version that the engines have.
        limits: what an answer must keep to, to be trained.
    """

    def __init__(
        self, server: WorkServer, state: RunState, curriculum: Curriculum, publishing: Publishing, limits: Limits
    ) -> None:
        self._server, self._state, self._curriculum = server, state, curriculum
        self._publishing, self._limits = publishing, limits

    def serve(self) -> None:
        """Has the server hand out training groups from now on, in place of what it handed out before."""
        self._server.serve(
            self._state.queue, self.make, self.enter_failure, self._limits, self.enter_stale, trains=True
        )

    def make(self, sequence: int) -> wire.Work:
        """The question of a group, with languages drawn from the newest router."""
        question, propensity = self._curriculum.question(sequence, partial(self._enter_passed_over, sequence))
        draw = self._state.router.draw(question.language, question.topics, question.regions, sequence)
        return wire.Work(
            id=f"train-{sequence}",
            question=question,
            languages=draw.languages,
            propensities=draw.propensities,
            router_version=draw.router_version,
            policy_version=self._publishing.version,
            greedy=False,
            question_propensity=propensity,
        )

    def enter_failure(self, sequence: int, reason: str) -> None:
        """Enters into the ledger that a group was given up."""
        row = self._curriculum.question(sequence)[0].index
        self._curriculum.forget(sequence)
        self._state.ledger.enter(sequence, row, "failed", self._state.step, reason)

    def enter_stale(self, sequence: int, reason: str) -> None:
        """Enters into the ledger that a finished group was too old, and is asked for again."""
        row = self._curriculum.question(sequence)[0].index
        self._state.ledger.enter(sequence, row, "stale", self._state.step, reason)

    def _enter_passed_over(self, sequence: int, question: wire.Question, streak: int, propensity: float) -> None:
        reason = f"all or none of its answers were right the last {streak} times; asked with probability {propensity:g}"
        self._state.ledger.enter(sequence, question.index, "passed_over", self._state.step, reason)
