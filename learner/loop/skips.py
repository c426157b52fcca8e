"""Ends a run that trains nothing, because the loss or the gradient of every optimizer step is not finite."""

from __future__ import annotations

from pathlib import Path

from common.process import FatalError
from learner.groups import StepResult

_MOST = 10  # steps in a row of which nothing was trained; a single bad batch makes one


class SkippedSteps:
    """Counts the steps in a row of which every optimizer step was left out.

    Args:
        steps: how many the run has still to make. Where these are fewer than ten, all of them have to be so.
        directory: where the groups of such steps are, for the error.
    """

    def __init__(self, steps: int, directory: Path) -> None:
        self._most, self._directory = min(_MOST, max(steps, 1)), directory
        self._in_a_row = 0

    def count(self, result: StepResult) -> FatalError | None:
        """Counts a step. The error with which the run is to end, once it is saved; None where it goes on."""
        if result.problem and result.left_out == result.optimizer_steps:
            self._in_a_row += 1
        elif "loss" in result.means:  # otherwise no answer of the step carried gradient, which says nothing
            self._in_a_row = 0
        if self._in_a_row < self._most:
            return None
        return FatalError(
            f"nothing was trained in {self._in_a_row} steps in a row: every optimizer step was left out "
            f"({result.problem}). Look at the answers and gradients that the log names and at the groups in "
            f"{self._directory}: most often learner.lr is too high, or the model has weights that are not finite. The "
            "newest step is in a checkpoint; to go on from an earlier one, remove those after it"
        )
