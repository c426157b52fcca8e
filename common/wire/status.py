"""How a reward process or a learner is doing, for whoever asks."""

from __future__ import annotations

from common.wire.base import Amount, Message, Seconds, WireStruct


class Health(Message):
    """Asks a reward process or a learner how it is doing. Anybody may ask, without a hello."""


class Healthy(Message):
    """A reward process answers at once, whatever it is scoring; whether that gets on is told by ``stalled_s``."""

    life: str  # identifies this start of the process; another one after a restart
    ready: bool  # false while models load; requests wait
    queued: int  # texts that wait
    counts: dict[str, int]
    # For how long the step of scoring that is under way has not ended, or several calls of the reward function have
    # hung, whichever is longer; 0 when neither is so.
    stalled_s: float = 0.0


class ActorStatus(WireStruct):
    """An actor as the learner sees it."""

    live: bool  # its engine has the current weights
    groups: int  # leases it holds
    slots: int  # most leases it can hold
    silent_s: float  # seconds since its last message
    seconds: dict[str, Seconds]  # as in its heartbeats
    gauges: dict[str, Amount]  # as in its heartbeats


class Status(Message):
    """The learner's answer to ``Health``."""

    line: str  # the progress line of the newest step; empty before the first
    rates: dict[str, float]  # tokens/s of each actor
    actors: dict[str, ActorStatus]
    counts: dict[str, int]  # groups that are leased and that wait for their step; retried, lost and failed so far
