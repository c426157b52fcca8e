"""The scalar series of TensorBoard, thinned out so that a long run stays small."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from tensorboard.compat.proto.summary_pb2 import Summary

from learner.report.events import EventWriter


class ScalarSeries:
    """Collects the values of every metric and writes one point for those since the last one.

    A point is the mean of the values; for a metric whose name ends in ``_max`` it is the largest.
    """

    def __init__(self, events: EventWriter) -> None:
        self._events = events
        self._values: defaultdict[tuple[str, str], list[float]] = defaultdict(list)

    def add(self, metrics: Mapping[str, float], run: str = "") -> None:
        """Adds one value to each metric, by tag; ``run`` is a run in TensorBoard's sense."""
        for tag, value in metrics.items():
            self._values[run, tag].append(float(value))

    def write_points(self, step: int) -> None:
        """Writes a point, at ``step``, of every metric that got a value since the last call."""
        points: defaultdict[str, Summary] = defaultdict(Summary)
        for (run, tag), values in self._values.items():
            value = max(values) if tag.endswith("_max") else sum(values) / len(values)
            points[run].value.add(tag=tag, simple_value=value)
        self._values.clear()
        for run, summary in points.items():
            self._events.write(step, summary, run=run)
