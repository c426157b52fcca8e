"""An actor and the learner: hello, heartbeats, and the ways to part."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from common.wire.base import Count, Message, Seconds


class Hello(Message):
    protocol: int
    engine_ranks: Annotated[int, Meta(ge=1, le=1024)]  # of its engine in the weight group: the tensor-parallel size
    slots: Count  # leases it can hold; work comes as admission allows
    transport: Literal["group", "shared", "disk"]  # how its engine takes weights
    drain_s: Seconds = 0.0  # how long answers in flight may still take when its engine is told to pause


class Leave(Message):
    """The actor has no engine for the moment: what it holds goes to others. A hello brings it back."""

    reason: str


class Welcome(Message):
    """The learner knows the actor; work comes once its engine has the current weights."""


class Unknown(Message):
    """The learner has started again, or gave the actor up: drop what you hold and say hello."""


class Heartbeat(Message):
    """Keeps an actor's leases alive and says where its time went since it started."""

    holding: list[str]  # ids of its leases
    seconds: dict[str, Seconds]  # time in each state, see common.process.Stopwatch; also "reward_busy" of its reward
    slots: Count | None = None  # leases it can hold from now on
    # Of its engine: "usage" of KV memory in [0, 1], requests "running" and "waiting"; "probe_error" in nats a token.
    gauges: dict[str, Seconds] = {}


class Alive(Message):
    """Answers a heartbeat."""


class Eject(Message):
    """The engine failed an update, so its weights are unknown: start it again, then say hello."""

    reason: str


class Stop(Message):
    """The run is over (``error`` empty) or the actor cannot be used."""

    error: str
