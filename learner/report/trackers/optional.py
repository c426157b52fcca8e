"""Lets a run continue when a tracker outside this program fails."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from learner.report.trackers.tracker import Tracker

log = logging.getLogger("learner")

CLOSE_S = 60.0  # how long a tracker may take to send what it has not sent yet


class OptionalTracker:
    """Passes everything on to a tracker; what it cannot keep is lost to it, which the first time is a warning.

    Args:
        name: of the tracker, for the warning.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._warned = False

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._try(lambda: self._tracker.scalars(step, values), f"step {step}")

    def histogram(self, step: int, name: str, values: NDArray[np.int32]) -> None:
        self._try(lambda: self._tracker.histogram(step, name, values), f"{name} of step {step}")

    def text(self, step: int, name: str, markdown: str) -> None:
        self._try(lambda: self._tracker.text(step, name, markdown), f"{name} of step {step}")

    def image(self, step: int, name: str, png: bytes) -> None:
        self._try(lambda: self._tracker.image(step, name, png), f"{name} of step {step}")

    def close(self) -> None:
        """Gives it a minute to send what it has not sent yet, of which it may never come to an end."""
        unsent = "what it had not sent yet"
        closing = threading.Thread(
            target=self._try, args=(self._tracker.close, unsent), name=f"closing {self._name}", daemon=True
        )
        closing.start()
        closing.join(CLOSE_S)
        if closing.is_alive():
            log.warning("%s did not keep %s within %.0f s, and is not waited for", self._name, unsent, CLOSE_S)

    def _try(self, action: Callable[[], None], what: str) -> None:
        try:
            action()
        except Exception as error:  # another program's, over a network: it may raise anything
            if not self._warned:
                log.warning("%s did not keep %s, and may miss more: %s; the run continues", self._name, what, error)
            self._warned = True
