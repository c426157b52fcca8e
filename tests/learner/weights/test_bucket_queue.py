"""The queue between gathering and sending, under random orders of events."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.weights import bucket_queue
from learner.weights.bucket_queue import BucketQueue, SpareBuffers


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 8), st.integers(1, 3), st.integers(2, 4), st.randoms(use_true_random=True))
def test_gathering_is_at_most_one_bucket_ahead_and_every_sender_gets_all_buckets_in_order(
    monkeypatch: pytest.MonkeyPatch, count: int, number_of_senders: int, room: int, chance: random.Random
) -> None:
    """Senders of any speed, some of which give up; the slowest decides how much is kept."""
    monkeypatch.setattr(bucket_queue, "POLL_S", 0)
    senders = ["a", "b", "c"][:number_of_senders]
    recycled: list[int] = []
    queue = BucketQueue(senders, lambda buffer: recycled.append(int(buffer)), room)
    got, put = dict.fromkeys(senders, 0), 0
    while put < count or got:
        mover = chance.choice(["gather", "give up", *got])
        if mover == "gather" and put < count and queue.has_room(put):
            assert not got or put <= max(got.values()) + 1
            queue.put(put, torch.tensor(put))
            put += 1
        elif mover == "give up" and got and chance.random() < 0.1:
            queue.leave(gone := chance.choice(sorted(got)))
            del got[gone]
        elif mover in got:
            buffer = queue.get(mover, got[mover])
            assert (buffer is None) == (got[mover] >= put)
            if buffer is not None:
                assert int(buffer) == got[mover]
                got[mover] += 1
                if got[mover] == count:
                    queue.leave(mover)
                    del got[mover]
        assert len(queue._kept) <= room
        assert set(queue.held_s(put)) <= set(got)
        assert bool(queue.held_s(put)) == (not queue.has_room(put))
    assert sorted(recycled) == list(range(count)), "each buffer comes back once"


def test_who_holds_a_bucket_is_named_and_gets_nothing_after_it_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(bucket_queue, "POLL_S", 0)
    monkeypatch.setattr("learner.weights.bucket_queue.time.monotonic", lambda: now)
    queue = BucketQueue(["fast", "stopped"], lambda buffer: None)
    for number in range(2):
        queue.put(number, torch.tensor(number))
    now = 101.0
    assert queue.get("fast", 0) is not None and queue.get("fast", 1) is not None
    now = 110.0
    assert not queue.has_room(2) and queue.held_s(2) == {"stopped": 10.0}
    queue.leave("stopped")
    assert queue.has_room(2) and queue.held_s(2) == {}
    assert queue.get("stopped", 0) is None and queue.held_s(2) == {}, "it does not come back by asking"


def test_buffers_that_came_back_are_used_again_and_the_others_are_freed() -> None:
    spare = SpareBuffers(8)
    taken: list[Tensor] = [spare.borrow() for _ in range(3)]
    assert len({buffer.data_ptr() for buffer in taken}) == 3 and all(buffer.nbytes == 8 for buffer in taken)
    for buffer in taken:
        spare.give_back(buffer)
    again = [spare.borrow() for _ in range(3)]
    assert sum(any(new is old for old in taken) for new in again) == 2
