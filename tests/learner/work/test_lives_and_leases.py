"""Actors, their names, lives and leases, in any order of deaths, duplicates and late messages.

A state machine plays processes that want to be one of two actors, a network that keeps messages of each process in
order and may deliver them long after their sender is dead, and a learner that may start again. What it keeps account of
is independent of the code: who held which lease under which life, and what was accepted.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from common import wire
from learner.groups import Group
from learner.work.actors import ActorRegistry, ServedQueue
from learner.work.admission import UNLIMITED
from learner.work.scheduler import WorkQueue
from tests.support.groups import random_rollout, seeded_generator, work
from tests.support.tally import Tally

LEASE_S = 10.0
GROUPS = 6
NAMES = st.sampled_from(["a", "b"])
INDEX = st.integers(0, 7)
# Events, and where in the protocol each of them has to happen in a long run.
EVERYWHERE = {
    "actor dies": (
        "before its hello", "hello on the way", "engine is starting", "another has its name", "refused", "idle",
        "holds leases", "answer on the way", "release on the way", "leave on the way", "heartbeat on the way",
    ),
    "learner dies": ("hello on the way", "answer on the way", "leases are held", "an actor is here", "quiet"),
    "message": ("of now", "of a dead process", "of an earlier life", "of an earlier learner"),
}  # fmt: skip
ON_THE_WAY: dict[type[wire.LifeMessage], str] = {
    wire.Hello: "hello on the way", wire.Submit: "answer on the way", wire.Release: "release on the way",
    wire.Leave: "leave on the way", wire.Heartbeat: "heartbeat on the way",
}  # fmt: skip


@dataclass
class Process:
    """An actor process: what it believes, and the messages of it that have not arrived yet."""

    name: str
    peer: str
    life: str = ""
    learner: str = ""
    alive: bool = True
    refused: bool = False
    held: dict[str, wire.Work] = field(default_factory=dict)  # by lease id
    sent: list[wire.LifeMessage] = field(default_factory=list)
    waited_since: float | None = None

    @property
    def lives(self) -> wire.Lives:
        return wire.Lives(self.life, self.learner)


class Membership(RuleBasedStateMachine):
    """The learner's registry, processes, and the messages between them."""

    tally = Tally()  # of all examples

    def __init__(self) -> None:
        super().__init__()
        self.tally.examples += 1
        self.now, self.numbers = 0.0, 0
        self.processes: list[Process] = []
        self.accepted: dict[int, int] = {}  # how often an answer was accepted, by sequence
        self.failed: set[int] = set()
        self.rollouts = [
            random_rollout(seeded_generator()).model_copy(update={"language": code}) for code in ("en", "de")
        ]
        self.queue: WorkQueue[Group] = WorkQueue(
            groups_per_step=GROUPS, staleness=0, window=1, attempts=3, total=GROUPS
        )
        self.start_learner()

    def start_learner(self) -> None:
        self.registry = ActorRegistry(LEASE_S)
        served = ServedQueue(self.queue, lambda n: work(n, ["en", "de"]), self.on_failed, UNLIMITED)
        self.registry.serve(served)

    def on_failed(self, sequence: int, reason: str) -> None:
        assert sequence not in self.failed | set(self.accepted)
        self.failed.add(sequence)

    def fresh(self) -> str:
        self.numbers += 1
        return f"life-{self.numbers}"

    # -- processes

    @rule(name=NAMES)
    @precondition(lambda self: sum(process.alive for process in self.processes) < 4)
    def begin_process(self, name: str) -> None:
        self.processes.append(Process(name, f"{name}/{len(self.processes)}"))

    @rule(index=INDEX, restarts=st.booleans())
    def die(self, index: int, restarts: bool) -> None:
        """The process is killed. Another of its name may know that it is gone, and says so."""
        if alive := [process for process in self.processes if process.alive]:
            self.kill(alive[index % len(alive)], restarts)

    def kill(self, victim: Process, restarts: bool) -> None:
        self.tally.note("actor dies", self.points_of(victim))
        victim.alive = False
        if restarts:
            heir = Process(victim.name, f"{victim.name}/{len(self.processes)}")
            self.processes.append(heir)
            self.say_hello(heir, replaces=victim.life)

    @rule(
        stage=st.integers(0, 5), name=NAMES, kind=st.sampled_from(["submit", "release", "leave", "crash", "heartbeat"]),
        victim=st.sampled_from(["nobody", "the actor", "the learner"]), restarts=st.booleans(), ready=st.booleans(),
    )  # fmt: skip
    def go_well_up_to(self, stage: int, name: str, kind: str, victim: str, restarts: bool, ready: bool) -> None:
        """All goes well for a new process up to a stage of the protocol; then somebody dies, or not."""
        process = Process(name, f"{name}/{len(self.processes)}")
        self.processes.append(process)
        if stage >= 1:
            self.say_hello(process, engine_ranks=int(ready or stage > 2))
        if stage >= 2:
            self.deliver_all_of(process)
        if stage >= 3:
            self.publish_and_grant()
        if stage == 4 and process.learner:
            self.send_as(process, kind, process.lives)
        if stage == 5 and process.learner:  # now another one wants its name
            process = Process(name, f"{name}/{len(self.processes)}")
            self.processes.append(process)
            self.say_hello(process)
            self.deliver_all_of(process)
            self.say_hello(process, waited_s=7.0)
            self.deliver_all_of(process)
        if victim == "the actor":
            self.kill(process, restarts)
        elif victim == "the learner":
            self.restart_learner()

    def deliver_all_of(self, process: Process) -> None:
        while process.sent:
            self.deliver([one for one in self.processes if one.sent].index(process))

    def points_of(self, process: Process) -> list[str]:
        state = self.registry.actors.get(process.name)
        points = [ON_THE_WAY[type(message)] for message in process.sent]
        points += [] if process.life else ["before its hello"]
        points += ["refused"] if process.refused else []
        if state is not None and state.peer != process.peer:
            points.append("another has its name")
        elif state is not None:
            points.append("holds leases" if process.held else "idle")
            points += [] if state.engine_ranks else ["engine is starting"]
        return points

    @rule(index=INDEX, ready=st.booleans())
    def hello(self, index: int, ready: bool) -> None:
        """A new life of a process that is there: the first, or after its engine failed."""
        if alive := [process for process in self.processes if process.alive and not process.refused]:
            process = alive[index % len(alive)]
            waited = self.now - process.waited_since if process.waited_since is not None else 0.0
            self.say_hello(process, waited_s=waited, engine_ranks=int(ready))

    def say_hello(self, process: Process, engine_ranks: int = 1, **fields: Any) -> None:
        process.life, process.learner, process.held = self.fresh(), "", {}
        hello = wire.Hello(
            protocol=wire.PROTOCOL, name=process.name, slots=2, transport="group", engine_ranks=engine_ranks, **fields
        )  # fmt: skip
        process.sent.append(hello.of(process.lives))

    @rule(index=INDEX, kind=st.sampled_from(["submit", "release", "leave", "crash", "heartbeat"]), old=st.booleans())
    def send(self, index: int, kind: str, old: bool) -> None:
        """A process sends something; ``old``: with lives or leases that are not those of now."""
        processes = [process for process in self.processes if process.alive and process.learner]
        if not processes:
            return
        process = processes[index % len(processes)]
        lives = process.lives
        if old:
            lives = random.choice([lives._replace(actor="life-1"), lives._replace(learner="x"), wire.Lives("", "")])
        self.send_as(process, kind, lives)

    def send_as(self, process: Process, kind: str, lives: wire.Lives) -> None:
        lease = next(iter(process.held), "99:train-0")
        message: wire.LifeMessage
        match kind:
            case "submit":
                message = wire.Submit(id=lease, rollouts=self.rollouts)
            case "release":
                message = wire.Release(id=lease, reason="x", cause=random.choice(["generation", "outage", "scoring"]))
            case "heartbeat":
                message = wire.Heartbeat(holding=list(process.held), seconds={})
            case _:
                message = wire.Leave(reason="x", generating=list(process.held) if kind == "crash" else [])
        if kind in ("submit", "release") and lives == process.lives:
            process.held.pop(lease, None)
        process.sent.append(message.of(lives))

    # -- the network and the learner

    @rule(index=INDEX)
    def deliver(self, index: int) -> None:
        """The oldest message of some process arrives, whether that is still there or not."""
        if not (senders := [process for process in self.processes if process.sent]):
            return
        process = senders[index % len(senders)]
        message = process.sent.pop(0)
        self.note_delivery(process, message)
        if isinstance(message, wire.Hello):
            self.receive_hello(process, message)
            return
        before = {name: state for name, state in self.registry.actors.items()}
        foreign = self.registry.foreign
        state = self.registry.find_sender(process.peer, message)
        belongs = message.learner_life == self.registry.life and any(
            actor.life == message.actor_life and actor.peer == process.peer for actor in before.values()
        )
        assert (state is not None) == belongs and self.registry.foreign == foreign + (not belongs)
        if state is None:
            return
        state.last_heard = self.now
        match message:
            case wire.Submit():
                held = state.leases.get(message.id)
                if self.registry.submit(state.name, message):
                    assert held is not None
                    self.accepted[held.sequence] = self.accepted.get(held.sequence, 0) + 1
                else:
                    assert held is None
            case wire.Release():
                self.registry.release(state.name, message)
            case wire.Heartbeat():
                self.registry.heartbeat(state.name, message, self.now)
            case wire.Leave():
                self.registry.leave(state.name, message)

    def note_delivery(self, process: Process, message: wire.LifeMessage) -> None:
        points = [] if process.alive else ["of a dead process"]
        points += [] if message.actor_life == process.life else ["of an earlier life"]
        if not isinstance(message, wire.Hello):
            points += [] if message.learner_life == self.registry.life else ["of an earlier learner"]
        self.tally.note("message", points or ["of now"])

    def receive_hello(self, process: Process, hello: wire.Hello) -> None:
        holder = self.registry.actors.get(hello.name)
        answer = self.registry.admit(process.peer, hello, self.now)
        rival = holder is not None and holder.peer != process.peer and holder.life != hello.replaces
        assert isinstance(answer, wire.Welcome) != rival, "a name belongs to the one that has it"
        if rival:
            assert self.registry.actors[hello.name] is holder
        if process.life != hello.actor_life:
            return  # the answer belongs to a life that is over, and is dropped
        if isinstance(answer, wire.Welcome):
            process.learner, process.waited_since = self.registry.life, None
        elif isinstance(answer, wire.Taken):
            process.waited_since = self.now if process.waited_since is None else process.waited_since
        else:
            assert holder is not None and self.now - holder.last_heard <= LEASE_S, "not for the sake of a dead one"
            process.refused = True

    @rule()
    def publish_and_grant(self) -> None:
        self.registry.mark_published({n: a for n, a in self.registry.actors.items() if a.engine_ranks})
        for name, works in self.registry.grant(self.now).items():
            state = self.registry.actors[name]
            for process in self.processes:
                if process.alive and process.lives == self.registry.lives_of(state):
                    process.held |= {leased.id: leased for leased in works}

    @rule(seconds=st.sampled_from([1.0, 4.0, 7.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.registry.remove_silent(self.now)
        self.registry.release_expired(self.now)

    @rule()
    def restart_learner(self) -> None:
        """A new life of the learner, with the results that its checkpoint holds. It knows no actor."""
        points = [ON_THE_WAY[type(message)] for process in self.processes for message in process.sent]
        points += ["leases are held"] if self.queue.count_leased() else []
        points += ["an actor is here"] if self.registry.actors else ["quiet"]
        self.tally.note("learner dies", points)
        done = self.queue.finished()
        self.queue = WorkQueue(
            groups_per_step=GROUPS, staleness=0, window=1, attempts=3, total=self.queue.remaining,
            next_sequence=self.queue.next_sequence, pending=self.queue.untaken(), results=done,
        )  # fmt: skip
        self.start_learner()

    # -- what must hold at any time

    @invariant()
    def count(self) -> None:
        self.tally.checks += 1

    @invariant()
    def every_group_is_accepted_once_at_most(self) -> None:
        assert set(self.accepted.values()) <= {1}
        assert set(self.accepted) == set(self.queue.finished()) and not self.failed & set(self.accepted)

    @invariant()
    def every_group_is_somewhere(self) -> None:
        known = set(self.queue.untaken()) | self.failed
        assert known == set(range(self.queue.next_sequence))

    @invariant()
    def leases_and_queue_agree(self) -> None:
        held = [work.sequence for actor in self.registry.actors.values() for work in actor.leases.values()]
        assert len(held) == len(set(held)) == self.queue.count_leased()
        for actor in self.registry.actors.values():
            assert len(actor.leases) <= actor.slots and (actor.engine_ranks or not actor.leases)
            suspects = [work for work in actor.leases.values() if self.queue.is_suspect(work.sequence)]
            blamed_while_held = len(actor.leases) > 1 and suspects
            assert not blamed_while_held, "what may have ended engines is alone in its engine"

    @invariant()
    def names_and_lives_agree(self) -> None:
        assert {actor.life: name for name, actor in self.registry.actors.items()} == self.registry._names


TestMembership = Membership.TestCase
TestMembership.settings = settings(max_examples=30, stateful_step_count=50, deadline=None)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_membership_for_long() -> None:
    run_state_machine_as_test(Membership, settings=settings(max_examples=350, stateful_step_count=80, deadline=None))
    print(Membership.tally)
    assert Membership.tally.steps >= 20_000 and not Membership.tally.missing(EVERYWHERE)


def test_when_all_is_quiet_every_group_is_answered() -> None:
    """After any beginning, one healthy actor finishes whatever is left."""

    class Ends(Membership):
        def teardown(self) -> None:
            for process in self.processes:
                process.alive, process.sent = False, []
            self.now += LEASE_S + 1
            self.registry.remove_silent(self.now)
            last = Process("a", "a/last")
            self.processes.append(last)
            self.say_hello(last)
            self.deliver(0)
            for _ in range(4 * GROUPS):
                self.publish_and_grant()
                while last.held:
                    lease = next(iter(last.held))
                    last.sent.append(wire.Submit(id=lease, rollouts=self.rollouts).of(last.lives))
                    del last.held[lease]
                    self.deliver(0)
            assert len(self.accepted) == GROUPS

    run_state_machine_as_test(Ends, settings=settings(max_examples=10, stateful_step_count=40, deadline=None))
