"""Simulates a run by discrete events. The work queue and the actors' concurrency control are the real ones; engines,
learner and reward service are durations.

A decoding step of an engine that generates g groups takes ``token_s + group_s · g`` seconds, and a group takes as many
steps as its longest answer has tokens. The learner trains, publishes (generation pauses for the last part of that) and
then does the rest of the step, as learner.run does.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from actor.concurrency import Concurrency
from learner.work.scheduler import WorkQueue

Span = tuple[float, float, str]  # start and end in seconds, and the state in between


@dataclass(frozen=True)
class SimulatedEngine:
    """The engine of an actor, by its speed."""

    pool: str  # the kind of GPU that it is reported under
    token_s: float
    group_s: float
    slots: int  # the most groups in flight


@dataclass(frozen=True)
class Scenario:
    """The run to simulate; all times are in seconds."""

    engines: Sequence[SimulatedEngine]
    answers: Sequence[Sequence[int]]  # tokens of each answer of a group; simulated groups are drawn from these
    groups_per_step: int
    staleness: int
    window: int
    train_token_s: float  # per response token, with all learner ranks together
    publish_s: float
    pause_s: float  # the last part of ``publish_s``, in which generation pauses
    rest_s: float  # what else a step does: reports, checkpoints
    score_s: float  # from a request to its scores, when the reward service has no other requests
    score_busy_s: float  # how long a group occupies a reward replica
    replicas: int = 1  # of the reward service
    steps: int = 24
    skip: int = 4  # first steps that do not count, because a run begins with an empty queue
    seed: int = 0


@dataclass
class Forecast:
    """What a simulated run did."""

    step_s: float
    tokens_per_second: float
    lag_mean: float
    lag_max: int
    busy: dict[
        str, float
    ]  # share of the time that engines of each pool, reward replicas, and the learner by state worked
    spans: dict[str, list[Span]] = field(repr=False)  # by actor, "reward" and "learner"


@dataclass(eq=False)
class _SimulatedActor:
    name: str
    engine: SimulatedEngine
    concurrency: Concurrency
    held: int = 0  # groups that are leased to it
    progress: float = 0.0  # decoding steps so far
    updated: float = 0.0  # the time for which ``progress`` holds
    stamp: int = 0  # an event that was planned under an older stamp is ignored
    running: list[tuple[float, int, float]] = field(default_factory=list)  # heap of (end, sequence, begin) by progress
    versions: list[tuple[float, int]] = field(
        default_factory=lambda: [(0.0, 0)]
    )  # (progress from which it holds, version)


class Simulation:
    """A simulated run. Call ``run`` once."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario, self._random = scenario, random.Random(scenario.seed)
        self._queue: WorkQueue[list[tuple[int, int]]] = WorkQueue(
            groups_per_step=scenario.groups_per_step, staleness=scenario.staleness, window=scenario.window, attempts=1,
            total=scenario.steps * scenario.groups_per_step,
        )  # fmt: skip
        self._actors = [
            _SimulatedActor(f"{engine.pool} {n}", engine, Concurrency(engine.slots))
            for n, engine in enumerate(scenario.engines)
        ]
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count, self._now, self._version, self._paused, self._idle, self._full = 0, 0.0, 0, False, True, False
        self._free = [0.0] * scenario.replicas  # when each reward replica is next free
        self._lengths: dict[int, Sequence[int]] = {}
        self._current: dict[str, tuple[str, float]] = {}  # (state, since when) of the learner and of each actor
        self._spans: defaultdict[str, list[Span]] = defaultdict(list)
        self._lags: list[tuple[int, int, int]] = []  # (step, lag, tokens)
        self._ends: list[float] = []

    def run(self) -> Forecast:
        """Simulates the scenario to its last step."""
        self._enter("learner", "wait")
        self._grant(self._actors)
        while self._version < self._scenario.steps:
            self._now, _, handle = heapq.heappop(self._events)
            handle()
        for who in list(self._current):
            self._enter(who, "end")
        return self._forecast()

    # -- handlers of events -------------------------------------------------------------------------------------------

    def _generated(self, actor: _SimulatedActor, stamp: int) -> None:
        if stamp != actor.stamp:
            return
        self._advance(actor)
        in_flight = len(actor.running)
        end, sequence, begin = heapq.heappop(actor.running)
        actor.progress = max(actor.progress, end)
        actor.concurrency.record_finished({"usage": 0.0}, in_flight, retracted=False)
        self._plan_next(actor)
        replica = min(range(len(self._free)), key=self._free.__getitem__)
        scoring = max(self._now, self._free[replica])
        self._free[replica] = scoring + self._scenario.score_busy_s
        self._spans["reward"].append((scoring, self._free[replica], "busy"))
        tokens = self._tokens(actor, sequence, begin)
        self._at(scoring + self._scenario.score_s, partial(self._scored, actor, sequence, tokens))
        self._grant([actor])

    def _scored(self, actor: _SimulatedActor, sequence: int, tokens: list[tuple[int, int]]) -> None:
        actor.held -= 1
        self._queue.submit(sequence, actor.name, tokens)
        self._grant([actor])
        self._take()

    def _trained(self) -> None:
        self._enter("learner", "publish")
        self._at(self._now + max(0.0, self._scenario.publish_s - self._scenario.pause_s), self._pause)
        self._at(self._now + self._scenario.publish_s, self._published)

    def _pause(self) -> None:
        self._paused = True
        for actor in self._actors:
            self._advance(actor)
            self._plan_next(actor)

    def _published(self) -> None:
        self._paused = False
        self._version += 1
        self._queue.mark_published()
        self._full = False
        for actor in self._actors:
            self._advance(actor)
            actor.versions.append((actor.progress, self._version))
            self._plan_next(actor)
        self._ends.append(self._now)
        self._enter("learner", "rest")
        self._at(self._now + self._scenario.rest_s, self._ready)
        self._grant(self._actors)

    def _ready(self) -> None:
        self._idle = True
        self._enter("learner", "wait")
        self._take()

    # -- shared by the handlers ---------------------------------------------------------------------------------------

    def _at(self, when: float, handle: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, handle))

    def _take(self) -> None:
        """Begins to train if the learner is idle and a batch is complete."""
        batch = self._queue.take() if self._idle and self._queue.has_full_batch() else None
        if batch is None:
            return
        self._idle = False
        counts = [(self._version - version, tokens) for _, group in batch for version, tokens in group]
        self._lags += [(self._version, lag, tokens) for lag, tokens in counts]
        self._enter("learner", "train")
        self._at(self._now + self._scenario.train_token_s * sum(tokens for _, tokens in counts), self._trained)

    def _grant(self, candidates: Sequence[_SimulatedActor]) -> None:
        """Leases groups as learner.work.actors does, to the actor with the fewest groups first.

        Args:
            candidates: the actors that may have room for another group.
        """
        room = [(actor.held, actor.name, actor) for actor in candidates]
        heapq.heapify(room)
        changed: dict[str, _SimulatedActor] = {}
        while room and not self._full:
            actor = room[0][2]
            if actor.held >= actor.concurrency.slots:
                heapq.heappop(room)
                continue
            sequence = self._queue.lease(actor.name, self._now)
            if sequence is None:
                self._full = True  # until the next version is published
                break
            if actor.name not in changed:
                self._advance(actor)
                changed[actor.name] = actor
            lengths = self._lengths[sequence] = self._random.choice(self._scenario.answers)
            actor.held += 1
            heapq.heappush(actor.running, (actor.progress + max(lengths), sequence, actor.progress))
            heapq.heapreplace(room, (actor.held, actor.name, actor))
        for actor in changed.values():
            self._plan_next(actor)

    def _pace(self, actor: _SimulatedActor) -> float:
        return actor.engine.token_s + actor.engine.group_s * len(actor.running)

    def _advance(self, actor: _SimulatedActor) -> None:
        if actor.running and self._current.get(actor.name, ("",))[0] == "generate":
            actor.progress += (self._now - actor.updated) / self._pace(actor)
        actor.updated = self._now

    def _plan_next(self, actor: _SimulatedActor) -> None:
        actor.stamp += 1
        self._enter(actor.name, "sync" if self._paused else "generate" if actor.running else "wait")
        if actor.running and not self._paused:
            left = max(0.0, actor.running[0][0] - actor.progress)
            self._at(self._now + left * self._pace(actor), partial(self._generated, actor, actor.stamp))

    def _enter(self, who: str, state: str) -> None:
        before, since = self._current.get(who, ("", 0.0))
        if state != before:
            if before and self._now > since:
                self._spans[who].append((since, self._now, before))
            self._current[who] = (state, self._now)

    def _tokens(self, actor: _SimulatedActor, sequence: int, begin: float) -> list[tuple[int, int]]:
        """The policy versions that generated a group, each with the number of tokens that it generated."""
        lengths = self._lengths.pop(sequence)
        spans = [(start - begin, version) for start, version in actor.versions if start > begin]
        oldest = next(version for start, version in reversed(actor.versions) if start <= begin)
        edges = [0.0, *(start for start, _ in spans), float(max(lengths))]
        made = [round(sum(min(length, edge) for length in lengths)) for edge in edges]
        versions = [oldest, *(version for _, version in spans)]
        return [(version, b - a) for version, (a, b) in zip(versions, pairwise(made), strict=True)]

    def _forecast(self) -> Forecast:
        scenario = self._scenario
        begin = self._ends[scenario.skip - 1] if scenario.skip else 0.0
        counted = [(lag, tokens) for step, lag, tokens in self._lags if step >= scenario.skip and tokens]
        tokens, spent = sum(n for _, n in counted), self._now - begin
        shares: defaultdict[str, float] = defaultdict(float)
        number = Counter(engine.pool for engine in scenario.engines)
        number["reward"] = scenario.replicas
        for who, spans in self._spans.items():
            pool = who.rpartition(" ")[0] or who
            for start, end, state in spans:
                name = f"learner {state}" if who == "learner" else pool if state in ("generate", "busy") else ""
                if name:
                    shares[name] += max(0.0, min(end, self._now) - max(start, begin)) / spent / number.get(pool, 1)
        lag = sum(lag * n for lag, n in counted) / tokens
        step_s = spent / (scenario.steps - scenario.skip)
        return Forecast(step_s, tokens / spent, lag, max(lag for lag, _ in counted), dict(shares), dict(self._spans))
