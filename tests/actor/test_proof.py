"""What is known of an engine's weights, against a model of the engine that keeps account of what really happened.

The machine orders pauses, weights and probes in any order, lets them end, fail or be cut off at any point, and has
answers generated all the time. The account is kept by the update that put the weights there, not by version, so that it
would show a version that counts as proved because of an earlier update.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from actor.proof import WeightProof, WeightState
from tests.support.tally import Tally

EVENTS: dict[str, Callable[[WeightProof], Any]] = {
    "pause": WeightProof.pause,
    "paused": WeightProof.paused,
    "received": WeightProof.received,
    "resumed": WeightProof.resumed,
}


class Engine(RuleBasedStateMachine):
    """An engine, its weights, and the answers that were made with them."""

    tally = Tally()  # of all examples

    def __init__(self) -> None:
        super().__init__()
        self.tally.examples += 1
        self.begin_life()

    def begin_life(self) -> None:
        self.proof = WeightProof()
        self.update = 0  # number of the update whose weights the engine has; 0 for those it was started with
        self.updates: list[int | None] = [None]  # policy version of each update
        self.proved: set[int] = set()  # updates
        self.answers: list[set[int]] = []  # the updates whose weights made the tokens of each answer
        self.generates = True
        self.broken = False

    def try_to(self, event: str, *arguments: Any) -> bool:
        """Whether the event was allowed."""
        before = self.proof.state, self.proof.version
        self.tally.note(event, [self.proof.state.name])
        try:
            getattr(self.proof, event)(*arguments)
        except RuntimeError:
            assert (self.proof.state, self.proof.version) == before, "what is refused changes nothing"
            return False
        return True

    @rule()
    def pause(self) -> None:
        self.try_to("pause")

    @rule()
    def paused(self) -> None:
        if self.try_to("paused"):
            self.generates = False

    @rule(version=st.integers(0, 3))
    def receive(self, version: int) -> None:
        """The same version may come again, after a restart of the learner or for an actor that has come."""
        if self.try_to("receive", version):
            self.updates.append(version)
            self.update = len(self.updates) - 1

    @rule()
    def received(self) -> None:
        if self.try_to("received"):
            self.generates = True

    @rule()
    def resumed(self) -> None:
        if self.try_to("resumed"):
            self.generates = True

    @rule(version=st.integers(0, 3))
    def probed(self, version: int) -> None:
        """A probe ends, maybe one of earlier weights, and agrees."""
        if self.try_to("probed", version):
            assert version == self.updates[self.update], "a probe of other weights proves nothing"
            self.proved.add(self.update)

    @rule(
        stage=st.integers(0, 5), version=st.integers(0, 3),
        then=st.sampled_from(["nothing", "pause", "paused", "receive", "received", "resumed", "probed", "fail"]),
    )  # fmt: skip
    def go_well_up_to(self, stage: int, version: int, then: str) -> None:
        """An update goes well up to a stage, in a new life after a failure; then anything comes."""
        if self.broken:
            self.begin_life()
        takes_version = {"receive", "probed"}
        for event in [*("pause", "paused", "receive", "received", "probed")[:stage], then]:
            if event != "nothing":
                getattr(self, event)(*([version] if event in takes_version else []))

    @rule()
    def fail(self) -> None:
        self.tally.note("fail", [self.proof.state.name])
        self.proof.fail()
        self.broken = True

    @rule()
    def begin_answer(self) -> None:
        if self.generates:
            self.answers.append({self.update})

    @rule(data=st.data())
    def go_on_with_an_answer(self, data: st.DataObject) -> None:
        if self.generates and self.answers:
            data.draw(st.sampled_from(self.answers)).add(self.update)

    @invariant()
    def count(self) -> None:
        self.tally.checks += 1

    @invariant()
    def nothing_is_sent_that_is_not_proved(self) -> None:
        for answer in self.answers:
            versions = {version for n in answer if (version := self.updates[n]) is not None}
            unversioned = any(self.updates[n] is None for n in answer)
            if self.proof.may_send(versions) and not unversioned:
                newest = {max(n for n, version in enumerate(self.updates) if version == each) for each in versions}
                # Weights of one version are the same weights; their newest update must have been proved.
                assert newest <= self.proved and not self.broken
                assert not self.proof.is_lost(versions)

    @invariant()
    def what_is_lost_stays_lost_and_the_rest_may_come(self) -> None:
        if self.broken:
            assert self.proof.state is WeightState.FAILED
            assert self.proof.is_lost({0}) and not self.proof.may_send(set())
        elif self.proof.version is not None:
            assert not self.proof.is_lost({self.proof.version}), "it can still be proved"

    @invariant()
    def proved_means_the_present_weights(self) -> None:
        if self.proof.state is WeightState.PROVED:
            assert self.update in self.proved and self.generates
            assert self.proof.may_send({self.updates[self.update] or 0})


TestEngine = Engine.TestCase
TestEngine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.slow
def test_many_more_orders_of_events() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(Engine, settings=settings(max_examples=1_000, stateful_step_count=60, deadline=None))
    print(Engine.tally)
    every = tuple(state.name for state in WeightState)
    expected = dict.fromkeys(["fail", "pause", "paused", "receive", "received", "resumed", "probed"], every)
    assert Engine.tally.steps >= 20_000 and not Engine.tally.missing(expected)


def test_every_way_from_paused_to_proved_goes_by_a_probe() -> None:
    """All sequences of up to nine events: after a version was received, only its own probe leads to PROVED."""
    reached = 0

    def walk(events: tuple[tuple[Any, ...], ...], depth: int) -> None:
        nonlocal reached
        proof = WeightProof()
        probes_since_received = 0
        for name, *arguments in events:
            try:
                getattr(proof, name)(*arguments)
            except RuntimeError:
                return
            probes_since_received = 0 if name == "receive" else probes_since_received + (name == "probed")
        if proof.state is WeightState.PROVED:
            reached += 1
            assert probes_since_received, events
        if depth:
            for event in [(name,) for name in EVENTS] + [("receive", 1), ("probed", 1), ("probed", 2)]:
                walk((*events, event), depth - 1)

    walk((), 9)
    assert reached


def test_the_known_fault_a_pause_that_cuts_off_the_proof_proves_nothing() -> None:
    proof = WeightProof()
    for event, *arguments in (("pause",), ("paused",), ("receive", 5), ("received",), ("pause",), ("paused",)):
        getattr(proof, event)(*arguments)
    proof.resumed()
    assert proof.state is WeightState.PROVING and not proof.may_send({5}) and not proof.is_lost({5})
    proof.pause()
    proof.paused()
    proof.receive(6)
    assert proof.is_lost({5}) and proof.is_lost({5, 6}) and not proof.is_lost({6})
    with suppress(RuntimeError):
        proof.probed(6)  # too early: the engine has them not yet
    assert not proof.may_send({6})
