"""Waiting for an actor's replies: whatever it sends, the wait ends."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from common import wire
from learner.weights.round import ActorGivenUp, Receiver
from learner.work.actors import ActorState

DEADLINE_S, SOON_S = 0.3, 20.0


def actor() -> ActorState:
    return ActorState(
        name="a", peer="a/process", life="a life", process=wire.ActorProcess(), engine_ranks=1, transport="group",
        drain_s=0.0, settings={}, slots=1, last_heard=0.0,
    )  # fmt: skip


def test_an_actor_that_talks_of_something_else_is_not_waited_for_longer_than_a_silent_one() -> None:
    talking, over = actor(), threading.Event()
    present = [True]

    def talk() -> None:
        for version in itertools.count(2):
            if over.is_set():
                return
            talking.replies.put(wire.Synced(version=version, stage="ready", pause_s=0.0))

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    receiver = Receiver("a", talking, lambda _message: None, lambda: present[0])
    waits = threading.Thread(target=lambda: outcomes.append(outcome(receiver, DEADLINE_S)), daemon=True)
    outcomes: list[str] = []
    try:
        began = time.monotonic()
        waits.start()
        waits.join(SOON_S)
        assert outcomes == ["its engine did not pause for version 1 within 0 s"]
        assert time.monotonic() - began >= DEADLINE_S
        present[0] = False
        gone = threading.Thread(target=lambda: outcomes.append(outcome(receiver, 2 * SOON_S)), daemon=True)
        gone.start()
        gone.join(SOON_S)
        assert outcomes[1:] == ["it is gone"]
    finally:
        over.set()
        while thread.is_alive():
            while not talking.replies.empty():
                talking.replies.get()
            thread.join(0.01)


def outcome(receiver: Receiver, deadline_s: float) -> str:
    with pytest.raises(ActorGivenUp) as given_up:
        receiver.wait_ready(1, deadline_s)
    return str(given_up.value)


def test_the_reply_that_is_expected_is_taken_after_those_of_earlier_rounds() -> None:
    there = actor()
    for version in (3, 4, 5):
        there.replies.put(wire.Synced(version=version, stage="done", pause_s=version / 10))
    assert Receiver("a", there, lambda _message: None, lambda: True).wait_done(5, SOON_S) == 0.5
