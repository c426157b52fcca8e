"""Finds the bottleneck of a run: which stage the others wait for, what that costs, and which setting to change.

A pure function of measured times. The progress line and the status show its result with every step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from common.config import Config
from learner.report.machine import Spare
from learner.report.timing import TimeByState, shares_of_time

PipelineStage = Literal["actors", "reward", "learner", "sync"]
Gauges: TypeAlias = Mapping[str, Mapping[str, float]]  # actor -> measurements of its engine, see wire.Heartbeat

_NOISE = 0.1  # shares of time below this mean nothing
_ROOMY = 0.5  # an engine that uses less of its KV memory than this has room for as many requests again


@dataclass(frozen=True)
class Bottleneck:
    """The stage that the others wait for, and the advice what to do about it.

    Args:
        demand: for each stage, the share of the present step time for which it is needed.
        cost: the share of time for which those who wait for the bottleneck stand still; for ``sync`` the share of time
            it takes itself.
        remedy: the one setting to change, or why there is none.
        gain: the share of the step time that the remedy would save; for staleness the share of a group's time.
    """

    stage: PipelineStage
    demand: dict[PipelineStage, float]
    cost: float
    remedy: str
    gain: float

    def __str__(self) -> str:
        saved = f" (saves {self.gain:.0%})" if self.gain > 0 else ""
        return f"{self.stage} cost {self.cost:.0%}: {self.remedy}{saved}"


@dataclass(frozen=True)
class _Shares:
    """Shares of the time of some steps; the letters are those of :func:`find_bottleneck`.

    Attributes:
        demand: d of each stage.
        learner_waits: w, for groups.
        learner_trains: a part of l.
        actors_wait: i, for work.
        reward_busy: b.
    """

    demand: dict[PipelineStage, float]
    learner_waits: float
    learner_trains: float
    actors_wait: float
    reward_busy: float

    @property
    def learner_thread(self) -> float:
        """For which the thread of learner and sync is needed."""
        return 1 - self.learner_waits

    @property
    def other_stages(self) -> float:
        """For which actors or reward are needed, whichever is more."""
        return max(self.demand["actors"], self.demand["reward"])

    @property
    def unneeded(self) -> float:
        """For which no stage is needed, so that all wait for one another."""
        return 1 - max(self.learner_thread, self.other_stages)


def find_bottleneck(
    times: TimeByState,
    config: Config,
    tokens_per_second: Mapping[str, float],
    gauges: Gauges,
    spare: Spare | None = None,
) -> Bottleneck:
    """Finds the bottleneck of some steps from the time that the processes spent in their states meanwhile.

    Let w be the share of time that the learner waits for groups, u the share it publishes weights and l the share of
    everything else it does, so that l + u + w = 1. The mean actor generates for a share g of its time and waits for
    work for i and for scores for r; the reward service is busy for b. Then a step needs its stages for the shares

        d(actors) = g,   d(reward) = max(b, r),   d(learner) = l,   d(sync) = u   of its time.

    Learner and sync share one thread, which is needed for l + u. This thread is the bottleneck if it is needed for the
    largest share, or if it hardly waits.

    A remedy shortens d of the bottleneck, to half at most, until another stage is needed for as long; the difference is
    the gain. If both the learner's thread and the actors wait although neither is needed all the time, the staleness
    bound makes them wait for one another. The time that is lost in this way is proportional to 1 / (S + 1), so that
    S + 1 in place of S saves (1 − max d) / (S + 2).

    A process more is only proposed where there is a device for it.

    Args:
        tokens_per_second: of each actor, for advice on how many to add.
        gauges: of each actor's engine.
        spare: what is left of the machine that the whole run is on; None if there may be others.
    """
    shares = _measure_shares(times)
    stage, cost = _find_stage(shares)
    if min(shares.learner_waits, shares.actors_wait, shares.unneeded) > _NOISE:
        return _raise_staleness(stage, shares, config)
    demand = shares.learner_thread if stage in ("learner", "sync") else shares.demand[stage]
    limit = _next_limit(stage, shares)
    if demand - limit <= _NOISE / 2:
        return Bottleneck(stage, shares.demand, cost, "balanced: nothing to change", max(demand - limit, 0.0))
    match stage:
        case "actors":
            remedy, after = _more_generation(demand, limit, config, tokens_per_second, gauges, spare)
        case "reward":
            remedy, after = _more_reward(demand, limit, shares, config, spare)
        case "learner":
            remedy, after = _more_ranks(demand, limit, shares, config, spare)
        case "sync":
            remedy, after = f"learner.groups_per_step = {2 * config.learner.groups_per_step}, half the updates", limit
    if after >= demand:
        remedy = f"no room for more of them on this machine ({spare})"
    return Bottleneck(stage, shares.demand, cost, remedy, max(demand - after, 0.0))


def _measure_shares(times: TimeByState) -> _Shares:
    share = shares_of_time(times)
    learner, actors = share["learner"], share["actors"]
    wait, sync = learner.get("wait", 0.0), learner.get("publish", 0.0)
    busy = share["reward"].get("busy", 0.0)
    demand: dict[PipelineStage, float] = {
        "actors": actors.get("generate", 0.0),
        "reward": max(busy, actors.get("wait_reward", 0.0)),
        "learner": 1 - wait - sync,
        "sync": sync,
    }
    return _Shares(demand, wait, learner.get("train", 0.0), actors.get("wait_work", 0.0), busy)


def _find_stage(shares: _Shares) -> tuple[PipelineStage, float]:
    """The bottleneck, and the share of time that it costs."""
    demand = shares.demand
    if shares.learner_waits < _NOISE or shares.learner_thread >= shares.other_stages:
        return ("sync", demand["sync"]) if demand["sync"] > demand["learner"] else ("learner", shares.actors_wait)
    return "reward" if demand["reward"] > demand["actors"] else "actors", shares.learner_waits


def _next_limit(stage: PipelineStage, shares: _Shares) -> float:
    """The share of time for which the next stage is needed, or half the bottleneck, whichever is more."""
    demand, thread = shares.demand, shares.learner_thread
    match stage:
        case "actors":
            return max(thread, demand["reward"], demand["actors"] / 2)
        case "reward":
            return max(thread, demand["actors"], demand["reward"] / 2)
        case "learner":
            return max(shares.other_stages, thread - shares.learner_trains / 2)
        case "sync":
            return max(shares.other_stages, thread - demand["sync"] / 2)


# -- the advice: what to change, and the share of time for which the bottleneck is needed after it ---------------------


def _raise_staleness(stage: PipelineStage, shares: _Shares, config: Config) -> Bottleneck:
    deeper = config.learner.staleness + 1
    gain = shares.unneeded / (deeper + 1)
    remedy = (
        f"learner.staleness = {deeper} would hide {gain / shares.unneeded:.0%} of the {shares.unneeded:.0%} that all "
        "wait"
    )
    return Bottleneck(stage, shares.demand, min(shares.learner_waits, shares.actors_wait), remedy, gain)


def _room(wanted: float, devices_each: int, spare: Spare | None) -> float:
    """How many of the wanted processes, each on so many devices, the machine has room for; all without a limit."""
    if spare is None or math.ceil(wanted - 1e-9) * devices_each <= spare.free:
        return wanted
    return float(spare.free // devices_each)


def _more_generation(
    demand: float, limit: float, config: Config, tokens_per_second: Mapping[str, float], gauges: Gauges,
    spare: Spare | None,
) -> tuple[str, float]:  # fmt: skip
    waiting = sum(gauge.get("waiting", 0.0) for gauge in gauges.values())
    used = [gauge["usage"] for gauge in gauges.values() if "usage" in gauge]
    if waiting and used and max(used) < _ROOMY:
        advice = f"raise max_running_requests: {waiting:.0f} requests wait in engines with {max(used):.0%} of KV in use"
        return advice, limit
    best = max(tokens_per_second, key=tokens_per_second.__getitem__, default="")
    total = sum(tokens_per_second.values())
    each = tokens_per_second[best] / total if best and tokens_per_second[best] else 1.0  # of an actor more
    extra = _room((demand / limit - 1) / each, int(config.actor.engine_args.get("tp", 1)), spare)
    return f"add {extra:.1f} actors like {best or 'those there'}", demand / (1 + extra * each)


def _more_reward(
    demand: float, limit: float, shares: _Shares, config: Config, spare: Spare | None
) -> tuple[str, float]:  # fmt: skip
    busy = shares.reward_busy
    if busy < demand / 2:
        return f"lower reward.batch_window_ms: actors wait for scores while the reward works {busy:.0%}", limit
    replicas = len(config.reward.addresses)
    extra = _room(replicas * (demand / limit - 1), 1, spare)
    return f"add {extra:.1f} reward processes (reward.addresses)", demand * replicas / (replicas + extra)


def _more_ranks(
    demand: float, limit: float, shares: _Shares, config: Config, spare: Spare | None
) -> tuple[str, float]:  # fmt: skip
    ranks, train = config.learner.ranks, shares.learner_trains
    extra = _room(ranks * (demand - limit) / (train - (demand - limit)), 1, spare)
    return f"add {extra:.1f} learner ranks (learner.ranks)", demand - train * extra / (ranks + extra)
