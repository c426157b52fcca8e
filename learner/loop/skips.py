"""Ends a run that trains nothing, because the loss or the gradient of every optimizer step is not finite."""

from __future__ import annotations

from pathlib import Path

from common.config.resume import SKIPPED_UNTIL
from common.process import FatalError
from learner.groups import StepResult
from learner.state import RunState

_MOST = 10  # steps in a row of which nothing was trained; a single bad batch makes one


class SkippedSteps:
    """Counts the steps in a row of which every optimizer step was left out.

    The count is part of the run's state. Were it of this process alone, each restart of a run that trains nothing would
    go on for ten steps more, and the last would export the model as it was. It begins anew where somebody has decided
    so, as ``learner.resume.are_forgiven`` has it.

    Args:
        state: has the count.
        steps: of the whole run. Where these are fewer than ten, all of them have to be so.
        directory: where the groups of such steps are, for the error.
    """

    def __init__(self, state: RunState, steps: int, directory: Path) -> None:
        self._state, self._steps, self._directory = state, steps, directory
        self._most = min(_MOST, max(steps, 1))

    def count(self, result: StepResult) -> FatalError | None:
        """Counts the newest step. The error with which the run is to end, once it is saved; None where it goes on."""
        if result.problem and result.left_out == result.optimizer_steps:
            self._state.skipped_in_a_row += 1
        elif "loss" in result.means:  # otherwise no answer of the step carried gradient, which says nothing
            self._state.skipped_in_a_row = 0
        if not self._state.skipped_in_a_row:
            self._state.sound_step = self._state.step
        return self.error(result.problem)

    def error(self, problem: str = "") -> FatalError | None:
        """The error with which the run is to end; None where it goes on.

        Args:
            problem: which loss or gradient of the last step was not finite; empty where another process trained it.
        """
        skipped = self._state.skipped_in_a_row
        if skipped < self._most:
            return None
        return FatalError(
            f"nothing was trained in {skipped} steps in a row: every optimizer step was left out"
            f"{f' ({problem})' if problem else ''}. Look at the answers and gradients that the log names and at the "
            f"groups in {self._directory}: most often learner.lr is too high, or the model has weights that are not "
            f"finite. The same command ends at once with this message, as step {self._state.step} is in a checkpoint, "
            "whose weights are those of the last step that was trained. Mend the cause, and the run goes on from there "
            f"with another setting that you accept, as --resume.accept learner.lr, or with the same ones and "
            f"--resume.accept {SKIPPED_UNTIL}{self._state.step}{self._no_step_is_left()}"
        )

    def _no_step_is_left(self) -> str:
        return "" if self._state.step < self._steps else f"; raise learner.steps, too: all {self._steps} were made"
