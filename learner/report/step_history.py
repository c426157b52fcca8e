"""The past of many series, as a table of few columns that a heat map can show."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


class StepHistory:
    """Values of named rows over the steps of a run.

    A column holds the mean of one step at first. When all ``columns`` are taken, neighbours are merged two by two, so
    that the memory stays bounded however long the run is.

    Args:
        columns: most columns; an even number.
    """

    def __init__(self, columns: int) -> None:
        self._row: dict[str, int] = {}
        self._sums = np.zeros((0, columns))
        self._counts = np.zeros((0, columns))
        self._first_steps: list[int] = []
        self._steps_per_column = 1
        self.last_step = 0

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of a step; steps come in ascending order. A row that is not named has no value there."""
        if not self._first_steps or step >= self._first_steps[-1] + self._steps_per_column:
            if len(self._first_steps) == self._sums.shape[1]:
                self._merge()
            self._first_steps.append(step)
        rows = [self._row.setdefault(name, len(self._row)) for name in values]
        missing = len(self._row) - len(self._sums)
        if missing:
            self._sums, self._counts = (np.pad(table, ((0, missing), (0, 0))) for table in (self._sums, self._counts))
        at = len(self._first_steps) - 1
        self._sums[rows, at] += list(values.values())
        self._counts[rows, at] += 1
        self.last_step = step

    def table(self) -> tuple[list[str], list[int], NDArray[np.float64]]:
        """All rows that ever had a value, sorted; the first step of each column; and the means.

        Returns:
            The means are [rows, columns] float64, NaN where a row has no value.
        """
        names, used = sorted(self._row), len(self._first_steps)
        order = [self._row[name] for name in names]
        sums, counts = self._sums[order, :used], self._counts[order, :used]
        means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
        return names, list(self._first_steps), means

    def _merge(self) -> None:
        for table in (self._sums, self._counts):
            half = table.shape[1] // 2
            table[:, :half] = table[:, ::2] + table[:, 1::2]
            table[:, half:] = 0
        self._first_steps = self._first_steps[::2]
        self._steps_per_column *= 2
