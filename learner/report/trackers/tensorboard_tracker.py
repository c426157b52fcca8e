"""Keeps the metrics of a run in TensorBoard's event files, each line of a chart in a colour of its own.

TensorBoard colours by run, a sub-directory of the event files, with seven colours in turn. The lines of one chart are
therefore spread over the runs of ``RUNS``; ``pages.py`` says which line of its chart a metric is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import histogram, text

from learner.report.trackers.events import EventWriter
from learner.report.trackers.pages import AXIS, BAND_FLOOR, BAND_METRIC, Lines, custom_scalar_pages

AXIS_RUN = "axis"  # the seventh: it is grey
# TensorBoard fits a chart to all its points but the lowest and the highest twentieth. The axis has just more points
# than that: with fewer it could be cut off itself, and with more, more of the metric's own points would be.
_POINTS_PER_AXIS_POINT = 3
LINE_RUNS = ("", "line-2", "line-3", "line-4", "line-5", "line-6", "line-7")  # by the number of a line in its chart
# With an eighth run, the same line of two trainings that are compared has two colours.
RUNS = (*LINE_RUNS[:6], AXIS_RUN, *LINE_RUNS[6:])


class TensorBoardTracker:
    """Writes event files into ``directory``.

    Args:
        begin: the step that a resumed run continues from; TensorBoard discards what was written of later steps.
    """

    def __init__(self, directory: Path, begin: int) -> None:
        self._events = EventWriter(directory, begin, RUNS)
        self._lines = Lines()
        self._points = 0
        self._events.write(begin, custom_scalar_pages())

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        points: defaultdict[str, Summary] = defaultdict(Summary)
        for name, value in values.items():
            points[LINE_RUNS[self._lines.number(name) % len(LINE_RUNS)]].value.add(tag=name, simple_value=value)
        if self._points % _POINTS_PER_AXIS_POINT == 0:
            for tag, value in AXIS.items():
                points[AXIS_RUN].value.add(tag=tag, simple_value=value)
        self._points += 1
        if BAND_METRIC in values:
            points[""].value.add(tag=BAND_FLOOR, simple_value=0.0)
        for run, summary in points.items():
            self._events.write(step, summary, run)

    def histogram(self, step: int, name: str, values: NDArray[np.int32]) -> None:
        edges = np.arange(values.min(), values.max() + 2) - 0.5
        self._events.write(step, histogram(name, values, bins=edges))

    def text(self, step: int, name: str, markdown: str) -> None:
        self._events.write(step, text(name, markdown))

    def image(self, step: int, name: str, png: bytes) -> None:
        image = Summary.Image(encoded_image_string=png, colorspace=3)
        self._events.write(step, Summary(value=[Summary.Value(tag=name, image=image)]))

    def close(self) -> None:
        self._events.close()
