"""A bounded queue of requests, the batches taken from it, and the scoring of a batch around requests that fail."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from common.wire import Score, ScoreRequest

logger = logging.getLogger("reward")

_CHECK_EVERY_S = 0.5  # how often a wait for requests is interrupted to run the caller's check
_MAX_ERROR = 500  # characters of an error message that are sent to an actor

ScoreBatch: TypeAlias = Callable[[Sequence[ScoreRequest]], list[list[Score]]]


def score_or_explain(score: ScoreBatch, requests: Sequence[ScoreRequest]) -> list[list[Score] | str]:
    """Scores a batch so that a request that cannot be scored does not affect the others. Blocks until that is done.

    A batch that fails is halved until the failing request stands alone. This also completes a batch that is too large
    for the memory.

    Returns:
        For each request its scores, or the message of the error.
    """
    try:
        return list(score(requests))
    except Exception as error:  # whatever a request provokes is reported to its sender, and the service goes on
        if len(requests) > 1:
            middle = len(requests) // 2
            return score_or_explain(score, requests[:middle]) + score_or_explain(score, requests[middle:])
        logger.warning("cannot score request %d: %s", requests[0].id, error, exc_info=not isinstance(error, ValueError))
        return [f"{type(error).__name__}: {error}"[:_MAX_ERROR]]


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
    """A queue of requests, bounded by their number of texts. One thread adds to it and another takes batches.

    ``late`` counts the requests that were dropped because their sender no longer waits.

    Args:
        max_texts: the queue takes no request that would make it hold more texts. A request that is larger than that is
            taken when the queue is empty.
        batch_texts: a batch is complete when it has at least this many texts.
        window_s: how long an incomplete batch waits for further requests.
    """

    def __init__(self, max_texts: int, batch_texts: int, window_s: float) -> None:
        self._max_texts, self._batch_texts, self._window_s = max_texts, batch_texts, window_s
        self._requests: deque[QueuedRequest] = deque()
        self._arrived = threading.Condition()
        self.texts = 0  # in the queue
        self.late = 0

    def add(self, queued: QueuedRequest) -> bool:
        """Adds a request at the end. Returns False, without adding it, where the queue is full. Does not block."""
        with self._arrived:
            if self._requests and self.texts + queued.texts > self._max_texts:
                return False
            self._requests.append(queued)
            self.texts += queued.texts
            self._arrived.notify()
            return True

    def take_batch(self, check: Callable[[], None]) -> list[QueuedRequest]:
        """Waits for a request, then for more of them until the batch is complete or the window closes.

        Requests whose sender no longer waits are dropped. Without a request this blocks forever.

        Args:
            check: is called at least every half second and may raise to end the wait.
        """
        batch: list[QueuedRequest] = []
        texts, closes = 0, float("inf")
        with self._arrived:
            while texts < self._batch_texts:
                if self._requests:
                    queued = self._requests.popleft()
                    self.texts -= queued.texts
                    if queued.expires < time.monotonic():
                        self.late += 1
                        continue
                    closes = min(closes, time.monotonic() + self._window_s)
                    batch.append(queued)
                    texts += queued.texts
                elif (left := closes - time.monotonic()) <= 0:
                    break
                else:
                    self._arrived.wait(min(left, _CHECK_EVERY_S))
                check()
        return batch
