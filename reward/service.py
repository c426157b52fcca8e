"""The reward service: a thread receives and answers messages at once, while the main thread scores what is queued."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping

import zmq

from common.config import RewardConfig
from common.process import FatalError
from common.progress import Activity
from common.stopwatch import Stopwatch
from common.wire import Health, Healthy, Score, ScoreReply, ScoreRequest, WireError, decode, encode
from reward.batching import QueuedRequest, RequestQueue, ScoreBatch, score_or_explain

logger = logging.getLogger("reward")

_POLL_MS = 500  # the thread notices within this time that it should end
_LOG_EVERY_S = 60
_IDLE_S = 55  # a pause between two batches that has ended by then is not mentioned


class Service:
    """Answers requests from actors. Construction starts the thread that owns the socket; ``run`` scores.

    A request that finds the queue full is answered at once with ``full``. One that waited for longer than its sender
    does is dropped. A health message is answered at once, also before ``run`` is called.

    ``counts`` holds the requests ``scored``, ``failed``, answered as ``full``, and the messages ``refused``.

    Args:
        context: the context of the socket.
        socket: a bound ROUTER socket. From now on only this object uses it.
        config: the section ``reward``.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes], config: RewardConfig
    ) -> None:
        self._socket = socket
        self._queue = RequestQueue(config.queue_texts, config.batch_texts, config.batch_window_ms / 1000)
        self._life = uuid.uuid4().hex
        self._ready = self._stopping = False
        self._next_log = time.monotonic() + _LOG_EVERY_S
        self._stopwatch = Stopwatch()
        self.counts: Counter[str] = Counter()
        self._scorer_counts: Mapping[str, int] = {}
        # A ZeroMQ socket belongs to one thread. Replies of the main thread reach the other one through this pair.
        address = f"inproc://replies-{id(self)}"
        self._replies_in, self._replies_out = context.socket(zmq.PULL), context.socket(zmq.PUSH)
        self._replies_in.bind(address)
        self._replies_out.connect(address)
        self._thread = threading.Thread(target=self._exchange_messages, name="messages", daemon=True)
        self._thread.start()

    def run(self, score: ScoreBatch, counts: Mapping[str, int]) -> None:
        """Scores requests until interrupted; blocks forever.

        Args:
            score: scores a batch of requests.
            counts: further counters, which ``score`` updates, to report in answers to health messages.

        Raises:
            FatalError: the thread that exchanges messages died.
        """
        self._scorer_counts, self._ready = counts, True
        while True:
            idle = Activity("reward", "waiting for answers to score", silent_s=_IDLE_S)
            with self._stopwatch("waiting"), idle:
                batch = self._queue.take_batch(self._check_thread)
            with self._stopwatch("busy"):
                results = score_or_explain(score, [queued.request for queued in batch])
            for queued, result in zip(batch, results, strict=True):
                failed = isinstance(result, str)
                self.counts["failed" if failed else "scored"] += 1
                reply = self._reply(queued, [], result) if isinstance(result, str) else self._reply(queued, result)
                self._replies_out.send_multipart(reply)
            if time.monotonic() > self._next_log:
                self._next_log = time.monotonic() + _LOG_EVERY_S
                logger.info("%d texts are waiting; counters: %s", self._queue.texts, self.all_counts())

    def all_counts(self) -> dict[str, int]:
        """The counters of the service, the number of ``late`` requests that were dropped, and the scorer's counters."""
        late = {"late": self._queue.late} if self._queue.late else {}
        return dict(self.counts) | late | dict(self._scorer_counts)

    def close(self) -> None:
        """Ends the thread and closes its sockets, except the one that was passed in. Blocks for at most 1 s."""
        self._stopping = True
        self._thread.join(2 * _POLL_MS / 1000)
        self._replies_in.close(0)
        self._replies_out.close(0)

    def _check_thread(self) -> None:
        if not self._thread.is_alive():
            raise FatalError("the thread that exchanges messages died; its traceback is above")

    def _reply(self, to: QueuedRequest, scores: list[Score], error: str = "", full: bool = False) -> list[bytes]:
        spent = {"busy": 0.0, "waiting": 0.0} | self._stopwatch.seconds()
        reply = ScoreReply(
            id=to.request.id, scores=scores, error=error, full=full, busy_s=spent["busy"], waiting_s=spent["waiting"]
        )
        return [to.sender, encode(reply)]

    # -- messages: everything below runs in the thread -------------------------------------------------------------

    def _exchange_messages(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._replies_in, zmq.POLLIN)
        while not self._stopping:
            readable = dict(poller.poll(_POLL_MS))
            if self._replies_in in readable:
                self._socket.send_multipart(self._replies_in.recv_multipart())
            if self._socket in readable:
                self._handle_message(self._socket.recv_multipart())

    def _handle_message(self, frames: list[bytes]) -> None:
        try:
            if len(frames) != 2:
                raise WireError(f"{len(frames) - 1} frames instead of one")
            message = decode(frames[1])
            if isinstance(message, Health):
                health = Healthy(life=self._life, ready=self._ready, queued=self._queue.texts, counts=self.all_counts())
                self._socket.send_multipart([frames[0], encode(health)])
            elif isinstance(message, ScoreRequest):
                self._admit(QueuedRequest(frames[0], message, time.monotonic() + message.deadline_s))
            else:
                raise WireError(f"a reward process does not take messages of the kind {message.kind!r}")
        except WireError as error:  # a message that cannot be read has no id that could be answered
            self.counts["refused"] += 1
            times = self.counts["refused"]
            if times & (times - 1) == 0:  # the 1st, 2nd, 4th, 8th, ... is logged: a flood must not fill the disk
                logger.warning("refused a message (%d so far): %s", times, error)

    def _admit(self, queued: QueuedRequest) -> None:
        if not self._queue.add(queued):
            self.counts["full"] += 1
            self._socket.send_multipart(self._reply(queued, [], full=True))
