"""How a reward process or a learner is, for whoever asks."""

from __future__ import annotations

from common.wire.base import Message, Seconds, WireStruct


class Health(Message):
    """Asks a reward process or a learner how it is; anyone may, without a hello."""


class Healthy(Message):
    """Answers at once, whatever is being scored."""

    life: str  # another one after a restart
    ready: bool  # false while models load; requests wait
    queued: int  # texts
    counts: dict[str, int]


class ActorStatus(WireStruct):
    live: bool  # has the current weights
    groups: int
    slots: int
    silent_s: float
    seconds: dict[str, Seconds]
    gauges: dict[str, Seconds]


class Status(Message):
    """A learner's answer to ``Health``."""

    line: str  # of the newest step, as logged; empty before the first
    rates: dict[str, float]  # tokens/s of each actor
    actors: dict[str, ActorStatus]
    counts: dict[str, int]  # of groups: leased, finished; so far retried, orphaned, failed
