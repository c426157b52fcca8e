"""The actor's client of the reward service: any of several replicas, each request with a deadline."""

from __future__ import annotations

import asyncio
import itertools
import logging

import zmq.asyncio

from common import sockets, wire
from common.config import Reward

log = logging.getLogger("actor.scoring")


class ScoringError(RuntimeError):
    """No replica scored the answers; names them."""


class Scoring:
    """Sends score requests to the replica that answered last, and to the next one when it does not."""

    def __init__(self, context: zmq.asyncio.Context, config: Reward) -> None:
        self._config = config
        self._sockets = [sockets.connect(context, address) for address in config.addresses]
        self._waiting: dict[int, asyncio.Future[wire.ScoreReply]] = {}
        self._ids = itertools.count()
        self._replica = 0
        self.seconds: dict[str, float] = {}  # the reward process's own time, working and waiting

    async def listen(self) -> None:
        """Receives replies for ever; run it as a task beside ``score``."""
        await asyncio.gather(*(self._listen(socket) for socket in self._sockets))

    async def score(self, question: wire.Question, answers: list[str], languages: list[str]) -> list[wire.Score]:
        """A score for each answer.

        Raises:
            ScoringError: every replica was silent for ``request_timeout_s`` or reported an error.
        """
        problems = []
        for _ in self._sockets:
            replica = self._replica
            request = wire.ScoreRequest(
                id=next(self._ids),
                reference=question.reference,
                reference_language=question.language,
                answers=answers,
                languages=languages,
            )
            future = asyncio.get_running_loop().create_future()
            self._waiting[request.id] = future
            try:
                await self._sockets[replica].send(wire.encode(request))
                reply: wire.ScoreReply = await asyncio.wait_for(future, self._config.request_timeout_s)
                if not reply.error and len(reply.scores) == len(answers):
                    self.seconds = {"reward_busy": reply.busy_s, "reward_wait": reply.waiting_s}
                    return reply.scores
                problems.append(f"{self._config.addresses[replica]}: {reply.error or 'a score is missing'}")
            except TimeoutError:
                silence = f"no answer within {self._config.request_timeout_s:.0f} s"
                problems.append(f"{self._config.addresses[replica]}: {silence}")
            finally:
                del self._waiting[request.id]
            self._replica = (replica + 1) % len(self._sockets)
        raise ScoringError("no reward process scored the answers: " + "; ".join(problems))

    async def _listen(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            try:
                reply = wire.decode(await socket.recv())
            except wire.WireError as error:
                log.warning("dropped a message of the reward process: %s", error)
                continue
            if isinstance(reply, wire.ScoreReply) and (future := self._waiting.get(reply.id)) and not future.done():
                future.set_result(reply)
