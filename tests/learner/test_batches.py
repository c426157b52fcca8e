"""A wait for groups may last as long as groups come, and no longer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from common import stood_still
from common.stopwatch import Stopwatch
from learner.loop import batches as batches_module
from learner.loop.batches import Batches
from learner.loop.interrupts import NobodyCame

TIMEOUT_S = 150.0
TURN_S = 100.0  # by which the clock goes on in each wait of the stand-in for the server


class Waiting:
    """A server whose groups come in given waits, and a clock that the waits move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, comes: list[int], batch: list[Any]) -> None:
        self.now, self.turns, self.count, self.comes, self.batch = 0.0, 0, 0, comes, batch
        self.ranks, self.stands_still_s = Mock(), 0.0
        monkeypatch.setattr(batches_module, "time", clock := SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(stood_still, "time", clock)
        monkeypatch.setattr(batches_module, "_TURN_S", TURN_S)
        server = Mock(take=self.take, accepted=lambda: self.count)
        server.counts.return_value, server.members.return_value = {"leased": 2}, {"a": None}
        server.describe_oldest.return_value = "the oldest is group 3"
        self.batches = Batches(server, Mock(), self.ranks, TIMEOUT_S, Stopwatch(), Mock())

    def take(self, timeout_s: float) -> list[Any] | None:
        self.now += TURN_S + (self.stands_still_s if self.turns == 0 else 0.0)
        self.count += self.turns in self.comes
        self.turns += 1
        return self.batch if self.turns > len(self.comes) else None


def test_a_step_may_take_long_while_its_groups_come(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = [object()]
    waiting = Waiting(monkeypatch, list(range(20)), batch)
    assert waiting.batches.next_batch() is batch and waiting.now > 10 * TIMEOUT_S
    kept = waiting.ranks.keep_waiting.call_args_list
    assert len(kept) == 20 and all(0 < call.args[0] <= TIMEOUT_S / 2 for call in kept), "the other ranks wait with it"


def test_a_wait_in_which_no_group_comes_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting(monkeypatch, [0, 1, 2, *[-1] * 50], [])
    with pytest.raises(
        NobodyCame,
        match=r"no group came within learner\.group_timeout_s = 150 s: \{'leased': 2\}.* a; the oldest is group 3$",
    ):
        waiting.batches.next_batch()
    assert waiting.now == 3 * TURN_S + 2 * TURN_S, "counted from the newest group"


def test_time_in_which_the_learner_stood_still_is_not_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting(monkeypatch, [-1], batch := [object()])
    waiting.stands_still_s = 50 * TIMEOUT_S  # as if the process were stopped in the first wait
    assert waiting.batches.next_batch() is batch
