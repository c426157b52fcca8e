"""Calls that block, on a network file system for example, with a deadline and away from the event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class OneCall(Generic[Result]):
    """A call that may hang, made again and again: never on a second thread while the first one still hangs."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self._hangs = False

    async def result(self, timeout_s: float) -> Result:
        """What the call returns; waits at most ``timeout_s`` seconds, and not at all while an earlier one hangs.

        Raises:
            TimeoutError: it has not ended in time.
            Exception: what the call raises.
        """
        if self._hangs:
            raise TimeoutError
        self._hangs = True
        return await call_in_thread(self._run, timeout_s)

    def _run(self) -> Result:
        try:
            return self._call()
        finally:
            self._hangs = False


async def call_in_thread(call: Callable[[], Result], timeout_s: float) -> Result:
    """Runs ``call`` on a thread of its own, and waits for it at most ``timeout_s`` seconds.

    A thread that hangs is left behind. It does not hold up the end of the process either, as one of
    ``asyncio.to_thread`` would: ``asyncio.run`` and the interpreter wait for those.

    Raises:
        TimeoutError: the call did not end in time. It may still end later.
        Exception: what the call raises.
    """
    future: concurrent.futures.Future[Result] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()  # from now on nothing but the thread ends it

    def run() -> None:
        try:
            result = call()
        except Exception as error:  # whatever it is, whoever waits for the call gets it
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="a call that may block", daemon=True).start()
    async with asyncio.timeout(timeout_s):
        return await asyncio.wrap_future(future)
