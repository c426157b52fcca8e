"""When a checkpoint is written. What is in one is in ``learner.checkpoint`` and ``learner.state``."""

from __future__ import annotations

from common.progress import BRIEF_S, Activity
from common.stopwatch import Stopwatch
from learner.checkpoint import Checkpoints
from learner.ranks import Ranks


class Saving:
    """Saves every ``every`` steps, and no step twice.

    Args:
        every: ``learner.checkpoint_every``.
        saved_step: the step of the newest checkpoint; 0 before there is one, as the untrained policy needs none.
        checkpoints: those of rank 0, which know whether the last one could be written.
        ranks: know the action ``save``.
        stopwatch: counts the seconds of the state ``save``.
    """

    def __init__(
        self, every: int, saved_step: int, checkpoints: Checkpoints, ranks: Ranks, stopwatch: Stopwatch
    ) -> None:
        self._every, self._saved_step = every, saved_step
        self._checkpoints, self._ranks, self._stopwatch = checkpoints, ranks, stopwatch

    def save_if_due(self, step: int) -> None:
        """Begins to write a checkpoint after every so many steps; does not wait until it is whole.

        Raises:
            FatalError: the one before could not be written.
        """
        self._checkpoints.poll()
        if step % self._every == 0:
            self._save(step)

    def save(self, step: int) -> None:
        """Begins to write a checkpoint, unless this step has one; raises as :meth:`save_if_due`."""
        self._checkpoints.poll()
        self._save(step)

    def wait(self) -> None:
        """Blocks until the checkpoint that is being written is whole.

        Raises:
            FatalError: it could not be written.
        """
        self._checkpoints.wait()

    def _save(self, step: int) -> None:
        if step == self._saved_step:
            return
        self._saved_step = step
        with self._stopwatch("save"), Activity("learner", f"saving step {step}", silent_s=BRIEF_S):
            self._ranks.run("save", number=step)
