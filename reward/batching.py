"""A bounded queue of requests, the batches taken from it, and how a batch gets around requests that fail."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from common.wire import ScoreRequest

_CHECK_EVERY_S = 0.5  # how often a wait for requests is interrupted to run the caller's check

Item = TypeVar("Item")
Result = TypeVar("Result")


def each_or_error(
    function: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]
) -> list[Result | Exception]:
    """Calls a function on a batch; items on which it fails do not affect the others. Blocks until that is done.

    A batch that fails is halved until the failing item stands alone. In the same way a batch that is too large for the
    memory is completed in parts.

    Returns:
        For each item its result, or the error.
    """
    try:
        return list(function(items))
    except Exception as error:  # whatever an item provokes is reported to its sender, and the service goes on
        if len(items) < 2:
            return [error] * len(items)
        middle = len(items) // 2
        return each_or_error(function, items[:middle]) + each_or_error(function, items[middle:])


@dataclass(frozen=True)
class QueuedRequest:
    """A request that waits to be scored.

    Attributes:
        sender: the identity of the ZeroMQ peer that receives the reply.
        request: what is to be scored.
        expires: when the sender stops waiting, in seconds of the monotonic clock.
    """

    sender: bytes
    request: ScoreRequest
    expires: float

    @property
    def texts(self) -> int:
        """The number of texts to embed: the reference and the answers."""
        return 1 + len(self.request.answers)


class RequestQueue:
    """A queue of requests, bounded by their number of texts. Any thread may add to it, one thread takes batches.

    The requests that were taken and are not finished yet are bounded by the same number of texts: while there are more,
    no batch is given. So slow judges fill the queue and not the memory. ``late`` counts the requests that were
    dropped because their sender no longer waits.

    Args:
        max_texts: the queue takes no request that would make it hold more texts. A request that is larger than that is
            taken when the queue is empty.
        batch_texts: a batch is complete when it has at least this many texts.
        window_s: how long an incomplete batch waits for further requests.
    """

    def __init__(self, max_texts: int, batch_texts: int, window_s: float) -> None:
        self._max_texts, self._batch_texts, self._window_s = max_texts, batch_texts, window_s
        self._requests: deque[QueuedRequest] = deque()
        self._changed = threading.Condition()
        self.texts = 0  # in the queue
        self.taken = 0  # texts that were taken and are not finished
        self.late = 0

    def add(self, queued: QueuedRequest) -> bool:
        """Adds a request at the end. Returns False, without adding it, where the queue is full. Does not block."""
        with self._changed:
            if self._requests and self.texts + queued.texts > self._max_texts:
                return False
            self._requests.append(queued)
            self.texts += queued.texts
            self._changed.notify()
            return True

    def finish(self, queued: QueuedRequest) -> None:
        """Says that a request that was taken has been answered."""
        with self._changed:
            self.taken -= queued.texts
            self._changed.notify()

    def take_batch(self, check: Callable[[], None]) -> list[QueuedRequest]:
        """Waits for a request, then for more of them until the batch is complete or the window closes.

        Requests whose sender no longer waits are dropped. Without a request this blocks forever.

        Args:
            check: is called at least every half second and may raise to end the wait.
        """
        batch: list[QueuedRequest] = []
        texts, closes = 0, float("inf")
        with self._changed:
            while texts < self._batch_texts:
                if self._requests and self.taken < self._max_texts:
                    queued = self._requests.popleft()
                    self.texts -= queued.texts
                    if queued.expires < time.monotonic():
                        self.late += 1
                        continue
                    closes = min(closes, time.monotonic() + self._window_s)
                    batch.append(queued)
                    texts += queued.texts
                    self.taken += queued.texts
                elif (left := closes - time.monotonic()) <= 0:
                    break
                else:
                    self._changed.wait(min(left, _CHECK_EVERY_S))
                check()
        return batch
