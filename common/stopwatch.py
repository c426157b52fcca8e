"""Measures how much time a process spends in each of its states."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the seconds spent in each state. Safe to use from several threads.

    Example:
        >>> watch = Stopwatch()
        >>> with watch("train"):
        ...     pass
        >>> sorted(watch.seconds())
        ['train']
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, state: str) -> Iterator[None]:
        """Adds the time that the body of the ``with`` statement takes to ``state``, also when the body raises."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.add(state, time.monotonic() - begin)

    def add(self, state: str, seconds: float) -> None:
        """Adds time that was measured elsewhere."""
        with self._lock:
            self._seconds[state] = self._seconds.get(state, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """A copy of the totals so far: state -> seconds."""
        with self._lock:
            return dict(self._seconds)
