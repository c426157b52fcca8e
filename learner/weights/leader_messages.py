"""What rank 0 and the leaders of the weight sync tell each other. The process group of an engine is known by its name.

The plan of a round travels with the command to gather, over the learner's default group. Orders and reports travel
over the connections between the ranks (``learner/rank_links.py``), because a leader is in the middle of gathering then.
"""

from __future__ import annotations

from typing import TypeAlias

from common import wire
from learner.weights.deadlines import Deadlines

CHANNEL = "leaders"


class RoundPlan(wire.WireStruct):
    """Rank 0 to all ranks: who sends the weights of this round to whom."""

    number: int  # of the round, counted from 1
    deadlines: Deadlines
    # By the rank of the leader, then by the group of each of its engines: how long the first bucket may be held, which
    # includes that the engine joins and pauses, in seconds.
    shares: dict[int, dict[str, float]]
    up_to_date: list[str]  # groups of engines that have these weights already: they stay, and nothing is sent


class FormGroup(wire.Message):
    """Rank 0 to a leader: form this group with its engine. The answer is ``GroupFormed`` or ``EngineGivenUp``."""

    group: str
    backend: str  # "gloo" or "nccl"
    host: str  # of the store through which it forms
    port: int
    world: int  # number of ranks, the leader's included
    timeout_s: float


class SendWeights(wire.Message):
    """Rank 0 to a leader: the engine takes the weights now. The answer is ``WeightsSent`` or ``EngineGivenUp``."""

    group: str
    round: int
    connects: bool  # the first broadcast of this group comes before the weights, see ``GroupTransport``


class ForgetGroup(wire.Message):
    """Rank 0 to a leader: the actor is gone or given up, so that nothing more is done for its engine. No answer."""

    group: str


class GroupFormed(wire.Message):
    """A leader to rank 0: this group has formed."""

    group: str


class WeightsSent(wire.Message):
    """A leader to rank 0: the engine has taken all buckets of the round."""

    group: str
    round: int


class EngineGivenUp(wire.Message):
    """A leader to rank 0: the engine did not take part, or held up the others. The leader has forgotten the group."""

    group: str
    reason: str


class LeaderFailed(wire.Message):
    """A leader to rank 0: a mistake of this program, for which the run ends."""

    error: str


LeaderOrder: TypeAlias = FormGroup | SendWeights | ForgetGroup
LeaderReport: TypeAlias = GroupFormed | WeightsSent | EngineGivenUp | LeaderFailed
