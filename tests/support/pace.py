"""How much slower than on a quiet machine everything goes now, for promises that hold on a quiet one.

The unit is a fixed computation in this process: the seconds that it takes, over the seconds of a core that it uses. It
is 1 where a core is free for it, and about N where N threads want each core.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

_STEPS = 400_000  # a few hundredths of a second of a core: longer than the system lets one thread go first
_EVERY_S = 0.3


def _measure() -> tuple[float, float]:
    """Seconds that passed, and seconds of a core that this thread used, while it computed something fixed."""
    began, used = time.monotonic(), time.thread_time()
    total = 0
    for number in range(_STEPS):
        total += number * number
    return time.monotonic() - began, time.thread_time() - used


class Pace:
    """Measures within a ``with`` block how slow the machine is; costs about a tenth of a core."""

    def __init__(self) -> None:
        self._passed, self._used, self._is_over = 0.0, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._measure_again, daemon=True)

    def __enter__(self) -> Pace:
        self._take(*_measure())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    @property
    def slowness(self) -> float:
        """How many times longer things take than on a quiet machine, at least 1, as a mean since the block began."""
        return max(1.0, self._passed / self._used)

    def _take(self, passed: float, used: float) -> None:
        self._passed, self._used = self._passed + passed, self._used + used

    def _measure_again(self) -> None:
        while not self._is_over.wait(_EVERY_S):
            self._take(*_measure())
