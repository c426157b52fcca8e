"""Membership, leases and admission under any order of events: deaths, late and repeated messages, lies, resumes.

Hypothesis draws the events. The machine plays the learner's main thread and the actors, whose messages arrive in any
order or not at all. It keeps its own account of which policy made which token and what was trained, and compares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from common import wire
from learner.groups import Group
from learner.work.actors import MAX_VIOLATIONS, ActorRegistry, ServedQueue
from learner.work.admission import Limits
from learner.work.scheduler import WorkQueue, find_stale, staleness_bound
from tests.support.groups import work
from tests.support.tally import Tally

NAMES = ("a", "b", "c")
LANGUAGES = ["en", "de"]
LEASE_S = 10.0
VOCABULARY = 50
ENDLESS = 10**6
LIES: dict[str, dict[str, Any]] = {
    "too new": {"versions": np.array([10**6], np.int32)},
    "too old": {"versions": np.array([-1], np.int32)},
    "likelier than certain": {"logprobs": np.array([0.5], np.float32)},
    "no number": {"logprobs": np.array([np.nan], np.float32)},
    "no token": {"response_ids": np.array([VOCABULARY], np.int32)},
    "header": {"header": 2},
    "language": {"language": "zh"},
    "length": {"logprobs": np.array([-1.0, -1.0], np.float32)},
}
# Events, and where in the protocol each of them has to happen in a long run.
EVERYWHERE = {
    "actor dies": (
        "told of weights", "has the new weights", "waits for weights", "idle", "holds leases", "answer on the way",
        "unknown to the learner",
    ),
    "learner dies": ("publishes", "leases are held", "answers on the way", "a batch is finished", "quiet"),
    "message": ("in order", "overtakes", "will come again", "sender is dead", "lease is over"),
}  # fmt: skip


@dataclass
class Checkpoint:
    """What the learner would resume with."""

    step: int
    next_sequence: int
    pending: list[int]
    finished: dict[int, Group]
    trained: Counter[int]
    failed: Counter[int]


@dataclass
class Actor:
    """An actor as it is in truth. A new object after each of its deaths."""

    name: str
    version: int = -1  # of its engine's weights
    held: dict[str, wire.Work] = field(default_factory=dict)  # leases it knows of


def answers(asked: wire.Work, versions: list[int], text: str, change: dict[str, Any] | None = None) -> wire.Submit:
    score = wire.Score(reward=0.5, quality=0.5, similarity=0.5, compliant=True, detected="en")
    rollouts = [
        wire.Rollout(
            language=language, prompt_ids=np.array([3], np.int32), response_ids=np.array([4], np.int32),
            logprobs=np.array([-1.0], np.float32), versions=np.array([version], np.int32), truncated=False, text=text,
            score=score,
        )
        for language, version in zip(asked.languages, versions, strict=True)
    ]  # fmt: skip
    if change:
        rollouts[1] = rollouts[1].model_copy(update=change)
    return wire.Submit(id=asked.id, rollouts=rollouts)


class Membership(RuleBasedStateMachine):
    sizes = st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(1, 4))  # P, S, W
    tally = Tally()  # of all examples

    @initialize(sizes=sizes)
    def begin(self, sizes: tuple[int, int, int]) -> None:
        self.now, self.step, self.published, self.lives = 0.0, 0, 0, 0
        self.actors: dict[str, Actor] = {}
        self.members: dict[str, Actor] | None = None  # of the publishing that is under way
        self.in_flight: list[tuple[Actor, wire.Submit]] = []
        self.trained: Counter[int] = Counter()
        self.failed: Counter[int] = Counter()
        self.set_sizes(sizes)
        self.tally.examples += 1
        self.start_learner(self.new_queue())
        self.publish_at_once()
        self.save()

    def publish_at_once(self) -> None:
        """What a learner does first, when it knows no actor yet."""
        self.publish()
        self.finish_publishing()

    def set_sizes(self, sizes: tuple[int, int, int]) -> None:
        self.groups, self.staleness, self.window = sizes
        self.bound = staleness_bound(*sizes)
        self.most_alive = self.groups * (self.staleness + 1)

    def new_queue(
        self, next_sequence: int = 0, pending: Iterable[int] = (), results: Mapping[int, Group] | None = None
    ) -> WorkQueue[Group]:
        return WorkQueue(
            groups_per_step=self.groups, staleness=self.staleness, window=self.window, attempts=4, total=ENDLESS,
            next_sequence=next_sequence, pending=pending, results=results,
        )  # fmt: skip

    def start_learner(self, queue: WorkQueue[Group]) -> None:
        self.queue, self.registry = queue, ActorRegistry(LEASE_S)
        self.registry.newest_version = self.published
        self.actors.clear()
        self.in_flight.clear()  # they were meant for the learner before
        self.members = None
        self.serve()

    def serve(self) -> None:
        limits = Limits(VOCABULARY, 8, self.bound)
        self.registry.serve(ServedQueue(self.queue, self.make_work, self.on_failed, limits, self.on_stale))

    def make_work(self, sequence: int) -> wire.Work:
        return work(sequence, LANGUAGES).model_copy(update={"policy_version": self.published})

    def on_failed(self, sequence: int, _: str) -> None:
        self.failed[sequence] += 1

    def on_stale(self, sequence: int, reason: str) -> None:
        raise AssertionError(f"the queue did not keep its promise: {sequence}, {reason}")

    # -- actors ----------------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES), slots=st.integers(0, 3))
    def say_hello(self, name: str, slots: int) -> None:
        self.lives += 1
        hello = wire.Hello(
            protocol=wire.PROTOCOL, name=name, actor_life=str(self.lives), engine_ranks=1, slots=slots,
            transport="group",
        )  # fmt: skip
        assert isinstance(self.registry.admit(f"{name}/process", hello, self.now), wire.Welcome)
        self.actors[name] = Actor(name)

    @rule(name=st.sampled_from(NAMES))
    def die(self, name: str) -> None:
        """Without a word; the learner hears no more of it."""
        if actor := self.actors.pop(name, None):
            self.tally.note("actor dies", self.points_of(actor))

    def points_of(self, actor: Actor) -> Iterable[str]:
        if actor.name not in self.registry.actors:
            yield "unknown to the learner"
        if self.members is not None and self.members.get(actor.name) is actor:
            yield "has the new weights" if actor.version == self.step else "told of weights"
        elif actor.version < self.published:
            yield "waits for weights"
        if any(sender is actor for sender, _ in self.in_flight):
            yield "answer on the way"
        yield "holds leases" if actor.held else "idle"

    @rule(name=st.sampled_from(NAMES))
    def leave(self, name: str) -> None:
        if self.actors.pop(name, None):
            self.registry.remove(name)

    @rule(name=st.sampled_from(NAMES), slots=st.none() | st.integers(0, 3))
    def send_heartbeat(self, name: str, slots: int | None) -> None:
        if name in self.actors and name in self.registry.actors:
            holding = list(self.actors[name].held)
            self.registry.actors[name].last_heard = self.now
            self.registry.heartbeat(name, wire.Heartbeat(holding=holding, seconds={}, slots=slots), self.now)

    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def answer(self, data: st.DataObject, name: str) -> None:
        """Every token is of a version that the engine has had since the lease."""
        actor = self.actors.get(name)
        if actor is None or not actor.held:
            return
        asked = actor.held[data.draw(st.sampled_from(sorted(actor.held)))]
        version = st.integers(asked.policy_version, actor.version)
        self.in_flight.append((actor, answers(asked, [data.draw(version), data.draw(version)], "true")))

    @rule(data=st.data(), name=st.sampled_from(NAMES), lie=st.sampled_from(sorted(LIES)))
    def lie(self, data: st.DataObject, name: str, lie: str) -> None:
        actor = self.actors.get(name)
        if actor is not None and actor.held:
            asked = actor.held[data.draw(st.sampled_from(sorted(actor.held)))]
            versions = [asked.policy_version] * len(LANGUAGES)
            self.in_flight.append((actor, answers(asked, versions, "lie", LIES[lie])))

    @rule(data=st.data(), again=st.booleans())
    def deliver(self, data: st.DataObject, again: bool) -> None:
        """A message arrives, in any order; it may come once more later."""
        if not self.in_flight:
            return
        self.receive(data.draw(st.integers(0, len(self.in_flight) - 1)), again)

    def receive(self, number: int, again: bool) -> None:
        actor, message = self.in_flight[number]
        self.note_delivery(actor, message, number, again)
        if not again:
            del self.in_flight[number]
        state = self.registry.actors.get(actor.name)
        if state is None:
            return
        state.last_heard = self.now
        is_held = message.id in state.leases
        accepted = self.registry.submit(actor.name, message)
        assert accepted == (is_held and message.rollouts[0].text == "true"), message
        actor.held.pop(message.id, None)
        if self.registry.is_untrustworthy(actor.name):
            self.registry.remove(actor.name)
            self.actors.pop(actor.name, None)

    def note_delivery(self, actor: Actor, message: wire.Submit, number: int, again: bool) -> None:
        state = self.registry.actors.get(actor.name)
        points = ["overtakes" if number else "in order"]
        points += ["will come again"] if again else []
        points += ["sender is dead"] if self.actors.get(actor.name) is not actor else []
        points += ["lease is over"] if state is not None and message.id not in state.leases else []
        self.tally.note("message", points)

    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def release(self, data: st.DataObject, name: str) -> None:
        actor = self.actors.get(name)
        if actor is not None and actor.held and name in self.registry.actors:
            lease = data.draw(st.sampled_from(sorted(actor.held)))
            self.registry.release(name, wire.Release(id=lease, reason="it says no"))
            del actor.held[lease]

    @rule(
        stage=st.integers(0, 7), name=st.sampled_from(NAMES), sizes=sizes,
        victim=st.sampled_from(["nobody", "the actor", "the learner"]),
    )  # fmt: skip
    def go_well_up_to(self, stage: int, name: str, sizes: tuple[int, int, int], victim: str) -> None:
        """All goes well for an actor up to a stage of the protocol; then somebody dies, or not."""
        if stage and self.members is not None:
            self.finish_publishing()
        if name not in self.actors or name not in self.registry.actors:
            self.say_hello(name, 3)
        if stage >= 1 and self.members is None:
            self.publish()
        if stage >= 2:
            for one in NAMES:
                self.take_weights(one)
        if stage >= 3:
            self.finish_publishing()
        if stage >= 4:
            self.grant()
        if stage >= 5:
            actor = self.actors[name]
            truths = [answers(work, [work.policy_version] * 2, "true") for work in actor.held.values()]
            self.in_flight += [(actor, truth) for truth in truths]
        if stage == 6:
            while self.in_flight:
                self.receive(0, again=False)
        if stage == 7:
            self.pass_time(2 * LEASE_S)
        if victim == "the actor":
            self.die(name)
        elif victim == "the learner":
            self.resume(sizes, saves=False)

    # -- the learner -----------------------------------------------------------------------------------------------

    @rule()
    def grant(self) -> None:
        for name, works in self.registry.grant(self.now).items():
            if actor := self.actors.get(name):  # a dead one does not hear of it
                assert actor.version >= self.published, "no engine that may lease is behind"
                actor.held |= {one.id: one for one in works}

    @rule(seconds=st.floats(0, 2 * LEASE_S))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.registry.remove_silent(self.now)
        self.registry.release_expired(self.now)

    @precondition(lambda self: self.members is None)
    @rule()
    def train(self) -> None:
        """Takes a batch, trains it, and begins to publish."""
        taken = self.queue.take()
        if taken is None:
            return
        for sequence, group in taken:
            self.trained[sequence] += 1
            for rollout in group.rollouts:
                assert rollout.text == "true"
                assert 0 <= self.step - int(rollout.versions.min()) <= self.bound, "the lag is bounded"
        self.step += 1
        self.publish()

    @precondition(lambda self: self.members is None)
    @rule()
    def publish(self) -> None:
        """Begins to; the step's version, or that of before to newcomers."""
        self.registry.newest_version = self.step
        self.members = {name: actor for name, actor in self.actors.items() if name in self.registry.actors}
        self.states = dict(self.registry.actors)

    @precondition(lambda self: self.members is not None)
    @rule(name=st.sampled_from(NAMES))
    def take_weights(self, name: str) -> None:
        assert self.members is not None
        if name in self.members:
            self.members[name].version = self.step

    @precondition(lambda self: self.members is not None)
    @rule()
    def finish_publishing(self) -> None:
        """Whoever has not taken the weights is given up."""
        assert self.members is not None
        has = {name for name, actor in self.members.items() if actor.version == self.step}
        for name, state in self.states.items():
            if name not in has and self.registry.actors.get(name) is state:
                self.registry.remove(name)
                self.actors.pop(name, None)
        self.published, self.members = self.step, None
        self.registry.mark_published({name: state for name, state in self.states.items() if name in has})

    @precondition(lambda self: self.members is None)
    @rule()
    def evaluate(self) -> None:
        """Another queue is served for a while, which nobody answers."""
        queue = WorkQueue[Group](groups_per_step=2, staleness=0, window=1, attempts=1, total=2)
        limits = Limits(VOCABULARY, 8, 0)
        self.registry.serve(ServedQueue(queue, self.make_work, lambda *_: None, limits))
        for actor in self.actors.values():
            actor.held.clear()
        self.grant()
        self.serve()

    @precondition(lambda self: self.members is None)
    @rule()
    def save(self) -> None:
        """Writes a checkpoint."""
        self.checkpoint = Checkpoint(
            self.step, self.queue.next_sequence, self.queue.untaken(), dict(self.queue.finished()), self.trained.copy(),
            self.failed.copy(),
        )  # fmt: skip

    @rule(sizes=sizes, saves=st.booleans())
    def resume(self, sizes: tuple[int, int, int], saves: bool) -> None:
        """The learner dies, and begins again at its last checkpoint with other P, S and W and without actors.

        If it ``saves``, it has been interrupted and writes a checkpoint first; otherwise what came after it is undone.
        """
        self.tally.note("learner dies", self.points())
        if saves and self.members is None:
            self.save()
        last = self.checkpoint
        self.step, self.trained, self.failed = last.step, last.trained.copy(), last.failed.copy()
        self.set_sizes(sizes)
        self.most_alive = max(self.most_alive, len(last.pending))
        oldest = {n: min(int(r.versions.min()) for r in group.rollouts) for n, group in last.finished.items()}
        stale = find_stale(last.pending, oldest, self.step, self.groups, self.bound)
        results = {n: group for n, group in last.finished.items() if n not in stale}
        self.published = self.step
        self.start_learner(self.new_queue(last.next_sequence, last.pending, results))
        self.publish_at_once()

    def points(self) -> Iterable[str]:
        if self.members is not None:
            yield "publishes"
        if self.queue.count_leased():
            yield "leases are held"
        if self.in_flight:
            yield "answers on the way"
        if self.queue.has_full_batch():
            yield "a batch is finished"
        if self.members is None and not self.queue.count_leased():
            yield "quiet"

    # -- what always holds -----------------------------------------------------------------------------------------

    @invariant()
    def count(self) -> None:
        self.tally.checks += 1

    @invariant()
    def every_question_is_somewhere_once(self) -> None:
        untaken = self.queue.untaken()
        everywhere = Counter(untaken) + self.trained + self.failed
        assert everywhere == Counter(range(self.queue.next_sequence))
        assert len(untaken) <= self.most_alive

    @invariant()
    def leases_of_actors_and_queue_agree(self) -> None:
        leased = Counter(one.sequence for actor in self.registry.actors.values() for one in actor.leases.values())
        assert all(count == 1 for count in leased.values()) and leased.total() == self.queue.count_leased()
        assert not set(leased) & set(self.queue.finished())
        for actor in self.registry.actors.values():
            assert actor.violations < MAX_VIOLATIONS


def run_machine(examples: int) -> None:
    run_state_machine_as_test(
        Membership, settings=settings(max_examples=examples, stateful_step_count=50, deadline=None)
    )


def test_every_promise_holds_in_any_order_of_events() -> None:
    run_machine(30)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_promise_holds_in_any_order_of_many_events() -> None:
    run_machine(800)
    print(Membership.tally)
    assert Membership.tally.steps >= 20_000 and not Membership.tally.missing(EVERYWHERE)
