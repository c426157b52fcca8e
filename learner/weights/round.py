"""One publishing round: what is sent, by when, and who takes part."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from common import wire
from learner.weights.bucket_queue import POLL_S
from learner.weights.deadlines import Deadlines
from learner.work.actors import ActorState
from learner.work.server import WorkServer


class ActorGivenUp(Exception):
    """Nothing more is sent to an actor: it is gone, or its engine did not take the weights. The message says why."""


class GatherProgress:
    """How much of a round's weights rank 0 has gathered.

    Attributes:
        has_first: the first bucket is there.
        has_all: every bucket is.
    """

    def __init__(self) -> None:
        self.has_first, self.has_all = threading.Event(), threading.Event()
        self._end = math.inf

    def end(self) -> None:
        """Notes that every bucket is there."""
        self._end = time.monotonic()
        self.has_first.set()
        self.has_all.set()

    def is_overdue(self, limit_s: float) -> bool:
        """Whether more than ``limit_s`` has passed since the end. Gathering itself has the deadline of collectives."""
        return time.monotonic() > self._end + limit_s


@dataclass(frozen=True)
class Round:
    """What all threads of a round share."""

    number: int  # counted from 1; a version may be published again
    version: int
    probe: wire.Probe
    buckets: Sequence[wire.Bucket]
    actors: dict[str, ActorState]  # who takes part, by name
    leaders: dict[str, int]  # the rank that sends to it, by name, of those that take weights through a process group
    deadlines: Deadlines
    # Who has the weights already and goes on generating, by name; none where the version is a new one.
    up_to_date: dict[str, ActorState] = field(default_factory=dict)
    gathered: GatherProgress = field(default_factory=GatherProgress)

    def uses(self, transport: str) -> bool:
        """Whether an actor takes its weights by this transport, a value of ``sync.transport``."""
        return any(actor.transport == transport for actor in self.actors.values())

    def order(
        self, *, group: str = "", path: str = "", handles: list[list[wire.SharedMemoryHandle]] | None = None
    ) -> wire.Receive:  # fmt: skip
        """What an engine is told to take. One of the arguments says where the weights come from.

        Its deadline is that of the whole round, because it may wait for buckets that another engine holds up. The
        learner's own deadlines are shorter, and it gives up an engine by itself.
        """
        return wire.Receive(
            group=group, path=path, version=self.version, buckets=list(self.buckets), probe=self.probe,
            timeout_s=self.longest_s(), handles=handles or [],
        )  # fmt: skip

    def longest_s(self) -> float:
        """The longest time that the round may take."""
        return self.deadlines.round_s(max((actor.drain_s for actor in self.actors.values()), default=0.0))


def fitting_actors(server: WorkServer, transports: Collection[str]) -> dict[str, ActorState]:
    """The actors that are present now and take weights in one of these ways, by name. The others are given up."""
    actors = server.members()
    for name, actor in actors.items():
        if actor.transport not in transports:
            server.eject(
                name, actor,
                f"it takes weights by {actor.transport!r}, and the learner sends them by one of {sorted(transports)}: "
                "give both the same lora.rank and lora.sync",
            )  # fmt: skip
    return {name: actor for name, actor in actors.items() if actor.transport in transports}


def split_by_need(
    actors: dict[str, ActorState], *, is_new: bool
) -> tuple[dict[str, ActorState], dict[str, ActorState]]:  # fmt: skip
    """Those who need the weights of a version, and those who have them since it was published before.

    Args:
        is_new: the version has not been published before.
    """
    up_to_date = {} if is_new else {name: actor for name, actor in actors.items() if actor.has_weights}
    return {name: actor for name, actor in actors.items() if name not in up_to_date}, up_to_date


class Receiver:
    """An actor that takes part in a round, for the thread that serves it.

    Args:
        name: of the actor.
        actor: as it was when the round began. One that left and came back is another object, and no receiver.
        send: sends a message to the actor; does not block.
        is_present: whether the actor is still there, and the round not cancelled.
    """

    def __init__(
        self, name: str, actor: ActorState, send: Callable[[wire.LifeMessage], None], is_present: Callable[[], bool]
    ) -> None:  # fmt: skip
        self.name, self.actor, self.send = name, actor, send
        self._is_present = is_present

    def check_present(self) -> None:
        """Raises ActorGivenUp if the actor is gone or the round was cancelled. Does not block."""
        if not self._is_present():
            raise ActorGivenUp("it is gone")

    def wait_joined(self, group: str, timeout_s: float) -> None:
        """Blocks until the engine says that it has joined ``group``; raises ActorGivenUp after ``timeout_s``."""
        self._wait_reply(
            lambda reply: isinstance(reply, wire.Joined) and reply.group == group,
            f"its engine did not join the weight group {group} within {timeout_s:.0f} s",
            timeout_s,
        )

    def wait_ready(self, version: int, timeout_s: float) -> None:
        """Blocks until the engine has paused for ``version``; raises ActorGivenUp after ``timeout_s``."""
        self._wait_reply(
            lambda reply: isinstance(reply, wire.Synced) and (reply.stage, reply.version) == ("ready", version),
            f"its engine did not pause for version {version} within {timeout_s:.0f} s",
            timeout_s,
        )

    def wait_done(self, version: int, timeout_s: float) -> float:
        """Blocks until the engine has ``version``; returns the seconds for which it did not generate.

        Raises:
            ActorGivenUp: the actor is gone, or did not answer within ``timeout_s``.
        """
        reply = self._wait_reply(
            lambda reply: isinstance(reply, wire.Synced) and (reply.stage, reply.version) == ("done", version),
            f"its engine did not have the weights of version {version} within {timeout_s:.0f} s",
            timeout_s,
        )
        assert isinstance(reply, wire.Synced)
        return reply.pause_s

    def _wait_reply(
        self, is_expected: Callable[[wire.Joined | wire.Synced], bool], problem: str, timeout_s: float
    ) -> wire.Joined | wire.Synced:
        """The first reply that is expected. Others are of an earlier round, and are ignored."""
        deadline = time.monotonic() + timeout_s
        while True:
            with suppress(queue.Empty):
                reply = self.actor.replies.get(timeout=POLL_S)
                if is_expected(reply):
                    return reply
            self.check_present()
            if time.monotonic() > deadline:
                raise ActorGivenUp(problem)
