"""Process groups with engines that do as NCCL does: they block where a peer is dead, and tell errors late."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from common import wire
from common.config import SyncConfig
from learner.weights import leader as leader_module
from learner.weights import process_group
from learner.weights.bucket_queue import BucketQueue
from learner.weights.buckets import cut_into_buckets, tensors_in
from learner.weights.deadlines import Deadlines
from learner.weights.leader import BucketHooks, Leader
from learner.weights.leader_messages import FormGroup, LeaderOrder
from learner.weights.process_group import GroupStore
from learner.weights.publisher import Publisher
from learner.weights.round import ActorGivenUp, Receiver, Round
from learner.weights.transports import GroupTransport
from learner.work.actors import ActorState
from learner.work.server import WorkServer

SHAPES = {"embed": [6, 4], "norm": [4], "head": [6, 4]}
BUCKETS = cut_into_buckets(SHAPES, "float32", 1e-4)  # one tensor each
PROBE = wire.Probe(ids=np.zeros(2, np.int32), logprobs=np.zeros(1, np.float32), tolerance=1.0)


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


class Engine:
    """An actor with an engine behind a group of NCCL, and rank 0 with its leader.

    Args:
        is_present: whether the actor is there, asked again and again.
        give_order: takes the orders instead of the leader.
    """

    def __init__(
        self,
        group: Group,
        monkeypatch: pytest.MonkeyPatch,
        is_present: Callable[[], bool] = lambda: True,
        give_order: Callable[[int, LeaderOrder], None] | None = None,
    ) -> None:
        monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "3")  # and put back after the test
        monkeypatch.setattr(process_group, "destroy_group", lambda group: group.destroyed.set())
        monkeypatch.setattr(leader_module, "connect_to_store", lambda *_: None)
        monkeypatch.setattr(leader_module, "form_group", lambda *_: group)
        self.told: list[Any] = []  # to the actor
        self.given_up = ""  # why
        self.errors: list[str] = []  # what leaders have reported as a mistake
        self.actor = ActorState(
            "one", "peer", "life", wire.ActorProcess(), engine_ranks=1, transport="group", drain_s=0.0, settings={},
            slots=1, last_heard=0.0,
        )  # fmt: skip
        self.receiver = Receiver("one", self.actor, self.tell, lambda: is_present() and not self.given_up)
        store = cast(GroupStore, SimpleNamespace(host="127.0.0.1", port=1))
        self.transport = GroupTransport(
            store, "nccl", "run", {0: ""}, give_order=give_order or (lambda _, order: self.leader.obey(order)),
            on_given_up=self.give_up, on_failed=self.errors.append,
        )  # fmt: skip
        self.leader = Leader(BUCKETS, "nccl", torch.device("cpu"), self.transport.hear)
        self.rounds = 0

    def tell(self, message: wire.LifeMessage) -> None:
        self.told.append(message)
        if isinstance(message, wire.Join):
            self.actor.replies.put(wire.Joined(group=message.group))

    def give_up(self, name: str, actor: ActorState, reason: str) -> None:
        assert (name, actor) == ("one", self.actor)
        self.given_up = reason

    def publish(self, form_s: float = 30.0, transfer_s: float = 30.0, *, is_stopped: bool = False) -> wire.Receive:
        """One round; raises ActorGivenUp if the engine does not get the weights.

        Args:
            is_stopped: the leader is, when all is gathered.
        """
        self.rounds += 1
        round_ = Round(
            number=self.rounds, version=1, probe=PROBE, buckets=BUCKETS, actors={"one": self.actor},
            leaders=self.transport.assign({"one": self.actor}),
            deadlines=Deadlines(form_s=form_s, pause_s=0.0, bucket_s=transfer_s, transfer_s=transfer_s),
        )  # fmt: skip
        self.transport.begin_round(round_)
        self.leader.begin_round(self.transport.plan(round_), 0)
        weights = ((name, torch.full(shape, float(n))) for n, (name, shape) in enumerate(SHAPES.items()))

        def gather() -> None:
            if not is_stopped:
                self.leader.gather(weights, BucketHooks(on_bucket=lambda *_: round_.gathered.has_first.set()))
            round_.gathered.end()

        threading.Thread(target=gather, daemon=True).start()
        self.transport.prepare(self.receiver, round_)
        order = self.transport.order(self.receiver, round_)
        self.transport.send(self.receiver, round_)
        return order


def test_the_first_update_alone_begins_with_a_small_bucket_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group()
    engine = Engine(group, monkeypatch)
    first, second = engine.publish(), engine.publish()
    assert [bucket.names for bucket in first.buckets] == [["norm"], ["embed"], ["norm"], ["head"]]
    assert second.buckets == BUCKETS and first.buckets[1:] == BUCKETS
    assert [len(buffer) for buffer in group.sent] == [16, 96, 16, 96, 96, 16, 96], "the engine is told what is sent"
    assert not group.sent[0].any()
    [join] = engine.told
    assert join.nccl == {name: os.environ.get(name, "0") for name in ("NCCL_CUMEM_ENABLE", "NCCL_NVLS_ENABLE")}


def test_a_peer_that_is_dead_when_the_ranks_connect_costs_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(peer_is_dead=True)
    engine, began = Engine(group, monkeypatch), time.monotonic()
    with pytest.raises(ActorGivenUp):
        engine.publish(form_s=0.3)
    assert "its engine did not connect to the weight group within 0 s" in engine.given_up
    assert time.monotonic() - began < 20, "and not the deadline of the transfer, or none"
    assert group.aborted.wait(60) and group.destroyed.wait(60)


def test_whoever_leaves_while_the_ranks_connect_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    group, asked = Group(peer_is_dead=True), iter([True] * 3)
    engine = Engine(group, monkeypatch, lambda: next(asked, False))
    with pytest.raises(ActorGivenUp, match="it is gone"):
        engine.publish(form_s=3600)
    engine.transport.forget("one", engine.actor)
    assert group.aborted.wait(60) and group.destroyed.wait(60), "its leader is told"
    assert not engine.given_up and not engine.errors


@pytest.mark.parametrize("number", [0, 2])
def test_an_error_of_nccl_costs_the_engine_alone(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not told by a wait without a deadline, and torch must not end the process for it."""
    engine = Engine(Group(fails_at=number), monkeypatch)
    with pytest.raises(ActorGivenUp):
        engine.publish()
    assert "sending weights to its engine failed: NCCL error" in engine.given_up and not engine.errors


def test_a_leader_that_is_stopped_costs_its_engines_the_deadlines_of_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = list[LeaderOrder]()
    engine = Engine(Group(), monkeypatch, give_order=lambda _, order: orders.append(order))
    with pytest.raises(ActorGivenUp, match="rank 0, its leader, did not form its weight group within 1 s"):
        engine.publish(form_s=0.2, transfer_s=0.1, is_stopped=True)
    [order] = orders
    assert isinstance(order, FormGroup)


def test_a_leader_that_is_gone_costs_its_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int, order: LeaderOrder) -> None:
        raise BrokenPipeError("broken pipe")

    with pytest.raises(ActorGivenUp, match="rank 0, its leader, cannot be reached: broken pipe"):
        Engine(Group(), monkeypatch, give_order=refuse).publish()


def test_a_mistake_of_a_leader_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(Group(), monkeypatch, lambda: not engine.errors)
    monkeypatch.setattr(leader_module, "start_broadcast", lambda *_: 1 // 0)
    with pytest.raises(ActorGivenUp):
        engine.publish()
    assert engine.errors == ["ZeroDivisionError: integer division or modulo by zero"]


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
    monkeypatch.setattr(leader_module, "wait_for_copies", lambda device: events.append("wait"))
    publisher = Publisher(
        cast(WorkServer, Server()), SyncConfig(), BUCKETS, torch.device("cpu"), lambda: None
    )  # fmt: skip
    weights = [(name, torch.full(shape, float(n))) for n, (name, shape) in enumerate(SHAPES.items())]
    publisher.publish(1, lambda _: iter(weights), PROBE)
    assert events == ["wait", "put"] * len(BUCKETS)
