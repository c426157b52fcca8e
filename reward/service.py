"""The service's two halves: a thread that takes and answers messages at once, and the scoring of what it has queued."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import zmq

from common.config import RewardConfig
from common.process import FatalError
from common.stopwatch import Stopwatch
from common.wire import Health, Healthy, Score, ScoreReply, ScoreRequest, WireError, decode, encode

logger = logging.getLogger("reward")

_POLL_MS = 500  # a signal or a dead thread is noticed after this long
_LOG_EVERY_S = 60
_MAX_ERROR = 500  # characters of an error that travel

ScoreBatch = Callable[[Sequence[ScoreRequest]], list[list[Score]]]


def score_or_explain(score: ScoreBatch, requests: Sequence[ScoreRequest]) -> list[list[Score] | str]:
    """Scores a batch such that a request that cannot be scored harms no other.

    A failed batch is halved until the culprit stands alone, which also gets a batch too large for memory done.

    Returns:
        For each request its scores, or what went wrong.
    """
    try:
        return list(score(requests))
    except Exception as error:  # whatever a request provokes is its sender's to hear; the service goes on
        if len(requests) > 1:
            middle = len(requests) // 2
            return score_or_explain(score, requests[:middle]) + score_or_explain(score, requests[middle:])
        logger.warning("cannot score request %d: %s", requests[0].id, error, exc_info=not isinstance(error, ValueError))
        return [f"{type(error).__name__}: {error}"[:_MAX_ERROR]]


@dataclass(frozen=True)
class _Waiting:
    peer: bytes
    request: ScoreRequest
    expires: float  # on the monotonic clock

    @property
    def texts(self) -> int:
        return 1 + len(self.request.answers)


class Service:
    """A bounded queue of requests between a thread that owns the socket and ``run``, which scores them in batches.

    A request that finds the queue full is told so; one that waited longer than its sender does is dropped.

    Args:
        context: of the socket.
        socket: ROUTER, bound; this object's from now on.
        config: of the service.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes], config: RewardConfig
    ) -> None:
        self._socket, self._config = socket, config
        self._queue: deque[_Waiting] = deque()
        self._queued = 0  # texts
        self._arrived = threading.Condition()
        self._life = uuid.uuid4().hex
        self._ready = self._stopping = False
        self._logs = time.monotonic() + _LOG_EVERY_S
        self._watch = Stopwatch()
        self.counts: Counter[str] = Counter()
        self._further: Mapping[str, int] = {}
        address = f"inproc://replies-{id(self)}"  # a socket belongs to one thread: replies go through this pair
        self._inner, self._outer = context.socket(zmq.PULL), context.socket(zmq.PUSH)
        self._inner.bind(address)
        self._outer.connect(address)
        self._thread = threading.Thread(target=self._exchange, name="messages", daemon=True)
        self._thread.start()

    def run(self, score: ScoreBatch, counts: Mapping[str, int]) -> None:
        """Serves until interrupted.

        Args:
            score: of a batch.
            counts: further counters, which ``score`` keeps, to tell when asked for health.

        Raises:
            FatalError: the thread that exchanges messages died.
        """
        self._further, self._ready = counts, True
        while True:
            with self._watch("waiting"):
                batch = self._collect()
            with self._watch("busy"):
                results = score_or_explain(score, [waiting.request for waiting in batch])
            for waiting, result in zip(batch, results, strict=True):
                failed = isinstance(result, str)
                self.counts["failed" if failed else "scored"] += 1
                reply = self._answer(waiting, [], result) if isinstance(result, str) else self._answer(waiting, result)
                self._outer.send_multipart(reply)
            if time.monotonic() > self._logs:
                self._logs = time.monotonic() + _LOG_EVERY_S
                logger.info("%d texts wait; so far %s", self._queued, self.all_counts())

    def all_counts(self) -> dict[str, int]:
        return dict(self.counts) | dict(self._further)

    def close(self) -> None:
        self._stopping = True
        self._thread.join(2 * _POLL_MS / 1000)
        self._inner.close(0)
        self._outer.close(0)

    def _answer(self, to: _Waiting, scores: list[Score], error: str = "", full: bool = False) -> list[bytes]:
        spent = {"busy": 0.0, "waiting": 0.0} | self._watch.seconds()
        reply = ScoreReply(
            id=to.request.id, scores=scores, error=error, full=full, busy_s=spent["busy"], waiting_s=spent["waiting"]
        )
        return [to.peer, encode(reply)]

    # -- scoring -------------------------------------------------------------------------------------------------

    def _collect(self) -> list[_Waiting]:
        """Waits for a request, then for others until the window closes or the batch is full."""
        batch: list[_Waiting] = []
        texts, closes = 0, float("inf")
        with self._arrived:
            while texts < self._config.batch_texts:
                if self._queue:
                    waiting = self._queue.popleft()
                    self._queued -= waiting.texts
                    if waiting.expires < time.monotonic():
                        self.counts["late"] += 1
                        continue
                    closes = min(closes, time.monotonic() + self._config.batch_window_ms / 1000)
                    batch.append(waiting)
                    texts += waiting.texts
                elif (left := closes - time.monotonic()) <= 0:
                    break
                else:
                    self._arrived.wait(min(left, _POLL_MS / 1000))
                if not self._thread.is_alive():
                    raise FatalError("the thread that exchanges messages died; its traceback is above")
        return batch

    # -- messages: all below runs in the thread --------------------------------------------------------------------

    def _exchange(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._inner, zmq.POLLIN)
        while not self._stopping:
            readable = dict(poller.poll(_POLL_MS))
            if self._inner in readable:
                self._socket.send_multipart(self._inner.recv_multipart())
            if self._socket in readable:
                self._receive(self._socket.recv_multipart())

    def _receive(self, frames: list[bytes]) -> None:
        try:
            if len(frames) != 2:
                raise WireError(f"{len(frames) - 1} frames instead of one")
            message = decode(frames[1])
            if isinstance(message, Health):
                health = Healthy(life=self._life, ready=self._ready, queued=self._queued, counts=self.all_counts())
                self._socket.send_multipart([frames[0], encode(health)])
            elif isinstance(message, ScoreRequest):
                self._admit(_Waiting(frames[0], message, time.monotonic() + message.deadline_s))
            else:
                raise WireError(f"a {message.kind!r} message does not belong here")
        except WireError as error:  # without a request there is no id to answer under
            self.counts["refused"] += 1
            times = self.counts["refused"]
            if times & (times - 1) == 0:  # 1, 2, 4, 8, ...: a flood must not fill the disk
                logger.warning("refused a message (%d so far): %s", times, error)

    def _admit(self, waiting: _Waiting) -> None:
        with self._arrived:
            if self._queue and self._queued + waiting.texts > self._config.queue_texts:
                self.counts["full"] += 1
                self._socket.send_multipart(self._answer(waiting, [], full=True))
                return
            self._queue.append(waiting)
            self._queued += waiting.texts
            self._arrived.notify()
