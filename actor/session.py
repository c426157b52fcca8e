"""The actor's session with the learner.

It says hello, sends heartbeats, hands leased work and orders to its owner, and sends each finished group until the
learner acknowledges it. When the learner does not know the actor, because it has started again or has given the actor
up, the session drops all groups and says hello again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import ExitStack
from typing import NoReturn, Protocol

from actor.engine.client import EngineError
from common import wire
from common.config import HEARTBEAT_S
from common.net.rendezvous import Route
from common.process import FatalError
from common.progress import Activity

log = logging.getLogger("actor")

_NO_LEARNER = (
    "nothing answers there. Start the learner with scripts/launch_learner.sh and the same configuration, or correct "
    "learner.address"
)
_SILENCE_S = 3 * HEARTBEAT_S  # after which the session looks whether the learner has moved to another address


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
        """What the learner must know of this actor before it gives it work."""

    def make_heartbeat(self) -> wire.Heartbeat:
        """The leases that the actor holds, where its time went, and the state of its engine."""

    def take_work(self, work: wire.Work) -> None:
        """Begins a leased group."""

    def drop_work(self) -> int:
        """Drops all leased groups and returns how many there were."""

    def take_order(self, order: wire.Join | wire.Pause | wire.Receive | wire.LoadAdapter) -> None:
        """Queues an order of the weight sync."""


class Session:
    """The learner as one actor sees it.

    Args:
        learner: the connected route to it.
        owner: the rest of the actor.
        lease_timeout_s: seconds after which a finished group is sent again, or hello is said again to a silent learner.
        silence_timeout_s: seconds after which a silent learner is given up.
    """

    def __init__(
        self, learner: Route, owner: SessionOwner, *, lease_timeout_s: float, silence_timeout_s: float
    ) -> None:
        self._learner = learner
        self._owner = owner
        self._lease_timeout_s = lease_timeout_s
        self._silence_timeout_s = silence_timeout_s
        self._last_heard = time.monotonic()
        self._acknowledged: dict[str, asyncio.Event] = {}  # by lease id, of the groups that are being delivered

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
        await self._learner.send(self._owner.make_hello())
        while True:
            data = await self._learner.socket.recv()
            self._last_heard = time.monotonic()
            answer.end()
            if first_work is None:
                waiting = Activity("actor", "waiting for the first weights and prompts")
                first_work = activities.enter_context(waiting)
            try:
                message = wire.decode(data)
            except wire.WireError as error:
                log.warning("dropped a message of the learner: %s", error)
                continue
            match message:
                case wire.Unknown():
                    await self._start_over("the learner does not know this actor")
                case wire.Leased():
                    if message.work:
                        first_work.end()
                    for work in message.work:
                        self._owner.take_work(work)
                case wire.Ack():
                    for lease_id in message.accepted.keys() & self._acknowledged.keys():
                        self._acknowledged[lease_id].set()
                case wire.Join() | wire.Pause() | wire.Receive() | wire.LoadAdapter():
                    self._owner.take_order(message)
                case wire.Eject():
                    raise EngineError(f"the learner gave this engine up: {message.reason}")
                case wire.Stop():
                    raise RunEnded(message.error)
                case wire.Welcome() | wire.Alive():
                    pass
                case _:
                    log.warning("dropped a message of the learner that is not for actors: %s", message.kind)

    async def send_heartbeats(self) -> NoReturn:
        """Sends a heartbeat every two seconds; to a silent learner also hello, again and again.

        Raises:
            FatalError: the learner was silent for ``silence_timeout_s`` seconds.
        """
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            silence_s = time.monotonic() - self._last_heard
            address = self._learner.place.address
            if silence_s > self._silence_timeout_s:
                raise FatalError(f"the learner at {address} has sent nothing for {silence_s:.0f} s")
            if silence_s > _SILENCE_S and self._learner.follow():
                await self._start_over(f"the learner has moved to {self._learner.place.address}")
            elif silence_s > self._lease_timeout_s:
                await self._start_over(f"the learner at {address} has sent nothing for {silence_s:.0f} s")
            await self.send_heartbeat()

    async def send_heartbeat(self) -> None:
        """Sends one heartbeat now.

        Raises:
            FatalError: the learner does not admit this actor's connection.
        """
        await self._learner.send(self._owner.make_heartbeat())

    async def deliver(self, message: wire.Submit | wire.Release) -> None:
        """Sends a group again and again until the learner acknowledges it; the learner recognises duplicates.

        Waits without a deadline; the learner's silence has one, see ``send_heartbeats``.

        Raises:
            FatalError: the learner does not admit this actor's connection.
        """
        acknowledged = self._acknowledged[message.id] = asyncio.Event()
        try:
            while not acknowledged.is_set():
                await self._learner.send(message)
                try:
                    async with asyncio.timeout(self._lease_timeout_s):
                        await acknowledged.wait()
                except TimeoutError:
                    log.warning("group %s is not acknowledged yet: sending it again", message.id)
        finally:
            del self._acknowledged[message.id]

    async def _start_over(self, reason: str) -> None:
        log.warning("%s: dropping %d groups and saying hello again", reason, self._owner.drop_work())
        await self._learner.send(self._owner.make_hello())
