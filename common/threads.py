"""Calls that block, on a network file system or in code of the user's own, each on a thread beside the event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from collections.abc import Callable
from functools import partial
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

    Raises:
        TimeoutError: the call did not end in time. It may still end later.
        Exception: what the call raises.
    """
    future = start_in_thread(call)
    async with asyncio.timeout(timeout_s):
        return await asyncio.wrap_future(future)


def start_in_thread(call: Callable[[], Result]) -> concurrent.futures.Future[Result]:
    """Runs ``call`` on a thread of its own, in the context of the caller.

    A thread that hangs is left behind. It takes no other call's place, and does not hold up the end of the process
    either, as one of ``asyncio.to_thread`` would: that has a pool of few threads, for which ``asyncio.run`` and the
    interpreter wait.

    Returns:
        What the call returns or raises, SystemExit and the like included. It cannot be cancelled.
    """
    future: concurrent.futures.Future[Result] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()  # from now on nothing but the thread ends it

    def run() -> None:
        try:
            result = call()
        except StopIteration as error:  # which no asyncio future takes, so that whoever waits would wait for ever
            future.set_exception(RuntimeError(f"the call raised StopIteration: {error}"))
        except BaseException as error:  # whatever it is, whoever waits for the call gets it
            future.set_exception(error)
        else:
            future.set_result(result)

    context = contextvars.copy_context()
    threading.Thread(target=partial(context.run, run), name="a call that may block", daemon=True).start()
    return future
