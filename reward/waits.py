"""An event loop in a thread, which waits for judges, verifiers and reward functions while batches are made."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

logger = logging.getLogger("reward")

T = TypeVar("T")

_BEAT_S = 1.0
_BLOCKED_S = 10.0  # of blocking, after which the log says where


class WaitingThread:
    """Runs coroutines until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._beat = time.monotonic()  # when the loop last came round
        self._told = 0.0  # the beat after which the log said that it is blocked
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="waits", daemon=True)
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts a coroutine, from any other thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def is_alive(self) -> bool:
        """Whether coroutines still run."""
        return self._thread.is_alive()

    def stalled_s(self) -> float:
        """For how many seconds a coroutine that computes or blocks has kept all others from running."""
        return max(0.0, time.monotonic() - self._beat - 2 * _BEAT_S)

    def warn_of_blocking(self) -> None:
        """Says once of each coroutine that keeps all others from running for long at which line it is."""
        if self.stalled_s() < _BLOCKED_S or self._told == self._beat:
            return
        self._told = self._beat
        frame = sys._current_frames().get(self._thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)[-3:]) if frame is not None else "an unknown line\n"
        logger.warning(
            "for %.0f s no judge or reward function has got on, because one blocks here. An `async` function may only "
            "await; one that computes or waits otherwise has to be written without `async`:\n%s",
            self.stalled_s(), stack.rstrip(),
        )  # fmt: skip

    def close(self) -> None:
        """Cancels what runs, and ends the thread. Blocks for at most a few seconds."""
        self._closing = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _run(self) -> None:
        self._keep_time()
        while not self._closing:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                # A task that a reward function started has called exit(), say. Whoever awaits that task gets the error,
                # too, once the loop goes on.
                logger.warning("a task of a reward function raised %s", type(error).__name__)
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
