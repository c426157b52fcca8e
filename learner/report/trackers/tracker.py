"""What the report asks of a place that keeps the metrics of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Tracker(Protocol):
    """Keeps the metrics of a run. Steps never fall; metric names are those of docs/metrics.md.

    No method raises when the tracker cannot keep something: that is logged once, and the run continues.
    """

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps one value of each metric, by name."""

    def histogram(self, step: int, name: str, values: NDArray[np.int32]) -> None:
        """Keeps how often each value occurs: [values] int32."""

    def text(self, step: int, name: str, markdown: str) -> None:
        """Keeps a text in Markdown."""

    def image(self, step: int, name: str, png: bytes) -> None:
        """Keeps a picture in the format PNG."""

    def close(self) -> None:
        """Writes out what is still in memory."""


class EveryTracker:
    """Passes everything on to several trackers, in their order."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.scalars(step, values)

    def histogram(self, step: int, name: str, values: NDArray[np.int32]) -> None:
        for tracker in self._trackers:
            tracker.histogram(step, name, values)

    def text(self, step: int, name: str, markdown: str) -> None:
        for tracker in self._trackers:
            tracker.text(step, name, markdown)

    def image(self, step: int, name: str, png: bytes) -> None:
        for tracker in self._trackers:
            tracker.image(step, name, png)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()
