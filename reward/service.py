"""The reward service: a thread receives and answers messages at once, while the main thread scores what is queued."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Protocol

import msgspec
import zmq

from common.config import RewardConfig
from common.process import FatalError
from common.progress import Activity
from common.sparse_log import is_logged
from common.wire import Health, Healthy, Score, ScoreReply, ScoreRequest, WireError, decode, encode, read_heading
from reward.batching import QueuedRequest, RequestQueue
from reward.scored import ScoredAnswer, UnscoredError

logger = logging.getLogger("reward")

_POLL_MS = 500  # the thread notices within this time that it should end
_LOG_EVERY_S = 60
_IDLE_S = 55  # the log mentions only longer pauses between two batches
_MAX_ERROR = 500  # characters of an error message that are sent to an actor


class BatchScorer(Protocol):
    """What the service needs of ``reward.scorer.Scorer``, which explains each part."""

    @property
    def counts(self) -> Mapping[str, int]: ...

    def begin(self, requests: Sequence[ScoreRequest]) -> Sequence[Future[list[ScoredAnswer]]]: ...

    def busy_s(self) -> float: ...

    def stalled_s(self) -> float: ...

    def check(self) -> None: ...


class Service:
    """Answers requests from actors. Construction starts the thread that owns the socket; ``run`` scores.

    A request that finds the queue full is answered at once with ``full``. One that waited for longer than its sender
    does is dropped. A health message is answered at once, also before ``run`` is called; the answer says for how long
    the work has made no progress.

    ``counts`` holds the requests ``scored``, ``failed``, put off as ``later``, answered as ``full``, and the messages
    ``refused``.

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
        self._scorer: BatchScorer | None = None
        self._stopping = self._ended = False
        self._began = time.monotonic()
        self._next_log = time.monotonic() + _LOG_EVERY_S
        self._fatal: FatalError | None = None  # met while a request was finished
        self.counts: Counter[str] = Counter()
        # A ZeroMQ socket belongs to one thread. Replies of other threads reach that one through this pair, whose
        # sending end they share under a lock.
        address = f"inproc://replies-{id(self)}"
        self._replies_in, self._replies_out = context.socket(zmq.PULL), context.socket(zmq.PUSH)
        self._replies_in.bind(address)
        self._replies_out.connect(address)
        self._reply_lock = threading.Lock()
        self._thread = threading.Thread(target=self._exchange_messages, name="messages", daemon=True)
        self._thread.start()

    def run(self, scorer: BatchScorer) -> None:
        """Scores requests until interrupted; blocks forever.

        Raises:
            FatalError: the thread that exchanges messages died, or the scorer cannot go on.
        """
        self._scorer = scorer
        try:
            while True:
                self._score_batch(scorer)
        finally:
            self._ended = True

    def _score_batch(self, scorer: BatchScorer) -> None:
        with Activity("reward", "waiting for answers to score", silent_s=_IDLE_S):
            batch = self._queue.take_batch(partial(self._check, scorer))
        # A request waits for scores no longer than its sender does.
        now = time.monotonic()
        requests = [msgspec.structs.replace(one.request, deadline_s=max(0.0, one.expires - now)) for one in batch]
        for queued, future in zip(batch, scorer.begin(requests), strict=True):
            future.add_done_callback(partial(self._finish, queued))
        if time.monotonic() > self._next_log:
            self._next_log = time.monotonic() + _LOG_EVERY_S
            logger.info("%d texts are waiting; counters: %s", self._queue.texts, self.all_counts())

    def all_counts(self) -> dict[str, int]:
        """The counters of the service, the number of ``late`` requests that were dropped, and the scorer's counters."""
        late = {"late": self._queue.late} if self._queue.late else {}
        return dict(self.counts) | late | (dict(self._scorer.counts) if self._scorer is not None else {})

    def close(self) -> None:
        """Ends the thread and closes its sockets, except the one that was passed in. Blocks for at most 1 s."""
        self._stopping = True
        self._thread.join(2 * _POLL_MS / 1000)
        with self._reply_lock:
            self._replies_in.close(0)
            self._replies_out.close(0)

    def _check(self, scorer: BatchScorer) -> None:
        if self._fatal is not None:
            raise self._fatal
        scorer.check()
        if not self._thread.is_alive():
            raise FatalError("the thread that exchanges messages died; its traceback is above")

    def _finish(self, queued: QueuedRequest, future: Future[list[ScoredAnswer]]) -> None:
        """Replies to a request; in whichever thread has finished it."""
        self._queue.finish(queued)
        if self._stopping or (future.cancelled() and self._ended):
            return
        error = UnscoredError("its scoring was cancelled") if future.cancelled() else future.exception()
        with self._reply_lock:
            if error is None:
                self.counts["scored"] += 1
                reply = self._reply(queued, [one.score for one in future.result()])
            else:
                if isinstance(error, FatalError):
                    self._fatal = error
                later = isinstance(error, UnscoredError | TimeoutError | FatalError)
                name = "later" if later else "failed"
                self.counts[name] += 1
                text = "not scored before the deadline" if isinstance(error, TimeoutError) else str(error)
                times = self.counts[name]
                if is_logged(times):
                    expected = later or isinstance(error, ValueError)
                    trace = None if expected else error
                    logger.warning("cannot score request %d (%d so far): %s", queued.request.id, times, text,
                                   exc_info=trace)  # fmt: skip
                reply = self._reply(queued, [], f"{type(error).__name__}: {text}"[:_MAX_ERROR], later=later)
            self._replies_out.send_multipart(reply)

    def _reply(
        self, to: QueuedRequest, scores: list[Score], error: str = "", full: bool = False, later: bool = False
    ) -> list[bytes]:
        busy_s = self._scorer.busy_s() if self._scorer is not None else 0.0
        reply = ScoreReply(
            id=to.request.id,
            scores=scores,
            error=error,
            full=full,
            later=later,
            busy_s=busy_s,
            waiting_s=max(0.0, time.monotonic() - self._began - busy_s),
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
                self._socket.send_multipart([frames[0], encode(self._health())])
            elif isinstance(message, ScoreRequest):
                self._admit(QueuedRequest(frames[0], message, time.monotonic() + message.deadline_s))
            else:
                raise WireError(f"a reward process does not take messages of the kind {message.kind!r}")
        except WireError as error:
            self._answer_stranger(frames, error)
            self.counts["refused"] += 1
            times = self.counts["refused"]
            if is_logged(times):
                logger.warning("refused a message (%d so far): %s", times, error)

    def _answer_stranger(self, frames: list[bytes], error: WireError) -> None:
        """Tells an actor of another version, whose request cannot be read as a whole, why there are no scores."""
        heading = read_heading(frames[1]) if len(frames) == 2 else None
        if heading is not None and heading.kind == "score" and isinstance(heading.id, int):
            reason = (
                f"the reward process cannot read the request, perhaps it is of another version than the actor: {error}"
            )
            reply = ScoreReply(
                id=heading.id, scores=[], error=reason[:_MAX_ERROR], busy_s=0.0, waiting_s=0.0, later=True
            )
            self._socket.send_multipart([frames[0], encode(reply)])

    def _health(self) -> Healthy:
        return Healthy(
            life=self._life,
            ready=self._scorer is not None,
            queued=self._queue.texts,
            counts=self.all_counts(),
            stalled_s=self._scorer.stalled_s() if self._scorer is not None else 0.0,
        )

    def _admit(self, queued: QueuedRequest) -> None:
        if not self._queue.add(queued):
            self.counts["full"] += 1
            self._socket.send_multipart(self._reply(queued, [], full=True))
