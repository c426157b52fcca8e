"""The actor's client of the reward service: any of several replicas, each request with a deadline."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from dataclasses import dataclass, field
from typing import NoReturn

import zmq.asyncio

from common import wire
from common.net.rendezvous import Route

log = logging.getLogger("actor.scoring")

_HEALTH_S = 1.0  # between two requests for a replica's health
_WARN_S = 60.0  # of silence of all replicas, after which each such time brings a warning
_SILENCE_S = 5.0  # a replica that has sent nothing for so long is used only where all others are silent too
_FULL_BACK_OFF_S = 0.1  # before asking again when all queues are full; doubles up to _HEALTH_S


class ScoringError(RuntimeError):
    """No replica scored the answers. The message names each replica and what it did instead."""


@dataclass
class _Replica:
    """One process of the reward service, and what this actor has asked it."""

    route: Route
    last_heard: float = field(default_factory=time.monotonic)
    life: str = ""  # changes when the process starts again
    busy_s: float = 0.0  # seconds of work since it started
    idle_s: float = 0.0  # seconds in which it waited for work
    waiting: dict[int, asyncio.Future[wire.ScoreReply]] = field(default_factory=dict)  # by request id

    @property
    def address(self) -> str:
        return self.route.place.address

    @property
    def silent(self) -> bool:
        return time.monotonic() - self.last_heard > _SILENCE_S


class Scoring:
    """Sends each request to the replica that has the fewest of this actor, and to another one if it falls silent.

    Args:
        context: of the sockets.
        timeout_s: deadline of a request in seconds, all its attempts together: ``reward.request_timeout_s``.
        routes: to the replicas; the constructor connects them.
    """

    def __init__(self, context: zmq.asyncio.Context, timeout_s: float, routes: list[Route]) -> None:
        self._timeout_s = timeout_s
        self._replicas = [_Replica(route) for route in routes]
        for route in routes:
            route.connect(context)
        self._ids = itertools.count()

    @property
    def seconds(self) -> dict[str, float]:
        """The time of the reward processes that have scored for this actor, added up.

        Seconds of work are ``reward_busy``, seconds of waiting for work ``reward_wait``. Empty before the first score.
        """
        busy_s = sum(replica.busy_s for replica in self._replicas)
        idle_s = sum(replica.idle_s for replica in self._replicas)
        return {"reward_busy": busy_s, "reward_wait": idle_s} if busy_s + idle_s else {}

    async def listen(self) -> None:
        """Receives replies and asks for the replicas' health until it is cancelled. Must run beside ``score``.

        Raises:
            FatalError: a replica does not admit this actor's connection.
        """
        await asyncio.gather(self._check_health(), *(self._receive(replica) for replica in self._replicas))

    async def score(
        self,
        question: wire.Question,
        answers: list[str],
        languages: list[str],
        truncated: list[bool],
        thinking_opened: bool = False,
    ) -> list[wire.Score]:
        """Has the K answers of a group scored. Waits at most ``timeout_s`` seconds.

        Args:
            question: what was asked.
            answers: [K] texts.
            languages: [K] requested language of each answer; empty where the policy chose it.
            truncated: [K] whether the answer reached the token limit.
            thinking_opened: whether the prompts ended with ``<think>``.

        Returns:
            [K] one score for each answer.

        Raises:
            ScoringError: no replica scored them in time, or every one reported an error.
        """
        deadline = time.monotonic() + self._timeout_s
        back_off_s = _FULL_BACK_OFF_S
        candidates = list(self._replicas)
        problems: dict[str, str] = {}  # by address
        while candidates and (left_s := deadline - time.monotonic()) > 0:
            replica = min(candidates, key=lambda each: (each.silent, len(each.waiting)))
            request = wire.ScoreRequest(
                id=next(self._ids),
                reference=question.reference,
                reference_language=question.language,
                answers=answers,
                languages=languages,
                truncated=truncated,
                thinking_opened=thinking_opened,
                topics=question.topics,
                accepted=question.accepted,
                deadline_s=left_s,
            )
            reply = await self._request(replica, request, deadline)
            if reply is None:
                problems[replica.address] = "no answer"
            elif reply.full:
                problems[replica.address] = "its queue is full"
                candidates.remove(replica)
                if not candidates:  # all are full: ask all of them again, after a while
                    candidates = list(self._replicas)
                    await asyncio.sleep(min(back_off_s, max(0.0, deadline - time.monotonic())))
                    back_off_s = min(2 * back_off_s, _HEALTH_S)
            elif not reply.error and len(reply.scores) == len(answers):
                replica.busy_s, replica.idle_s = reply.busy_s, reply.waiting_s
                return reply.scores
            else:
                problems[replica.address] = reply.error or "a score is missing"
                candidates.remove(replica)
        listed = "; ".join(f"{address}: {problem}" for address, problem in problems.items())
        raise ScoringError(f"no reward process scored the answers within {self._timeout_s:.0f} s: {listed}")

    async def _request(self, replica: _Replica, request: wire.ScoreRequest, deadline: float) -> wire.ScoreReply | None:
        """Asks one replica and waits for its reply.

        Returns:
            None at the deadline, when the replica has started again, or when it is silent while another one is not.
        """
        future = replica.waiting[request.id] = asyncio.get_running_loop().create_future()
        try:
            await replica.route.send(request)
            while (left_s := deadline - time.monotonic()) > 0:
                done, _ = await asyncio.wait([future], timeout=min(left_s, _HEALTH_S))
                if done:
                    return None if future.cancelled() else future.result()
                if replica.silent and not all(each.silent for each in self._replicas):
                    log.warning("the reward process at %s is silent: asking another one", replica.address)
                    return None
            return None
        finally:
            del replica.waiting[request.id]

    async def _check_health(self) -> NoReturn:
        warned = began = time.monotonic()
        while True:
            now, heard = time.monotonic(), max(replica.last_heard for replica in self._replicas)
            if now - max(heard, began) > _WARN_S and now - warned > _WARN_S:
                warned = now
                addresses = ", ".join(replica.address for replica in self._replicas)
                log.warning(
                    "no reward process has answered at %s for %.0f s: start one with scripts/launch_reward.sh and the "
                    "same configuration, or correct reward.addresses", addresses, now - heard,
                )  # fmt: skip
            for replica in self._replicas:
                if replica.silent and replica.route.follow():
                    log.warning("the reward process has moved to %s", replica.address)
                await replica.route.send(wire.Health())
            await asyncio.sleep(_HEALTH_S)

    async def _receive(self, replica: _Replica) -> NoReturn:
        while True:
            try:
                message = wire.decode(await replica.route.socket.recv())
            except wire.WireError as error:
                log.warning("dropped a message of the reward process at %s: %s", replica.address, error)
                continue
            replica.last_heard = time.monotonic()
            if isinstance(message, wire.Healthy):
                if replica.life not in ("", message.life):  # it has started again and knows nothing of its requests
                    for future in replica.waiting.values():
                        future.cancel()
                replica.life = message.life
            elif isinstance(message, wire.ScoreReply):
                waiting = replica.waiting.get(message.id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
