"""An event loop in a thread, which waits for judges, verifiers and reward functions while batches are made."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_BEAT_S = 1.0


class WaitingThread:
    """Runs coroutines until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._beat = time.monotonic()  # when the loop last came round
        self._thread = threading.Thread(target=self._run, name="waits", daemon=True)
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts a coroutine, from any other thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def stalled_s(self) -> float:
        """For how many seconds a coroutine that computes or blocks has kept all others from running."""
        return max(0.0, time.monotonic() - self._beat - 2 * _BEAT_S)

    def close(self) -> None:
        """Cancels what runs, and ends the thread. Blocks for at most a few seconds."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _run(self) -> None:
        self._keep_time()
        self._loop.run_forever()
        self._loop.run_until_complete(_cancel_others())
        self._loop.close()

    def _keep_time(self) -> None:
        self._beat = time.monotonic()
        self._loop.call_later(_BEAT_S, self._keep_time)


async def _cancel_others() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
