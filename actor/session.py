"""The actor's session with the learner.

It says hello, sends heartbeats, hands leased work and orders to its owner, and sends each finished group until the
learner acknowledges it. It begins before the engine does, so that the name is reserved and an actor whose engine still
starts hears of the end of the run. When the learner does not know the actor, because it has started again or has given
the actor up, the session drops all groups and says hello again.

Every message belongs to a life of the actor, which begins with each new hello, and to a life of the learner
(``common.wire.Lives``). What belongs to other lives is dropped and counted: an order to end the engine that was sent to
an earlier life, say.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import NoReturn, Protocol

from actor.engine.errors import EngineError
from actor.identity import is_gone
from common import wire
from common.config import HEARTBEAT_S
from common.net.rendezvous import Place, Route
from common.process import FatalError
from common.progress import Activity
from common.sparse_log import is_logged
from common.stood_still import WORTH_TELLING_S, stood_still_s
from common.threads import OneCall

log = logging.getLogger("actor")

_NO_LEARNER = (
    "nothing answers there. Start the learner with scripts/launch_learner.sh and the same configuration, or correct "
    "learner.address"
)
_SILENCE_S = 3 * HEARTBEAT_S  # after which the session looks whether the learner has moved, or the run is over
_LOOK_S = 5.0  # how long it waits for the rendezvous file
_OVER_S = 120.0  # an actor that finds the run marked as over waits this long for a learner that resumes it


class RunEnded(Exception):
    """The learner has ended the run for this actor.

    Args:
        error: why the learner refuses this actor; empty when the run is over.
    """

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


class SessionOwner(Protocol):
    """What the session reports, and where it hands on what the learner sends."""

    def make_hello(self) -> wire.Hello:
        """What the learner must know of this actor's engine before it gives it work."""

    def make_heartbeat(self) -> wire.Heartbeat:
        """The leases that the actor holds, where its time went, and the state of its engine."""

    def take_work(self, work: wire.Work, lives: wire.Lives) -> None:
        """Begins a group that was leased to these lives."""

    def drop_work(self) -> int:
        """Drops all leased groups, and the orders that wait; returns how many groups there were."""

    def take_order(self, order: wire.Join | wire.Pause | wire.Receive | wire.LoadAdapter) -> None:
        """Queues an order of the weight sync."""


class Session:
    """The learner as one life of an actor sees it. Until ``begin``, the actor has no engine.

    Attributes:
        dropped: number of messages that belonged to other lives.

    Args:
        learner: the connected route to it.
        name: of the actor.
        process: of the actor.
        settings: that its rollouts depend on, by which the learner sees that they are its own.
        lease_timeout_s: seconds after which a finished group is sent again.
        silence_timeout_s: seconds after which a silent learner is given up, counted from ``begin``.
    """

    def __init__(
        self,
        learner: Route,
        name: str,
        process: wire.ActorProcess,
        *,
        settings: Mapping[str, str],
        lease_timeout_s: float,
        silence_timeout_s: float,
    ) -> None:
        self.dropped = 0
        self._settings = dict(settings)
        self._learner, self._name, self._process = learner, name, process
        self._owner: SessionOwner | None = None
        self._lease_timeout_s = lease_timeout_s
        self._silence_timeout_s = silence_timeout_s
        self._began = self._last_heard = time.monotonic()
        self._over_before = learner.place.over  # an earlier run in the same place: its learner may be about to resume
        self._looking = OneCall(learner.look)
        self._hello: wire.Hello | None = None  # that the learner has not answered yet
        self._lives = wire.Lives("", "")  # of now; the learner's is empty until it has answered
        self._taken_since: float | None = None  # since when another actor is known to hold the name
        self._replaces = ""  # its life, if its process is gone
        self._acknowledged: dict[str, asyncio.Event] = {}  # by lease id, of the groups that are being delivered

    async def begin(self, owner: SessionOwner) -> None:
        """The engine is ready: from now on the actor wants work, which goes to ``owner``."""
        self._owner, self._last_heard = owner, time.monotonic()
        await self._say_hello()

    async def receive(self) -> NoReturn:
        """Says hello, then handles the learner's messages until it ends the run.

        Raises:
            RunEnded: the learner has ended the run, or refuses this actor.
            EngineError: the learner gave this engine up.
            FatalError: the learner does not admit this actor's connection.
        """
        with ExitStack() as activities:
            await self._receive(activities)

    async def _receive(self, activities: ExitStack) -> NoReturn:
        address = self._learner.place.address
        answer = activities.enter_context(
            Activity("actor", f"waiting for the learner at {address}", missing=_NO_LEARNER)
        )
        first_work: Activity | None = None
        if self._hello is None:  # else the engine was there first
            await self._say_hello()
        while True:
            frames = await self._learner.socket.recv_multipart()
            self._last_heard = time.monotonic()
            answer.end()
            if first_work is None and self._owner is not None:
                waiting = Activity("actor", "waiting for the first weights and prompts")
                first_work = activities.enter_context(waiting)
            try:
                message = wire.decode_frames(frames)
            except wire.WireError as error:
                log.warning("dropped a message of the learner: %s", error)
                continue
            if not isinstance(message, wire.LifeMessage):
                log.warning("dropped a message of the learner that is not for actors: %s", message.kind)
            elif not self._belongs(message):
                self._drop(message)
            else:
                if isinstance(message, wire.Leased) and message.work and first_work is not None:
                    first_work.end()
                await self._handle(message)

    def _belongs(self, message: wire.LifeMessage) -> bool:
        """Whether a message is meant for the actor and the learner of now."""
        if isinstance(message, wire.Stop) and not message.error:  # the end of a run is for every life
            return self._lives.learner in ("", message.learner_life)
        if isinstance(message, wire.Stop) and not any(message.lives):  # of a learner with another protocol
            return not self._lives.learner
        if isinstance(message, wire.Welcome | wire.Taken | wire.Unknown | wire.Stop):  # another learner may answer
            return message.actor_life == self._lives.actor
        return bool(self._lives.learner) and message.lives == self._lives

    def _drop(self, message: wire.LifeMessage) -> None:
        self.dropped += 1
        if is_logged(self.dropped):
            log.warning(
                "dropped a message of the learner that belongs to another life (%d so far): %s",
                self.dropped, message.kind,
            )  # fmt: skip

    async def _handle(self, message: wire.LifeMessage) -> None:
        """Handles a message that belongs to the lives of now."""
        match message:
            case wire.Welcome():
                self._lives, self._hello = message.lives, None
                self._taken_since, self._replaces = None, ""
            case wire.Taken():
                await self._wait_for_name(message)
            case wire.Unknown():
                await self._start_over("the learner does not know this actor any more")
            case wire.Leased() if self._owner is not None:
                for work in message.work:
                    self._owner.take_work(work, message.lives)
            case wire.Ack():
                for lease_id in message.accepted.keys() & self._acknowledged.keys():
                    self._acknowledged[lease_id].set()
            case wire.Join() | wire.Pause() | wire.Receive() | wire.LoadAdapter() if self._owner is not None:
                self._owner.take_order(message)
            case wire.Eject():
                raise EngineError(f"the learner gave this engine up: {message.reason}")
            case wire.Stop():
                raise RunEnded(message.error)
            case wire.Alive():
                pass
            case _:
                log.warning("dropped a message of the learner that is not for actors: %s", message.kind)

    async def _wait_for_name(self, taken: wire.Taken) -> None:
        holder = taken.holder
        if self._taken_since is None:
            self._taken_since = time.monotonic()
            log.warning(
                "the name %r is held by process %d on host %s, which was heard %.0f s ago: waiting whether it is there",
                self._name, holder.pid, holder.host, taken.silent_s,
            )  # fmt: skip
        if is_gone(holder, self._process) and self._replaces != taken.holder_life:
            log.info("process %d, which held the name %r, is gone", holder.pid, self._name)
            self._replaces = taken.holder_life
            await self._say_hello()

    async def send_heartbeats(self) -> NoReturn:
        """Sends a heartbeat every two seconds; to a learner that has not answered it says hello, again and again.

        The groups of a learner that falls silent are kept: it may have been stopped for a while. One that has given
        this actor up meanwhile, or has started again, answers the next heartbeat with ``Unknown``.

        Raises:
            FatalError: the learner was silent for ``silence_timeout_s`` seconds.
            RunEnded: the learner is silent because the run is over.
        """
        while True:
            asleep = time.monotonic()
            await asyncio.sleep(HEARTBEAT_S)
            if stood_s := stood_still_s(asleep, HEARTBEAT_S):
                level = logging.WARNING if stood_s > WORTH_TELLING_S else logging.DEBUG
                log.log(level, "this actor stood still for %.0f s, in which it could hear nobody", stood_s)
                self._last_heard = min(time.monotonic(), self._last_heard + stood_s)
            silence_s = time.monotonic() - self._last_heard
            address = self._learner.place.address
            place = await self._look() if silence_s > _SILENCE_S else None
            if place is not None and place.over and self._has_waited():
                raise RunEnded("")
            if self._owner is not None and silence_s > self._silence_timeout_s:
                raise FatalError(f"the learner at {address} has sent nothing for {silence_s:.0f} s")
            if self._learner.follow(place):
                await self._start_over(f"the learner has moved to {self._learner.place.address}")
            await self.send_heartbeat()

    async def _look(self) -> Place | None:
        """What the learner's file says. Without an answer of the file system in time, as if there were none."""
        with suppress(TimeoutError):
            return await self._looking.result(_LOOK_S)
        return None

    def _has_waited(self) -> bool:
        """Whether a learner would have resumed the run by now, if one was to."""
        return time.monotonic() - self._began > (_OVER_S if self._over_before else 0.0)

    async def send_heartbeat(self) -> None:
        """Sends one heartbeat now, or the hello that the learner has not answered yet.

        Raises:
            FatalError: the learner does not admit this actor's connection.
        """
        if self._hello is not None:
            if self._taken_since is not None:
                self._hello.waited_s = time.monotonic() - self._taken_since
            await self._learner.send(self._hello)
        elif self._lives.learner:
            beat = wire.Heartbeat(holding=[], seconds={}) if self._owner is None else self._owner.make_heartbeat()
            await self._learner.send(beat.of(self._lives))

    async def leave(self, reason: str, generating: list[str]) -> None:
        """Tells the learner that this life is over, so that its leases go to others at once. Does not wait.

        Args:
            reason: in words.
            generating: if the engine has ended by itself, the leases whose answers it was generating.

        Raises:
            FatalError: the learner does not admit this actor's connection.
        """
        if self._lives.learner:
            await self._learner.send(wire.Leave(reason=reason, generating=generating).of(self._lives))

    async def deliver(self, message: wire.Submit | wire.Release) -> None:
        """Sends a group again and again until the learner acknowledges it; the learner recognises duplicates.

        While the learner is silent nothing is sent again: the message waits in the connection. If it was lost with it,
        it is sent again when the learner is heard.

        The message must be marked with the lives that the group was leased to.

        Waits without a deadline; the learner's silence has one, see ``send_heartbeats``.

        Raises:
            FatalError: the learner does not admit this actor's connection.
        """
        acknowledged = self._acknowledged[message.id] = asyncio.Event()
        try:
            sent = -math.inf
            while not acknowledged.is_set():
                if self._last_heard > sent:
                    if math.isfinite(sent):
                        log.warning("group %s is not acknowledged yet: sending it again", message.id)
                    sent = time.monotonic()
                    await self._learner.send(message)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._lease_timeout_s):
                        await acknowledged.wait()
        finally:
            del self._acknowledged[message.id]

    async def _start_over(self, reason: str) -> None:
        dropped = self._owner.drop_work() if self._owner is not None else 0
        log.warning("%s: dropping %d groups and saying hello again", reason, dropped)
        await self._say_hello()

    async def _say_hello(self) -> None:
        """Begins a new life, of which the learner has to be told."""
        self._lives = wire.Lives(secrets.token_hex(6), "")
        if self._owner is None:
            hello = wire.Hello(protocol=wire.PROTOCOL, engine_ranks=0, slots=0, transport="group")
        else:
            hello = self._owner.make_hello()
        hello.name, hello.process, hello.replaces = self._name, self._process, self._replaces
        hello.settings = self._settings
        self._hello = hello.of(self._lives)
        await self.send_heartbeat()
