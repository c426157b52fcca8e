"""``python -m reward CONFIG.toml [--reward.replica 1 ...]``: the reward service of all actors.

It keeps nothing that matters between requests: it may be killed and restarted at any time, and may run several times.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

import zmq

from common.config import Config, Reward
from common.process import Stopwatch, main
from common.sockets import bind
from common.wire import Score, ScoreReply, ScoreRequest, WireError, decode, encode

logger = logging.getLogger("reward")

_POLL_MS = 500  # a signal that arrives just before the wait is noticed after this long
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


class Service:
    """Collects requests of all peers for a moment, scores them as one batch, answers each."""

    def __init__(self, socket: zmq.Socket[bytes], score: ScoreBatch, config: Reward) -> None:
        self._socket = socket
        self._score = score
        self._window_s = config.batch_window_ms / 1000
        self._batch_texts = config.batch_texts
        self._watch = Stopwatch()
        self._ignored = 0

    def run(self) -> None:
        """Serves until interrupted."""
        while True:
            with self._watch("waiting"):
                batch = self._collect()
            self._answer(batch)

    def _collect(self) -> list[tuple[bytes, ScoreRequest]]:
        """Waits for a request, then for others until the window closes or the batch is full.

        What is already in the socket's queue is taken even after the window has closed.
        """
        batch: list[tuple[bytes, ScoreRequest]] = []
        texts, closes = 0, math.inf
        while texts < self._batch_texts:
            left_ms = _POLL_MS if not batch else math.ceil(1000 * max(0.0, closes - time.monotonic()))
            if not self._socket.poll(left_ms):
                if batch:
                    break
                continue
            received = self._receive()
            if received is None:
                continue
            if not batch:
                closes = time.monotonic() + self._window_s
            batch.append(received)
            texts += 1 + len(received[1].answers)
        return batch

    def _receive(self) -> tuple[bytes, ScoreRequest] | None:
        frames = self._socket.recv_multipart()
        try:
            if len(frames) != 2:
                raise WireError(f"{len(frames) - 1} frames instead of one")
            message = decode(frames[1])
            if not isinstance(message, ScoreRequest):
                raise WireError(f"a {message.kind!r} message does not belong here")
        except WireError as error:  # without a request there is no id to answer under
            self._ignored += 1
            logger.warning("ignored a message (%d so far): %s", self._ignored, error)
            return None
        return frames[0], message

    def _answer(self, batch: Sequence[tuple[bytes, ScoreRequest]]) -> None:
        with self._watch("busy"):
            results = score_or_explain(self._score, [request for _, request in batch])
        seconds = self._watch.seconds()
        with self._watch("busy"):
            for (peer, request), result in zip(batch, results, strict=True):
                reply = ScoreReply(
                    id=request.id,
                    scores=[] if isinstance(result, str) else result,
                    error=result if isinstance(result, str) else "",
                    busy_s=seconds["busy"],
                    waiting_s=seconds["waiting"],
                )
                self._socket.send_multipart([peer, encode(reply)])


def serve(config: Config) -> None:
    """
    Raises:
        FatalError: the address is taken, or a model cannot be loaded.
        ConfigError: the calibration file is missing or malformed.
    """
    address = config.reward.addresses[config.reward.replica]
    with zmq.Context() as context, bind(context, address) as socket:
        # Not imported at the top: it takes seconds, and a taken port should be known at once.
        from reward.scorer import Scorer

        scorer = Scorer(config.reward)
        scorer.warm_up()
        logger.info("reward ready on %s", address)
        Service(socket, scorer.score, config.reward).run()


if __name__ == "__main__":
    main(serve)
