"""Computes the next item on a thread while the present one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def prefetch(calls: Iterable[Callable[[], Item]]) -> Iterator[Item]:
    """The results of the calls, in order. Each call runs on a helper thread while the result before it is used.

    Blocks until a result is there, without a deadline. An exception in a call is raised when its result is due.
    """
    with ThreadPoolExecutor(1) as thread:
        previous: Future[Item] | None = None
        for call in calls:
            following = thread.submit(call)
            if previous is not None:
                yield previous.result()
            previous = following
        if previous is not None:
            yield previous.result()
