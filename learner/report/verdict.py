"""Who the others wait for, what that costs, and the one setting to change: a pure function of measured times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from common.config import Config

Seconds: TypeAlias = dict[str, dict[str, float]]  # process -> state -> seconds
Stage = Literal["actors", "reward", "learner", "sync"]

_SLACK = 0.1  # shares of time below this are noise
_ROOM = 0.5  # use of an engine's KV memory that leaves room for as many requests again


Gauges: TypeAlias = Mapping[str, Mapping[str, float]]  # actor -> what it tells of its engine, see wire.Heartbeat


@dataclass(frozen=True)
class Verdict:
    """
    Args:
        demand: the share of the present step time for which each stage is needed.
        lost: the share of time for which those who wait for the bottleneck stand still; for sync, what it takes.
        gain: the share of the step time (for sync: of a group's) that the remedy saves.
    """

    bottleneck: Stage
    demand: dict[Stage, float]
    lost: float
    remedy: str
    gain: float

    def __str__(self) -> str:
        return f"{self.bottleneck} cost {self.lost:.0%}: {self.remedy} (saves {self.gain:.0%})"


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    total = sum(seconds.values())
    return {state: spent / total for state, spent in seconds.items()} if total > 0 else {}


def stages(seconds: Seconds) -> Seconds:
    """Shares of time of the learner, beside its start and its evaluations, of the mean actor and of the reward."""
    learner = {s: v for s, v in seconds.get("learner", {}).items() if s not in ("start", "evaluate")}
    actors = [shares(spent) for process, spent in seconds.items() if process.startswith("actor ")]
    states = {state for actor in actors for state in actor}
    mean = {state: sum(actor.get(state, 0.0) for actor in actors) / len(actors) for state in sorted(states)}
    return {"learner": shares(learner), "actors": mean, "reward": shares(seconds.get("reward", {}))}


def judge(seconds: Seconds, config: Config, rates: Mapping[str, float], gauges: Gauges) -> Verdict:
    """Reads the bottleneck off the time of some steps.

    Of the learner, w is the share of time it waits for groups, u publishes, and l does all else, l + u + w = 1; the
    mean actor generates for g of its time and waits for work for i and for scores for r; the reward works for b.
    A step needs its stages for the shares

        d(actors) = g,   d(reward) = max(b, r),   d(learner) = l,   d(sync) = u   of its time.

    Learner and sync are one thread, needed for l + u: it is the bottleneck where it is needed most, or hardly waits.
    A remedy shortens d of the bottleneck, to half at most, until another stage is needed as long; the difference is
    the gain. Where l + u and the actors both wait though neither is needed all the time, staleness couples them: what
    is lost so goes as 1 / (S + 1), so S + 1 instead of S saves (1 − max d) / (S + 2).

    Args:
        rates: tokens/s of each actor.
    """
    share = stages(seconds)
    learner, actors = share["learner"], share["actors"]
    wait, sync = learner.get("wait", 0.0), learner.get("publish", 0.0)
    busy = share["reward"].get("busy", 0.0)
    demand: dict[Stage, float] = {
        "actors": actors.get("generate", 0.0),
        "reward": max(busy, actors.get("wait_reward", 0.0)),
        "learner": 1 - wait - sync,
        "sync": sync,
    }
    trainer, others = 1 - wait, max(demand["actors"], demand["reward"])
    idle = actors.get("wait_work", 0.0)
    coupled = 1 - max(trainer, others)
    bottleneck: Stage = "reward" if demand["reward"] > demand["actors"] else "actors"
    lost = wait
    if wait < _SLACK or trainer >= others:
        bottleneck, lost = ("sync", sync) if sync > demand["learner"] else ("learner", idle)
    if min(wait, idle, coupled) > _SLACK:
        deeper = config.learner.staleness + 1
        gain = coupled / (deeper + 1)
        remedy = f"learner.staleness = {deeper} would hide {gain / coupled:.0%} of the {coupled:.0%} that all wait"
        return Verdict(bottleneck, demand, min(wait, idle), remedy, gain)
    if bottleneck == "actors":
        rest = max(trainer, demand["reward"], demand["actors"] / 2)
        remedy = _more_generation(demand["actors"] / rest if rest else 1.0, rates, gauges)
    elif bottleneck == "reward":
        rest = max(trainer, demand["actors"], demand["reward"] / 2)
        extra = len(config.reward.addresses) * (demand["reward"] / rest - 1)
        remedy = f"add {extra:.1f} reward processes (reward.addresses)"
        if busy < demand["reward"] / 2:
            remedy = f"lower reward.batch_window_ms: actors wait for scores while the reward works {busy:.0%}"
    elif bottleneck == "learner":
        train = learner.get("train", 0.0)
        rest = max(others, trainer - train / 2)
        saved = max(trainer - rest, 0.0)
        remedy = f"add {config.learner.ranks * saved / max(train - saved, 1e-9):.1f} learner ranks (learner.ranks)"
    else:
        rest = max(others, trainer - sync / 2)
        remedy = f"learner.groups_per_step = {2 * config.learner.groups_per_step}, half the updates"
    gain = max((trainer if bottleneck in ("learner", "sync") else demand[bottleneck]) - rest, 0.0)
    return Verdict(bottleneck, demand, lost, remedy if gain > _SLACK / 2 else "balanced: nothing to change", gain)


def _more_generation(factor: float, rates: Mapping[str, float], gauges: Gauges) -> str:
    """How the pool generates ``factor`` times as much."""
    waiting = sum(told.get("waiting", 0.0) for told in gauges.values())
    used = [told["usage"] for told in gauges.values() if "usage" in told]
    if waiting and used and max(used) < _ROOM:
        return f"raise max_running_requests: {waiting:.0f} requests wait in engines with {max(used):.0%} of KV in use"
    best = max(rates, key=rates.__getitem__, default="")
    extra = sum(rates.values()) * (factor - 1) / rates[best] if best and rates[best] else factor - 1
    return f"add {extra:.1f} actors like {best or 'those there'}"
