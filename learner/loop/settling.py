"""What follows from a training step that is done: what it counts as, and what router and curriculum learn from it."""

from __future__ import annotations

from collections.abc import Sequence

from common.config import Config
from learner.groups import Group, StepResult, token_lags
from learner.loop.observations import router_observations
from learner.recording import Recorder
from learner.state import RunState
from learner.train.outcomes import group_outcome
from learner.work.chosen import work_as_answered


class Settling:
    """Settles steps in the state of the run.

    Args:
        config: the whole configuration.
        state: what steps change.
        recorder: keeps trained groups.
    """

    def __init__(self, config: Config, state: RunState, recorder: Recorder) -> None:
        self._learner = config.learner
        self._languages = list(config.run.languages)
        # the least accuracy, or quality, that counts as right for the curriculum
        self._right = config.data.curriculum_right if config.data.gives("curriculum_right") else None
        # Right answers must be in their language, too. Otherwise the router learns from quality alone.
        self._gated = config.reward.is_gated
        self._state = state
        self._recorder = recorder

    def settle(self, batch: list[Group], result: StepResult, scored: list[Group]) -> None:
        """Counts the step, keeps its groups, enters what became of each, and lets router and curriculum learn.

        Args:
            batch: as it was trained.
            result: of the step.
            scored: the same groups as the reward process scored them, from which router and curriculum learn: an answer
                that a step term leaves out is known to them all the same.
        """
        self._state.totals.add_tokens(token_lags(batch, self._state.step))
        self._state.step += 1
        self._recorder.record(self._state.step, batch, result)
        self._enter(batch, result)
        with self._state.lock:
            self._teach(scored)

    def _enter(self, batch: Sequence[Group], result: StepResult) -> None:
        """Enters what became of each group into the ledger."""
        state = self._state
        for number, group in enumerate(batch):
            outcome, reason = group_outcome(group, self._learner), group.note
            if number in result.skipped:
                outcome, reason = "skipped", result.problem
            work = work_as_answered(group)
            sequence, row = group.work.sequence, work.question.index
            state.ledger.enter(sequence, row, outcome, state.step, reason, work, **group.cost())
        state.ledger.flush()

    def _teach(self, scored: Sequence[Group]) -> None:
        state = self._state
        state.router.observe(router_observations(scored, self._languages, gated=self._gated))
        for group in scored:
            scores = [rollout.score for rollout in group.rollouts]
            sequence, row = group.work.sequence, group.work.question.index
            state.curriculum.record(sequence, row, scores, self._right, gated=self._gated)
