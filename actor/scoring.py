"""The actor's client of the reward service: any of several replicas, each request with a deadline."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from dataclasses import dataclass, field

import zmq.asyncio

from common import wire
from common.net.rendezvous import Route

log = logging.getLogger("actor.scoring")

_BEAT_S = 1.0
_SILENCE_S = 5.0  # a replica that has not answered a question for its health for so long is not relied on
_PAUSE_S = 0.1  # before asking again when all queues are full; doubles up to _BEAT_S


class ScoringError(RuntimeError):
    """No replica scored the answers; names them."""


@dataclass
class _Replica:
    route: Route
    heard: float = field(default_factory=time.monotonic)
    life: str = ""
    busy_s: float = 0.0  # working, and waiting for work, since it started
    idle_s: float = 0.0
    waiting: dict[int, asyncio.Future[wire.ScoreReply]] = field(default_factory=dict)  # by request id

    @property
    def address(self) -> str:
        return self.route.place.address

    @property
    def silent(self) -> bool:
        return time.monotonic() - self.heard > _SILENCE_S


class Scoring:
    """Sends each request to the replica with the fewest of ours, and on to another one when it falls silent."""

    def __init__(self, context: zmq.asyncio.Context, timeout_s: float, routes: list[Route]) -> None:
        self._timeout_s = timeout_s
        self._replicas = [_Replica(route) for route in routes]
        for route in routes:
            route.connect(context)
        self._ids = itertools.count()

    @property
    def seconds(self) -> dict[str, float]:
        """The reward processes' own time, of all that have scored for this actor."""
        busy, idle = sum(one.busy_s for one in self._replicas), sum(one.idle_s for one in self._replicas)
        return {"reward_busy": busy, "reward_wait": idle} if busy + idle else {}

    async def listen(self) -> None:
        """Receives replies and watches the replicas' health for ever; run it as a task beside ``score``."""
        await asyncio.gather(self._beat(), *(self._listen(replica) for replica in self._replicas))

    async def score(
        self, question: wire.Question, answers: list[str], languages: list[str], truncated: list[bool]
    ) -> list[wire.Score]:
        """A score for each answer.

        Raises:
            ScoringError: no replica gave them within ``request_timeout_s``, or each reported an error.
        """
        deadline, pause = time.monotonic() + self._timeout_s, _PAUSE_S
        left, problems = list(self._replicas), dict[str, str]()
        while left and (rest := deadline - time.monotonic()) > 0:
            replica = min(left, key=lambda one: (one.silent, len(one.waiting)))
            request = wire.ScoreRequest(
                id=next(self._ids),
                reference=question.reference,
                reference_language=question.language,
                answers=answers,
                languages=languages,
                truncated=truncated,
                topics=question.topics,
                accepted=question.accepted,
                deadline_s=rest,
            )
            reply = await self._ask(replica, request, deadline)
            if reply is None:
                problems[replica.address] = "no answer"
            elif reply.full:
                problems[replica.address] = "its queue is full"
                left.remove(replica)
                if not left:  # all are full: all are asked again
                    left = list(self._replicas)
                    await asyncio.sleep(min(pause, max(0.0, deadline - time.monotonic())))
                    pause = min(2 * pause, _BEAT_S)
            elif not reply.error and len(reply.scores) == len(answers):
                replica.busy_s, replica.idle_s = reply.busy_s, reply.waiting_s
                return reply.scores
            else:
                problems[replica.address] = reply.error or "a score is missing"
                left.remove(replica)
        told = "; ".join(f"{address}: {problem}" for address, problem in problems.items())
        raise ScoringError(f"no reward process scored the answers, with {self._timeout_s:.0f} s to do it: {told}")

    async def _ask(self, replica: _Replica, request: wire.ScoreRequest, deadline: float) -> wire.ScoreReply | None:
        """The reply; None at the deadline, or when the replica has started again or is silent while another is not."""
        future = replica.waiting[request.id] = asyncio.get_running_loop().create_future()
        try:
            await replica.route.send(request)
            while (rest := deadline - time.monotonic()) > 0:
                done, _ = await asyncio.wait([future], timeout=min(rest, _BEAT_S))
                if done:
                    return None if future.cancelled() else future.result()
                if replica.silent and not all(other.silent for other in self._replicas):
                    log.warning("%s is silent: asking another reward process", replica.address)
                    return None
            return None
        finally:
            del replica.waiting[request.id]

    async def _beat(self) -> None:
        while True:
            for replica in self._replicas:
                if replica.silent and replica.route.follow():
                    log.warning("the reward process is at %s now", replica.address)
                await replica.route.send(wire.Health())
            await asyncio.sleep(_BEAT_S)

    async def _listen(self, replica: _Replica) -> None:
        while True:
            try:
                reply = wire.decode(await replica.route.socket.recv())
            except wire.WireError as error:
                log.warning("dropped a message of the reward process: %s", error)
                continue
            replica.heard = time.monotonic()
            if isinstance(reply, wire.Healthy):
                if replica.life not in ("", reply.life):  # what it was asked before died with it
                    for lost in replica.waiting.values():
                        lost.cancel()
                replica.life = reply.life
            if isinstance(reply, wire.ScoreReply) and (future := replica.waiting.get(reply.id)) and not future.done():
                future.set_result(reply)
