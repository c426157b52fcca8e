"""The conversation of an actor with the learner: hello, heartbeats, and the ways to part."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from common.wire.base import Amount, Count, LifeMessage, Seconds, WireStruct

# Figures by their names, which are metrics of the run: neither is without end, whatever an actor sends.
Named: TypeAlias = Annotated[dict[Annotated[str, Meta(max_length=50)], Amount], Meta(max_length=50)]

# The settings that an actor's rollouts depend on, as ``common/rollout_settings.py`` has them.
RolloutSettings: TypeAlias = Annotated[
    dict[Annotated[str, Meta(max_length=50)], Annotated[str, Meta(max_length=20_000)]], Meta(max_length=50)
]


class ActorProcess(WireStruct):
    """Which process an actor is, so that a second one of its name can be told who holds the name."""

    host: str = ""
    pid: int = 0
    started_s: Annotated[float, Meta(ge=0, le=4e9)] = 0.0  # seconds after the machine's boot
    # Of the kernel and the process namespace in which ``pid`` means something. Whoever has the same can see whether the
    # process is gone. Empty where it is not known.
    machine: str = ""


class Hello(LifeMessage):
    """Actor to learner: the actor is there. Answered by ``Welcome``, ``Taken`` or ``Stop``.

    An actor says it twice: when its engine begins to start, which reserves its name and lets it hear of the end of the
    run, and when the engine is ready. Until the learner answers, the same hello is sent again and again.
    """

    protocol: int
    # Tensor-parallel size of its engine; 0 while that starts, when the actor gets neither weights nor work.
    engine_ranks: Annotated[int, Meta(ge=0, le=1024)]
    slots: Count  # most leases it can hold
    # How its engine takes weights, see sync.transport; "adapter" where it loads LoRA adapters instead.
    transport: Literal["group", "shared", "disk", "adapter"]
    drain_s: Seconds = 0.0  # how long answers in flight may still take when its engine is told to pause
    name: str = ""  # unique in the run
    process: ActorProcess = msgspec.field(default_factory=ActorProcess)
    waited_s: Seconds = 0.0  # since the learner first said that another actor holds the name
    settings: RolloutSettings = {}
    replaces: str = ""  # the life of the actor that holds the name, if its process is known to be gone


class Leave(LifeMessage):
    """Actor to learner: the actor has no engine for now. Its leases go to others, until it says hello again."""

    reason: str
    generating: list[str] = []  # if its engine has ended by itself: the leases whose answers that was generating


class Welcome(LifeMessage):
    """Learner to actor: the learner knows the actor. Leases follow once its engine has the current weights."""


class Taken(LifeMessage):
    """Learner to actor: another actor holds the name. Say hello again, in case that one is dead."""

    holder: ActorProcess
    holder_life: str
    silent_s: Seconds  # since it was heard last


class Unknown(LifeMessage):
    """Learner to actor: it does not know the lives of a message. If they are the present ones, start over.

    The learner has started again, or has given the actor up. The actor drops all leases and says hello.
    """


class Heartbeat(LifeMessage):
    """Actor to learner, every two seconds: keeps leases alive and tells where the actor's time went so far."""

    holding: list[str]  # ids of its leases
    seconds: Named  # time in each state since it started; "reward_busy" and "reward_wait" of its reward
    slots: Count | None = None  # most leases it can hold from now on
    # Of its engine: "usage" of KV memory in [0, 1], requests "running" and "waiting"; "probe_error" in nats a token.
    gauges: Named = {}


class Alive(LifeMessage):
    """Learner to actor: answers a heartbeat."""


class Eject(LifeMessage):
    """Learner to actor: the engine failed a weight update, so its weights are unknown. Start it again and say hello."""

    reason: str


class Stop(LifeMessage):
    """Learner to actor: the run is over, or this actor cannot be used."""

    error: str  # why it cannot be used; empty when the run is over
