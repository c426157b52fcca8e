"""The scalar series of a run, thinned out so that a long run stays small."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from learner.report.trackers.tracker import Tracker


class ScalarSeries:
    """Collects the values of every metric and writes one point for those since the last one.

    A point is the mean of the values; for a metric whose name ends in ``_max`` it is the largest.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._values: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, metrics: Mapping[str, float]) -> None:
        """Adds one value to each metric, by name."""
        for name, value in metrics.items():
            self._values[name].append(float(value))

    def write_points(self, step: int) -> None:
        """Writes a point, at ``step``, of every metric that got a value since the last call."""
        points = {
            name: max(values) if name.endswith("_max") else sum(values) / len(values)
            for name, values in self._values.items()
        }
        self._values.clear()
        if points:
            self._tracker.scalars(step, points)
