"""Waiting for broadcasts of real gloo groups."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from learner.weights.process_group import (
    GroupStore,
    ProcessGroup,
    connect_to_store,
    destroy_group,
    form_group,
    raise_error,
    start_broadcast,
    wait_briefly,
)

TIMEOUT_S = 60


def _second_rank(port: int, orders: Any) -> None:
    """In a process of its own, because torch knows a group by its name: receives n numbers for every order n."""
    group = form_group("gloo", connect_to_store("127.0.0.1", port, TIMEOUT_S), "pair", 2, TIMEOUT_S, rank=1)
    while (count := orders.recv()) is not None:
        received = torch.zeros(count, dtype=torch.int64)
        start_broadcast(group, received, TIMEOUT_S).wait()
        orders.send(int(received.sum()))


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[ProcessGroup, Any]]:
    """The first rank of a group, and the connection on which the second one takes its orders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "3")  # and put back after the tests
        store, (orders, theirs) = GroupStore("127.0.0.1", 0, TIMEOUT_S), multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_second_rank, args=(store.port, theirs))
        process.start()
        client = connect_to_store(store.host, store.port, TIMEOUT_S)
        group = form_group("gloo", client, "pair", 2, TIMEOUT_S)
        yield group, orders
        orders.send(None)
        process.join()
        store.close()
        destroy_group(group)


def test_a_wait_that_is_too_short_leaves_the_broadcast_as_it_is(pair: tuple[ProcessGroup, Any]) -> None:
    group, orders = pair
    sent = torch.arange(100_000)
    work = start_broadcast(group, sent, TIMEOUT_S)
    assert not any(wait_briefly(work, "gloo", 0.02) for _ in range(5)), "nobody receives yet"
    orders.send(len(sent))
    assert wait_briefly(work, "gloo", TIMEOUT_S)
    raise_error(work)
    assert orders.recv() == sent.sum()


def test_whoever_waits_for_gloo_is_woken_when_the_broadcast_is_complete(
    pair: tuple[ProcessGroup, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    group, orders = pair
    monkeypatch.setattr("learner.weights.process_group.time.sleep", lambda _: pytest.fail("it is polled"))
    work, begin = start_broadcast(group, torch.ones(8, dtype=torch.int64), TIMEOUT_S), time.monotonic()
    threading.Timer(0.3, orders.send, [8]).start()
    assert wait_briefly(work, "gloo", TIMEOUT_S)
    assert 0.1 < time.monotonic() - begin < TIMEOUT_S / 2 and orders.recv() == 8


def test_a_broadcast_that_has_failed_is_complete_and_tells_why(pair: tuple[ProcessGroup, Any]) -> None:
    """The last test of this group, which is broken then."""
    work = start_broadcast(pair[0], torch.zeros(8), 0.3)
    deadline = time.monotonic() + TIMEOUT_S
    while not wait_briefly(work, "gloo", 0.05):
        assert time.monotonic() < deadline
    with pytest.raises(RuntimeError, match=r"(?i)timed? ?out"):
        raise_error(work)


def test_nccl_is_looked_at_and_never_waited_for_with_a_deadline() -> None:
    """Such a wait would break the broadcast off when its deadline passes."""

    class Work:
        asked = 0

        def is_completed(self) -> bool:
            self.asked += 1
            return self.asked > 4

        def wait(self, *_: Any) -> None:
            pytest.fail("it is waited for")

    work = Work()
    assert [wait_briefly(work, "nccl", TIMEOUT_S) for _ in range(3)] == [False, False, True]
