"""How long a reward process has worked, and for how long the step that it is at has not ended."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Liveness:
    """Knows which steps of the work are under way, in any thread. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._began: dict[int, float] = {}  # the steps under way, and when each began
        self._busy_s = 0.0  # seconds with a step under way, without those since the steps of now began
        self._busy_since = 0.0  # when the first of them began

    @contextmanager
    def step(self) -> Iterator[None]:
        """Surrounds a step, which should take seconds at most."""
        number = next(self._numbers)
        with self._lock:
            now = self._began[number] = time.monotonic()
            if len(self._began) == 1:
                self._busy_since = now
        try:
            yield
        finally:
            with self._lock:
                del self._began[number]
                if not self._began:
                    self._busy_s += time.monotonic() - self._busy_since

    def busy_s(self) -> float:
        """Seconds in which at least one step was under way."""
        with self._lock:
            return self._busy_s + (time.monotonic() - self._busy_since if self._began else 0.0)

    def stalled_s(self) -> float:
        """How many seconds ago the oldest step that is under way began; 0 when none is."""
        with self._lock:
            return time.monotonic() - min(self._began.values()) if self._began else 0.0
