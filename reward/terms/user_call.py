"""Calls of a function of the user's, which may block, hang, exit, or raise anything, and never harm another question.

Each call of a plain function has a thread of its own. One that has not ended in time is left behind, and counted.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from common.config import ConfigError
from common.process import FatalError
from common.threads import start_in_thread
from common.user_code import describe_failure, load_user_object, user_file
from reward.scored import UnscoredError
from reward.terms.missing import Failures

_FORM = (
    "write `def score(group, tools)`, plain or async, which returns a list with a dict of parts for each answer; "
    "docs/rewards.md says what group holds, and what TRL calls it"
)
_FEW = 4  # calls left behind, at most, with which a reward process counts as one that gets on


class RewardFunctionError(ValueError):
    """A reward function failed on a question, did not end, or returned what is not a result.

    The message names the function's file and the question, and the line where there is one.
    """


class LeftBehind:
    """The calls that still run although nobody waits for them any more. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: dict[object, float] = {}  # monotonic time at which each was left

    def add(self, call: concurrent.futures.Future[Any] | asyncio.Future[Any]) -> None:
        """From now on this call is one of them, until it ends."""
        with self._lock:
            self._since[call] = time.monotonic()
        call.add_done_callback(self._forget)  # at once where it has just ended

    def _forget(self, call: object) -> None:
        with self._lock:
            self._since.pop(call, None)

    def __len__(self) -> int:
        return len(self._since)

    def stalled_s(self) -> float:
        """For how many seconds there have been more than a few; 0 where there are not."""
        with self._lock:
            left = sorted(self._since.values())
        return time.monotonic() - left[_FEW] if len(left) > _FEW else 0.0


class UserFunction:
    """A function of the user's. A plain one runs in a thread; an ``async`` one in the loop.

    What it returns is awaited if it can be, so it may also wrap an ``async`` one.

    ``counts`` holds the calls that had not ended at their deadline as ``function_hung``.

    Args:
        where: ``FILE.py:NAME``. A class is called without arguments, and its object is then called each time.

    Raises:
        ConfigError: the function cannot be loaded, or takes other arguments.
    """

    def __init__(self, where: str) -> None:
        self.where, self.path = where, user_file(where)
        self._function: Any = load_user_object(where, "reward.function")
        if not callable(self._function):
            raise ConfigError(f'reward.function = "{where}": it cannot be called')
        try:
            inspect.signature(self._function).bind("group", "tools")
        except TypeError as error:
            raise ConfigError(
                f'reward.function = "{where}": it cannot be called with the two arguments group and tools: {error}; '
                f"{_FORM}"
            ) from None
        except ValueError:  # what is not written in Python may have no signature
            pass
        if _is_of_trl(self._function):
            raise ConfigError(f'reward.function = "{where}" takes the arguments of a reward of TRL; {_FORM}')
        call = self._function if inspect.isroutine(self._function) else type(self._function).__call__
        self._in_thread = not inspect.iscoroutinefunction(call)
        self._left = LeftBehind()
        self._longest_s = 0.0  # of the calls that have ended by themselves
        self.counts: Counter[str] = Counter()  # changed in the event loop alone

    def stalled_s(self) -> float:
        """For how many seconds more than a few calls have hung, which take their time and memory from all others."""
        return self._left.stalled_s()

    async def __call__(
        self, group: Any, tools: Any, failures: Failures, question: str, within_s: float, given_s: float
    ) -> Any:
        """What the function returns.

        It runs in a task of its own, which can be left behind: a coroutine may hold off its cancellation for ever.

        Args:
            group: the first argument of the function.
            tools: its second argument.
            failures: what the tools have met while it worked on this group.
            question: how messages name the question.
            within_s: how long it may take.
            given_s: how long the whole request could take. With less than half of that the function is not to blame.

        Raises:
            RewardFunctionError: the function raised an error, or has not ended in time.
            UnscoredError: it has not ended in time, and another time it may: tools were slow, or it had less than half
                of the request's time, or less than it has taken before.
            FatalError: raised by a tool, when the process cannot go on.
        """
        fair_s = max(self._longest_s, given_s / 2)
        began = time.monotonic()
        thread: concurrent.futures.Future[Any] | None = None
        if self._in_thread:
            thread = start_in_thread(partial(self._plainly, group, tools, question))
        task = asyncio.create_task(self._result(group, tools, thread, question))
        try:
            await asyncio.wait({task}, timeout=None if within_s == math.inf else within_s)
            if task.cancelled():
                raise RewardFunctionError(f"{self.where} cancelled itself ({question})")
            took_s = time.monotonic() - began
            if task.done():
                self._longest_s = max(self._longest_s, took_s)
                return task.result()
            held_up = failures.held_up  # read before the cancellation ends the calls of tools
        finally:
            if not task.done():
                task.cancel()
                self._left.add(thread if thread is not None and not thread.done() else task)
        self.counts["function_hung"] += 1
        slow = f"{self.where} has not ended within {within_s:.1f} s"
        if held_up or within_s < fair_s:
            reason = "it waits for its tools" if held_up else "the rest of the work left it no more"
            raise UnscoredError(f"{slow}: {reason} ({question})")
        others = f"; {len(self._left)} calls of it that were given up still run" if len(self._left) > 1 else ""
        raise RewardFunctionError(f"{slow} ({question}){others}")

    async def _result(
        self, group: Any, tools: Any, thread: concurrent.futures.Future[Any] | None, question: str
    ) -> Any:
        with self._blamed(question):
            result = await asyncio.wrap_future(thread) if thread is not None else self._function(group, tools)
            return await result if inspect.isawaitable(result) else result

    def _plainly(self, group: Any, tools: Any, question: str) -> Any:
        with self._blamed(question):
            return self._function(group, tools)

    @contextmanager
    def _blamed(self, question: str) -> Iterator[None]:
        """Turns whatever the function raises into the error that names its place."""
        try:
            yield
        except (FatalError, RewardFunctionError, GeneratorExit):
            raise
        except BaseException as error:  # somebody else's code may raise anything, as by exit(), and the run goes on
            if isinstance(error, asyncio.CancelledError) and _is_being_cancelled():
                raise
            raise RewardFunctionError(f"{describe_failure(error, self.path)} ({question})") from error


def _is_of_trl(function: Any) -> bool:
    """Whether a function is written for TRL, which gives ``prompts`` and ``completions`` and more by their names."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # what is not written in Python may have no signature
        return False
    return "completions" in parameters and parameters.keys().isdisjoint({"group", "tools"})


def _is_being_cancelled() -> bool:
    """Whether somebody has asked for the end of the task that runs; False in a thread without any."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs here
        return False
    return task is not None and task.cancelling() > 0
