"""The actor's client of the reward service: any of several replicas, each request with a deadline.

A request that its replica has not answered after a while is sent to the next one as well, long before the deadline; the
first scores count. So a replica that hangs, or whose host does, costs a little time and no group.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

import zmq.asyncio

from common import wire
from common.net.rendezvous import Place, Route
from common.stood_still import stood_still_s
from common.threads import OneCall

log = logging.getLogger("actor.scoring")

_HEALTH_S = 1.0  # between two requests for a replica's health
_WARN_S = 60.0  # of silence of all replicas, after which each such time brings a warning
_SILENCE_S = 5.0  # a replica that has sent nothing for so long, or got on with nothing, is asked last
_LOOK_S = 5.0  # how long the file that says where a silent replica is may take
# After this much silence the connection is made anew: what waits in the old one would arrive when nobody wants it.
_CUT_S = 15.0
_LONGEST_CUTS = 8  # the wait doubles with every new connection, up to this many times _CUT_S
_FULL_BACK_OFF_S = 0.1  # before asking again when all queues are full; doubles up to _HEALTH_S
_LATENCIES = 100  # of the newest scores, from which the patience with a replica follows
_LEAST_LATENCIES = 8  # before so many are known, the patience is _SILENCE_S
_LEAST_PATIENCE_S = 0.2


class ScoringError(RuntimeError):
    """No replica scored the answers. The message names each replica and what it did instead.

    Args:
        message: what happened.
        later: whether nothing speaks against these answers: replicas are out of reach, full, or wait for a judge.
    """

    def __init__(self, message: str, later: bool) -> None:
        super().__init__(message)
        self.later = later


@dataclass
class Replica:
    """One process of the reward service, and what this actor has asked it."""

    route: Route
    last_heard: float = field(default_factory=time.monotonic)
    life: str = ""  # changes when the process starts again
    busy_s: float = 0.0  # seconds of work in this life
    idle_s: float = 0.0  # seconds of this life in which it waited for work
    earlier_busy_s: float = 0.0  # the same of its earlier lives, each as far as this actor was told
    earlier_idle_s: float = 0.0
    stalled_s: float = 0.0  # for how long it had got on with nothing, when it said so last
    asked: float = 0.0  # monotonic time of the newest request
    overdue: bool = False  # it has let a request wait for too long, and has finished none since
    waiting: dict[int, asyncio.Future[wire.ScoreReply]] = field(default_factory=dict)  # by request id

    @property
    def address(self) -> str:
        return self.route.place.address

    @property
    def silent(self) -> bool:
        return max(time.monotonic() - self.last_heard, self.stalled_s) > _SILENCE_S

    def rank(self) -> tuple[bool, bool, int, float]:
        """The smallest is asked first: the one with the fewest requests, and of these the one asked the longest ago.

        Otherwise all actors would ask the first of several idle ones.
        """
        return self.silent, self.overdue, len(self.waiting), self.asked

    def ask_again(self) -> None:
        """What was asked of it is lost, as it has started again or its connection was made anew."""
        for future in self.waiting.values():
            future.cancel()


@dataclass
class _Asking:
    """One request on its way.

    Attributes:
        free: replicas that may be asked.
        tasks: those that are being asked, and the monotonic time since when; the newest last.
        newest_at: when the newest of all was asked, also if it has replied since.
        full: those whose queue was full.
        problems: why each that was asked sent no scores, by address.
        refused: some replica says that the fault lies in the answers.
    """

    free: list[Replica]
    tasks: dict[asyncio.Task[wire.ScoreReply | None], tuple[Replica, float]] = field(default_factory=dict)
    newest_at: float = 0.0
    full: list[Replica] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    refused: bool = False

    @property
    def newest(self) -> Replica:
        return [*self.tasks.values()][-1][0]

    def hear(self, replica: Replica, reply: wire.ScoreReply | None, count: int) -> list[wire.Score] | None:
        """The scores of ``count`` answers; None, and the problem is kept, where the reply has none."""
        if reply is None:
            self.problems[replica.address] = "it started again, or its connection was made anew"
            self.free.append(replica)
        elif reply.full:
            self.problems[replica.address] = "its queue is full"
            self.full.append(replica)
        elif not reply.error and len(reply.scores) == count:
            return reply.scores
        else:
            self.problems[replica.address] = reply.error or "a score is missing"
            self.refused |= not reply.later
        return None


class Scoring:
    """Sends each request to the replica that has the fewest of this actor, and to the next one if that takes too long.

    Of several with as few, it is the one that was asked the longest ago.

    Args:
        context: of the sockets.
        timeout_s: deadline of a request in seconds, all its attempts together: ``reward.request_timeout_s``.
        routes: to the replicas; the constructor connects them.
    """

    def __init__(self, context: zmq.asyncio.Context, timeout_s: float, routes: list[Route]) -> None:
        self._timeout_s = timeout_s
        self._replicas = [Replica(route) for route in routes]
        for route in routes:
            route.connect(context)
        self._ids = itertools.count()
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)  # seconds of the newest scores

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The replicas, for whoever watches them."""
        return tuple(self._replicas)

    @property
    def seconds(self) -> dict[str, float]:
        """The time of the reward processes that have scored for this actor, added up, also over their lives.

        Seconds of work are ``reward_busy``, seconds of waiting for work ``reward_wait``. Empty before the first score.
        """
        busy_s = sum(replica.earlier_busy_s + replica.busy_s for replica in self._replicas)
        idle_s = sum(replica.earlier_idle_s + replica.idle_s for replica in self._replicas)
        return {"reward_busy": busy_s, "reward_wait": idle_s} if busy_s + idle_s else {}

    async def listen(self) -> None:
        """Receives replies and asks for the replicas' health until it is cancelled. Must run beside ``score``.

        Raises:
            FatalError: a replica does not admit this actor's connection.
        """
        each = ((self._check_health(replica), self._receive(replica)) for replica in self._replicas)
        await asyncio.gather(self._warn(), *itertools.chain.from_iterable(each))

    async def score(
        self,
        question: wire.Question,
        answers: list[str],
        languages: list[str],
        truncated: list[bool],
        thinking_opened: bool = False,
        tokens: list[int] | None = None,
    ) -> list[wire.Score]:
        """Has the K answers of a group scored. Waits at most ``timeout_s`` seconds.

        Args:
            question: what was asked.
            answers: [K] texts.
            languages: [K] requested language of each answer; empty where the policy chose it.
            truncated: [K] whether the answer reached the token limit.
            thinking_opened: whether the prompts ended with ``<think>``.
            tokens: [K] number of tokens of each answer.

        Returns:
            [K] one score for each answer.

        Raises:
            ScoringError: no replica scored them in time, or every one reported an error.
        """
        request = wire.ScoreRequest(
            id=0,
            reference=question.reference,
            reference_language=question.language,
            answers=answers,
            languages=languages,
            truncated=truncated,
            thinking_opened=thinking_opened,
            topics=question.topics,
            accepted=question.accepted,
            row=question.index,
            messages=question.messages,
            extra=question.extra,
            tokens=tokens or [],
        )
        return await self._ask(request)

    async def _ask(self, request: wire.ScoreRequest) -> list[wire.Score]:
        """Asks one replica after another until one has scored; raises ScoringError as ``score`` says."""
        deadline, back_off_s = time.monotonic() + self._timeout_s, _FULL_BACK_OFF_S
        asking = _Asking(free=list(self._replicas))
        try:
            while (left_s := deadline - time.monotonic()) > 0:
                if asking.free and (not asking.tasks or self._is_overdue(asking.newest, asking.newest_at)):
                    self._ask_next(asking, request, left_s)
                if asking.tasks:
                    pause_s = min(left_s, self._patience_s() / 2) if asking.free else left_s
                    done, _ = await asyncio.wait(asking.tasks, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        replica, began_at = asking.tasks.pop(task)
                        scores = asking.hear(replica, task.result(), len(request.answers))
                        if scores is not None:
                            self._latencies.append(time.monotonic() - began_at)
                            return scores
                elif asking.full:  # all have refused; those that are full are asked again, after a while
                    await asyncio.sleep(min(back_off_s, left_s))
                    back_off_s = min(2 * back_off_s, _HEALTH_S)
                    asking.free, asking.full = asking.full, []
                else:
                    break
        finally:
            for task in asking.tasks:
                task.cancel()
        problems = asking.problems | {replica.address: "no answer" for replica, _ in asking.tasks.values()}
        listed = "; ".join(f"{address}: {problem}" for address, problem in problems.items())
        message = f"no reward process scored the answers within {self._timeout_s:.0f} s: {listed}"
        raise ScoringError(message, later=not asking.refused)

    def _ask_next(self, asking: _Asking, request: wire.ScoreRequest, left_s: float) -> None:
        replica = min(asking.free, key=Replica.rank)
        asking.free.remove(replica)
        asking.newest_at = replica.asked = time.monotonic()
        numbered = request.model_copy({"id": next(self._ids), "deadline_s": left_s})
        asking.tasks[asyncio.create_task(self._request(replica, numbered))] = replica, asking.newest_at

    def _patience_s(self) -> float:
        """How long a replica may take before another one is asked as well: twice what nine in ten scores take."""
        if len(self._latencies) < _LEAST_LATENCIES:
            patience_s = _SILENCE_S
        else:
            patience_s = 2 * sorted(self._latencies)[int(0.9 * len(self._latencies))]
        # The last replica should also get a good part of the deadline.
        return min(max(patience_s, _LEAST_PATIENCE_S), self._timeout_s / (len(self._replicas) + 1))

    def _is_overdue(self, replica: Replica, asked_at: float) -> bool:
        """Whether it is time to ask another replica as well, because the one that was asked takes too long."""
        if replica.silent and not all(each.silent for each in self._replicas):
            overdue = True
        else:
            overdue = time.monotonic() - asked_at >= self._patience_s()
        if overdue and not replica.overdue:
            replica.overdue = True
            log.warning("the reward process at %s takes long: asking another one as well", replica.address)
        return overdue

    async def _request(self, replica: Replica, request: wire.ScoreRequest) -> wire.ScoreReply | None:
        """Asks one replica and waits for its reply until it is cancelled. None: the request is lost; ask again."""
        future = replica.waiting[request.id] = asyncio.get_running_loop().create_future()
        try:
            await replica.route.send(request)
            await asyncio.wait([future])
            return None if future.cancelled() else future.result()
        finally:
            del replica.waiting[request.id]

    async def _warn(self) -> NoReturn:
        """Says now and then that no replica answers."""
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
            await asyncio.sleep(_HEALTH_S)

    async def _check_health(self, replica: Replica) -> NoReturn:
        """Asks a replica for its health, and looks for it while it is silent."""
        looking, since = OneCall(replica.route.look), time.monotonic()  # since when it could have answered
        patience_s = _CUT_S
        while True:
            if not replica.silent:
                patience_s = _CUT_S
            else:
                place: Place | None = None
                with suppress(TimeoutError):  # the file system hangs, and the health of the others is no matter of it
                    place = await looking.result(_LOOK_S)
                if replica.route.follow(place):
                    log.warning("the reward process has moved to %s", replica.address)
                    replica.ask_again()
                    since = time.monotonic()
                elif time.monotonic() - max(replica.last_heard, since) > patience_s:
                    replica.route.reconnect()
                    replica.ask_again()
                    since = time.monotonic()
                    # One that answers, but slower than that, must get to it at last.
                    patience_s = min(2 * patience_s, _LONGEST_CUTS * _CUT_S)
            await replica.route.send(wire.Health())
            asleep = time.monotonic()
            await asyncio.sleep(_HEALTH_S)
            if stood_s := stood_still_s(asleep, _HEALTH_S):
                since = time.monotonic()
                replica.last_heard = min(since, replica.last_heard + stood_s)

    async def _receive(self, replica: Replica) -> NoReturn:
        while True:
            try:
                message = wire.decode(await replica.route.socket.recv())
            except wire.WireError as error:
                log.warning("dropped a message of the reward process at %s: %s", replica.address, error)
                continue
            replica.last_heard = time.monotonic()
            if isinstance(message, wire.Healthy):
                if replica.life not in ("", message.life):  # it has started again and knows nothing of its requests
                    replica.ask_again()
                    replica.earlier_busy_s += replica.busy_s
                    replica.earlier_idle_s += replica.idle_s
                    replica.busy_s = replica.idle_s = 0.0  # its clocks begin anew
                replica.life, replica.stalled_s = message.life, message.stalled_s
                if message.ready and not message.queued and not message.stalled_s:
                    replica.overdue = False  # it has nothing left to do
            elif isinstance(message, wire.ScoreReply):
                if not message.full:
                    replica.overdue, replica.stalled_s = False, 0.0
                    # Replies to one and the same actor may overtake each other.
                    replica.busy_s = max(replica.busy_s, message.busy_s)
                    replica.idle_s = max(replica.idle_s, message.waiting_s)
                waiting = replica.waiting.get(message.id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
