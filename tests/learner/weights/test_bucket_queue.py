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
@given(st.integers(1, 6), st.integers(1, 3), st.randoms(use_true_random=True))
def test_gathering_is_at_most_one_bucket_ahead_and_every_sender_gets_all_buckets_in_order(
    monkeypatch: pytest.MonkeyPatch, count: int, number_of_senders: int, chance: random.Random
) -> None:
    """Senders of any speed, some of which give up."""
    monkeypatch.setattr(bucket_queue, "POLL_S", 0)
    senders = ["a", "b", "c"][:number_of_senders]
    recycled: list[int] = []
    queue = BucketQueue(senders, lambda buffer: recycled.append(int(buffer)))
    got, put, fastest = dict.fromkeys(senders, 0), 0, 0
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
        fastest = max([fastest, *queue._sent.values()])
        assert len(queue._kept) <= 2 + fastest - min(queue._sent.values(), default=fastest + 2)
    assert sorted(recycled) == list(range(count)), "each buffer comes back once"


def test_buffers_that_came_back_are_used_again_and_the_others_are_freed() -> None:
    spare = SpareBuffers(8, torch.device("cpu"))
    taken: list[Tensor] = [spare.take() for _ in range(3)]
    assert len({buffer.data_ptr() for buffer in taken}) == 3 and all(buffer.nbytes == 8 for buffer in taken)
    for buffer in taken:
        spare.give_back(buffer)
    spare.free_all_but(2)
    again = [spare.take() for _ in range(3)]
    assert sum(any(new is old for old in taken) for new in again) == 2
