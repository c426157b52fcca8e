"""The conversation of an actor with the learner: hello, heartbeats, and the ways to part."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from common.wire.base import Count, Message, Seconds


class Hello(Message):
    """Actor to learner: the actor is there and wants work. Answered by ``Welcome`` or ``Stop``."""

    protocol: int
    engine_ranks: Annotated[int, Meta(ge=1, le=1024)]  # tensor-parallel size of its engine
    slots: Count  # most leases it can hold
    # How its engine takes weights, see sync.transport; "adapter" where it loads LoRA adapters instead.
    transport: Literal["group", "shared", "disk", "adapter"]
    drain_s: Seconds = 0.0  # how long answers in flight may still take when its engine is told to pause


class Leave(Message):
    """Actor to learner: the actor has no engine for now. Its leases go to others, until it says hello again."""

    reason: str


class Welcome(Message):
    """Learner to actor: the learner knows the actor. Leases follow once its engine has the current weights."""


class Unknown(Message):
    """Learner to actor: the learner has started again, or gave the actor up. Drop all leases and say hello."""


class Heartbeat(Message):
    """Actor to learner, every two seconds: keeps leases alive and tells where the actor's time went so far."""

    holding: list[str]  # ids of its leases
    seconds: dict[str, Seconds]  # time in each state since it started; "reward_busy" and "reward_wait" of its reward
    slots: Count | None = None  # most leases it can hold from now on
    # Of its engine: "usage" of KV memory in [0, 1], requests "running" and "waiting"; "probe_error" in nats a token.
    gauges: dict[str, Seconds] = {}


class Alive(Message):
    """Learner to actor: answers a heartbeat."""


class Eject(Message):
    """Learner to actor: the engine failed a weight update, so its weights are unknown. Start it again and say hello."""

    reason: str


class Stop(Message):
    """Learner to actor: the run is over, or this actor cannot be used."""

    error: str  # why it cannot be used; empty when the run is over
