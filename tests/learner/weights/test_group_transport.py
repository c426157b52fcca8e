"""Process groups with engines that do as NCCL does: they block where a peer is dead, and tell errors late."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from common import wire
from common.config import SyncConfig
from learner.weights import process_group
from learner.weights import publisher as publisher_module
from learner.weights.bucket_queue import BucketQueue
from learner.weights.buckets import bytes_of, cut_into_buckets, tensors_in
from learner.weights.deadlines import Deadlines
from learner.weights.process_group import GroupStore
from learner.weights.publisher import Publisher
from learner.weights.round import ActorLost, Receiver, Round
from learner.weights.transports import GroupTransport
from learner.work.actors import ActorState
from learner.work.server import WorkServer

SHAPES = {"embed": [6, 4], "norm": [4], "head": [6, 4]}
BUCKETS = cut_into_buckets(SHAPES, "float32", 1e-4)  # one tensor each


class Work:
    """Complete at once; ``error`` comes out when it is waited for with a deadline, as that of NCCL does."""

    def __init__(self, error: str = "") -> None:
        self.error = error

    def is_completed(self) -> bool:
        return True

    def wait(self, timeout: object = None) -> None:
        if self.error and timeout is not None:
            raise RuntimeError(self.error)


class Group:
    """A group of NCCL: its first broadcast connects, which blocks while the peer is dead and until it is aborted."""

    group_name = "group"

    def __init__(self, *, peer_is_dead: bool = False, fails_at: int = -1) -> None:
        self.sent: list[Tensor] = []
        self.aborted, self.destroyed = threading.Event(), threading.Event()
        self._peer_is_dead, self._fails_at = peer_is_dead, fails_at

    def broadcast(self, buffers: list[Tensor], options: Any) -> Work:
        if self._peer_is_dead:
            self.aborted.wait(60)
            raise RuntimeError("NCCL communicator was aborted")
        self.sent.append(buffers[0].clone())
        return Work("NCCL error: unhandled system error" if len(self.sent) - 1 == self._fails_at else "")

    def abort(self) -> None:
        self.aborted.set()


def make_transport(group: Group, monkeypatch: pytest.MonkeyPatch) -> GroupTransport:
    class Store:
        host, port = "127.0.0.1", 1

        def form_group(self, *_: object) -> Group:
            return group

    monkeypatch.setattr(process_group, "destroy_group", lambda group: group.destroyed.set())
    store = cast(GroupStore, Store())
    return GroupTransport(store, "nccl", "run", torch.device("cpu"))


def make_round(actor: ActorState, form_s: float) -> Round:
    queue = BucketQueue(["one"], recycle=lambda buffer: None)
    for number, bucket in enumerate(BUCKETS):
        queue.put(number, torch.full((bytes_of(bucket),), number + 1, dtype=torch.uint8))
    probe = wire.Probe(ids=np.zeros(2, np.int32), logprobs=np.zeros(1, np.float32), tolerance=1.0)
    deadlines = Deadlines(form_s=form_s, pause_s=30.0, bucket_s=30.0, transfer_s=30.0)
    return Round(version=1, probe=probe, buckets=BUCKETS, actors={"one": actor}, deadlines=deadlines, queue=queue)


def make_receiver(actor: ActorState, sent: list[Any], present: Callable[[], bool] = lambda: True) -> Receiver:
    def send(message: wire.LifeMessage) -> None:
        sent.append(message)
        if isinstance(message, wire.Join):
            actor.replies.put(wire.Joined(group=message.group))

    return Receiver("one", actor, send, present)


def make_actor() -> ActorState:
    process = wire.ActorProcess()
    return ActorState(
        "one", "peer", "life", process, engine_ranks=1, transport="group", drain_s=0.0, slots=1, last_heard=0.0
    )


def publish(transport: GroupTransport, receiver: Receiver, form_s: float = 30.0) -> wire.Receive:
    round_ = make_round(receiver.actor, form_s)
    transport.prepare(receiver, round_)
    order = transport.order(receiver, round_)
    transport.send(receiver, round_)
    return order


def test_the_first_update_alone_begins_with_a_small_bucket_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    group, actor, messages = Group(), make_actor(), list[Any]()
    transport, receiver = make_transport(group, monkeypatch), make_receiver(actor, messages)
    first, second = publish(transport, receiver), publish(transport, receiver)
    assert [bucket.names for bucket in first.buckets] == [["norm"], ["embed"], ["norm"], ["head"]]
    assert second.buckets == BUCKETS and first.buckets[1:] == BUCKETS
    assert [len(buffer) for buffer in group.sent] == [16, 96, 16, 96, 96, 16, 96], "the engine is told what is sent"
    assert not group.sent[0].any()
    [join] = messages
    assert join.nccl == {name: os.environ.get(name, "0") for name in ("NCCL_CUMEM_ENABLE", "NCCL_NVLS_ENABLE")}


def test_a_peer_that_is_dead_when_the_ranks_connect_costs_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    group, actor = Group(peer_is_dead=True), make_actor()
    transport = make_transport(group, monkeypatch)
    began = time.monotonic()
    with pytest.raises(ActorLost, match="its engine did not connect to the weight group within 0 s"):
        publish(transport, make_receiver(actor, []), form_s=0.3)
    assert time.monotonic() - began < 20, "and not the deadline of the transfer, or none"
    assert group.aborted.wait(60) and group.destroyed.wait(60)


def test_whoever_leaves_while_the_ranks_connect_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    group, actor, asked = Group(peer_is_dead=True), make_actor(), iter([True] * 3)
    transport = make_transport(group, monkeypatch)
    with pytest.raises(ActorLost, match="it is gone"):
        publish(transport, make_receiver(actor, [], lambda: next(asked, False)), form_s=3600)
    group.abort()


@pytest.mark.parametrize("number", [0, 2])
def test_an_error_of_nccl_costs_the_engine_alone(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not told by a wait without a deadline, and torch must not end the process for it."""
    actor = make_actor()
    transport = make_transport(Group(fails_at=number), monkeypatch)
    with pytest.raises(ActorLost, match="sending weights to its engine failed: NCCL error"):
        publish(transport, make_receiver(actor, []))


def test_torch_leaves_errors_of_later_groups_to_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "3")  # and put back after the test
    GroupStore("127.0.0.1", 0, 5).close()
    assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"


def test_copies_on_the_gpu_are_done_before_a_bucket_is_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Server:
        address = "tcp://127.0.0.1:1"

        def members(self) -> dict[str, ActorState]:
            return {}

        def begin_version(self, version: int) -> None:
            pass

    events = list[str]()
    put = BucketQueue.put

    def recorded(queue: BucketQueue, number: int, buffer: Tensor) -> None:
        events.append("put")
        assert all(tensor.eq(number).all() for tensor in tensors_in(buffer, BUCKETS[number]))
        put(queue, number, buffer)

    monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "3")
    monkeypatch.setattr(BucketQueue, "put", recorded)
    monkeypatch.setattr(publisher_module, "wait_for_copies", lambda device: events.append("wait"))
    publisher = Publisher(
        cast(WorkServer, Server()), SyncConfig(), BUCKETS, torch.device("cpu"), lambda: None
    )  # fmt: skip
    weights = [(name, torch.full(shape, float(n))) for n, (name, shape) in enumerate(SHAPES.items())]
    probe = wire.Probe(ids=np.zeros(2, np.int32), logprobs=np.zeros(1, np.float32), tolerance=1.0)
    publisher.publish(1, iter(weights), probe)
    assert events == ["wait", "put"] * len(BUCKETS)
