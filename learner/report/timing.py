"""Where the processes of a run spend their time: totals, differences and shares of the seconds in each state.

Every process measures the seconds it has spent in each of its states since it started. The learner's are ``start``,
``wait``, ``train``, ``publish``, ``report``, ``save`` and ``evaluate``; an actor's ``generate``, ``wait_work``,
``wait_reward`` and ``sync``; the reward service's ``busy`` and ``wait``.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

TimeByState: TypeAlias = dict[str, dict[str, float]]  # process -> state -> seconds


class MeasuredActor(Protocol):
    """The part of an actor's state that the report reads, as its hello and its heartbeats bring it."""

    engine_ranks: int  # GPUs of its engine, where it is on GPUs
    seconds: dict[str, float]  # by state, since it started; those of the reward service begin with ``reward_``
    gauges: dict[str, float]  # measurements of its engine, see wire.Heartbeat


def time_by_process(learner: dict[str, float], actors: Mapping[str, MeasuredActor]) -> TimeByState:
    """Seconds in each state, of the learner and of every actor that has sent its own, and of the reward service.

    The reward service is measured by the actor that knows the most about it.
    """
    times = {"learner": learner}
    for name, actor in actors.items():
        if not actor.seconds:
            continue
        times[f"actor {name}"] = {s: v for s, v in actor.seconds.items() if not s.startswith("reward_")}
        reward = {s.removeprefix("reward_"): v for s, v in actor.seconds.items() if s.startswith("reward_")}
        if sum(reward.values()) > sum(times.get("reward", {}).values()):
            times["reward"] = reward
    return times


def time_between(before: TimeByState, after: TimeByState) -> TimeByState:
    """Seconds spent between two measurements. A process whose total has fallen has started again in between."""
    spent: TimeByState = {}
    for process, states in after.items():
        old = before.get(process, {})
        old = old if sum(states.values()) >= sum(old.values()) else {}
        spent[process] = {state: max(0.0, value - old.get(state, 0.0)) for state, value in states.items()}
    return spent


def time_per_step(before: TimeByState, after: TimeByState, steps: int) -> TimeByState:
    """Mean seconds of one of the ``steps`` between two measurements."""
    spent = time_between(before, after)
    return {process: {state: value / steps for state, value in states.items()} for process, states in spent.items()}


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """The share of each state in the total; empty if the total is 0."""
    total = sum(seconds.values())
    return {state: spent / total for state, spent in seconds.items()} if total > 0 else {}


def shares_of_time(times: TimeByState) -> TimeByState:
    """Shares of time by state, of ``learner``, ``actors`` and ``reward``.

    The learner's start and evaluations do not count. The shares of the actors are the mean over all actors.
    """
    learner = {s: v for s, v in times.get("learner", {}).items() if s not in ("start", "evaluate")}
    actors = [shares(states) for process, states in times.items() if process.startswith("actor ")]
    states = {state for actor in actors for state in actor}
    mean = {state: sum(actor.get(state, 0.0) for actor in actors) / len(actors) for state in sorted(states)}
    return {"learner": shares(learner), "actors": mean, "reward": shares(times.get("reward", {}))}


@dataclass(frozen=True)
class Measurement:
    """Totals at the end of a step.

    Args:
        at_s: when, on a monotonic clock.
        times: seconds in each state since the processes started.
        tokens: response tokens of the steps' groups so far, trained or not, by the actor that generated them.
    """

    at_s: float
    times: TimeByState
    tokens: Counter[str]


@dataclass(frozen=True)
class WindowTotals:
    """What happened between two measurements."""

    elapsed_s: float
    times: TimeByState  # seconds in each state
    tokens: Counter[str]  # response tokens of the steps' groups, trained or not, by the actor that generated them


class TimeWindow:
    """Measurements of the last ``window_s`` seconds, so that shares and rates describe the present of a run."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._past: deque[Measurement] = deque()

    def begin(self, now: float, times: TimeByState) -> None:
        """The first step begins."""
        self._past.append(Measurement(now, times, Counter()))

    def add(self, now: float, times: TimeByState, tokens: Counter[str]) -> WindowTotals:
        """A step has ended, with ``tokens`` of its own by actor; returns what happened within the window."""
        so_far = self._past[-1].tokens + tokens
        while len(self._past) > 1 and self._past[1].at_s < now - self._window_s:
            self._past.popleft()
        first = self._past[0]
        self._past.append(Measurement(now, times, so_far))
        elapsed_s = max(now - first.at_s, 1e-9)
        return WindowTotals(elapsed_s, time_between(first.times, times), so_far - first.tokens)

    def latest(self) -> TimeByState:
        """The newest measurement; empty before the first."""
        return self._past[-1].times if self._past else {}
