"""Rounds in which an engine blocks whoever deals with it, as NCCL does: for ever, and until its group is aborted.

Process groups are stand-ins, and so are the actors, whose answers the test gives.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common import wire
from common.config import SyncConfig
from learner.weights import leader, process_group
from learner.weights.bucket_queue import BucketQueue
from learner.weights.buckets import cut_into_buckets
from learner.weights.publisher import Publisher
from learner.work.server import WorkServer
from tests.learner.work.test_server import PATIENCE_S, Client

BUCKETS = 60
SHAPES = {f"w{number}": [256] for number in range(BUCKETS)}  # 1 KiB each in float32
PROBE = wire.Probe(ids=np.array([1, 2], np.int32), logprobs=np.array([-1.0], np.float32), tolerance=1.0)
SOON_S = 30.0  # long for what takes no time, and short beside the deadlines that must not be waited for
ENDLESS_S = 3600.0
SLOW_S = 0.1  # of a broadcast; ten of them take the time that all have


class Group:
    """A process group with one engine, which takes broadcasts, or only the first one, which connects it.

    With ``slow`` it takes them all, each within the call that begins it, which nothing can interrupt.
    """

    def __init__(self, name: str, stuck: str) -> None:
        self.group_name, self.stuck = name, stuck
        self.aborted = threading.Event()
        self.received = 0
        self.looked = 0
        self.calls: list[str] = []

    def broadcast(self, *_: object) -> Group:
        if self.stuck == "slow":
            time.sleep(SLOW_S)
        if self.stuck == "call" and self.received:  # within which NCCL may wait for a dead peer
            self.block()
        return self

    def is_completed(self) -> bool:
        if self.stuck == "slow":
            self.looked += 1
            return self.looked % 2 == 0
        return not (self.stuck and self.received) or self.aborted.is_set()

    def wait(self, *_: object) -> None:
        if self.stuck not in ("", "slow") and self.received:
            self.block()
        self.received += 1

    def abort(self) -> None:
        self.calls.append("abort")
        self.aborted.set()

    def destroy(self) -> None:
        self.calls.append("destroy")
        if self.stuck not in ("", "slow"):
            self.block()
        self.calls.append("destroyed")

    def block(self) -> None:
        self.aborted.wait(ENDLESS_S)
        raise RuntimeError("the communicator was aborted")


class Sync:
    """A learner's server and publisher, and actors that answer every order at once."""

    def __init__(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups: dict[str, Group] = {}  # by name of the actor
        self.told: dict[str, list[type[wire.Message]]] = {}  # the orders of the weight sync, by name of the actor
        self.stuck: dict[str, str] = {}  # where an actor's engine blocks
        self.server = WorkServer(address, lease_timeout_s=ENDLESS_S)
        self.most_kept = 0
        self.check: Any = lambda: None
        monkeypatch.setattr(process_group, "abort_group", lambda group, backend: group.abort())
        monkeypatch.setattr(process_group, "destroy_group", lambda group: group.destroy())
        monkeypatch.setattr(leader, "connect_to_store", lambda *_: None)
        monkeypatch.setattr(leader, "form_group", lambda backend, store, name, *_: self.form(name))
        self.names: dict[str, str] = {}  # of actors, by group
        self.actors: dict[str, threading.Thread] = {}
        self.address = address
        self.over = threading.Event()

    def form(self, name: str) -> Group:
        deadline = time.monotonic() + PATIENCE_S
        while name not in self.names:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        actor = self.names[name]
        return self.groups.setdefault(actor, Group(name, self.stuck.get(actor, "")))

    def start(self, name: str, stuck: str = "") -> None:
        self.stuck[name] = stuck
        client = Client(self.address, name)
        client.hello(slots=1)
        self.actors[name] = threading.Thread(target=self.play, args=(name, client), daemon=True)
        self.actors[name].start()

    def play(self, name: str, client: Client) -> None:
        while not self.over.is_set():
            if not client.socket.poll(20):
                continue
            message = wire.decode(client.socket.recv())
            if isinstance(message, wire.Join | wire.Pause | wire.Receive):
                self.told.setdefault(name, []).append(type(message))
            match message:
                case wire.Join() as order:
                    self.names[order.group] = name
                    client.send(wire.Joined(group=order.group))
                case wire.Pause() as order:
                    client.send(wire.Synced(version=order.version, stage="ready", pause_s=0.0))
                case wire.Receive() as order if not self.stuck[name]:
                    client.send(wire.Synced(version=order.version, stage="done", pause_s=0.1))
        client.socket.close(linger=0)

    def publisher(self, **settings: Any) -> Publisher:
        sync = SyncConfig(**{"timeout_s": ENDLESS_S, "bucket_mb": 1 / 1024, **settings})
        buckets = cut_into_buckets(SHAPES, "float32", sync.bucket_mb)
        assert len(buckets) == BUCKETS
        return Publisher(self.server, sync, buckets, torch.device("cpu"), lambda: self.check())

    def gather(self, _plan: bytes) -> Iterator[tuple[str, Tensor]]:
        for name, shape in SHAPES.items():
            yield name, torch.ones(shape)


@pytest.fixture
def sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sync]:
    sync = Sync(f"ipc://{tmp_path}/queue", monkeypatch)
    yield sync
    sync.over.set()
    for thread in sync.actors.values():
        thread.join(PATIENCE_S)
    for group in sync.groups.values():
        group.aborted.set()
    sync.server.close()


def in_time(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("stuck", ["broadcast", "call"])
def test_an_engine_that_blocks_is_lost_at_the_deadline_of_a_bucket_and_its_group_is_aborted_first(
    stuck: str, sync: Sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``call`` its thread is inside torch, and the thread that gathers has to give it up."""
    monkeypatch.setattr(leader, "_KEPT_BYTES", 4 * 1024)
    sync.start("good")
    sync.start("stuck", stuck)
    ours = sync.publisher(timeout_s=1.0, slowest_mb_per_s=1e6)
    begin = time.monotonic()
    published = ours.publish(1, sync.gather, PROBE)
    assert set(published.members) == {"good"} and time.monotonic() - begin < SOON_S
    assert sync.groups["good"].received == 1 + BUCKETS and not sync.groups["good"].calls
    in_time(lambda: sync.groups["stuck"].calls[:2] == ["abort", "destroy"])
    assert set(sync.server.members()) == {"good"}
    assert set(ours.publish(2, sync.gather, PROBE).members) == {"good"}
    assert sync.groups["good"].received == 1 + 2 * BUCKETS, "its group is used again"


def test_what_waits_for_a_slow_engine_is_bounded_until_it_is_lost(sync: Sync, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a bound all 60 buckets would pile up while the fast engine takes them."""
    monkeypatch.setattr(leader, "_KEPT_BYTES", 5 * 1024)
    kept: list[int] = []
    put = BucketQueue.put

    def count(queue: BucketQueue, number: int, buffer: Tensor) -> None:
        put(queue, number, buffer)
        kept.append(len(queue._kept))

    monkeypatch.setattr(BucketQueue, "put", count)
    sync.start("good")
    sync.start("stuck", "broadcast")
    published = sync.publisher(timeout_s=1.0, slowest_mb_per_s=1e6).publish(1, sync.gather, PROBE)
    assert set(published.members) == {"good"} and len(kept) == BUCKETS
    assert max(kept) <= 5


def test_only_newcomers_get_a_version_that_was_published_before(sync: Sync) -> None:
    """The others go on generating, and their groups stay for the next version."""
    sync.start("good")
    ours = sync.publisher(timeout_s=PATIENCE_S)
    in_time(lambda: "good" in sync.server.members())
    sync.server.mark_published(ours.publish(1, sync.gather, PROBE).members)
    sync.start("late")
    in_time(sync.server.has_newcomers)
    published = ours.publish(1, sync.gather, PROBE)
    assert set(published.members) == {"good", "late"}
    good, late = sync.groups["good"], sync.groups["late"]
    assert (good.received, late.received) == (1 + BUCKETS, 1 + BUCKETS)
    assert sync.told == {"good": [wire.Join, wire.Pause, wire.Receive], "late": [wire.Join, wire.Pause, wire.Receive]}
    sync.server.mark_published(published.members)
    assert set(ours.publish(2, sync.gather, PROBE).members) == {"good", "late"}
    assert good.received == late.received == 1 + 2 * BUCKETS and not good.calls
    assert sync.told["good"][3:] == [wire.Pause, wire.Receive], "its group is used again"
    actor = sync.server.members()["good"]
    sync.server.eject("good", actor, "it leaves")
    assert set(ours.publish(2, sync.gather, PROBE).members) == {"late"}, "one that is gone has no weights"


def test_an_engine_that_is_slow_with_every_bucket_is_lost_and_does_not_end_the_run(sync: Sync) -> None:
    """Each bucket comes in time, and all together do not. With NCCL a learner looks for itself whether one is there."""
    sync.start("good")
    sync.start("slow", "slow")
    ours = sync.publisher(timeout_s=1.0, slowest_mb_per_s=1e6, backend="nccl")
    assert set(ours.publish(1, sync.gather, PROBE).members) == {"good"}
    assert 5 < sync.groups["slow"].received < BUCKETS and set(sync.server.members()) == {"good"}


@pytest.mark.parametrize("stuck", ["broadcast", "call"])
def test_an_interrupt_waits_for_no_engine(stuck: str, sync: Sync) -> None:
    sync.start("stuck", stuck)
    in_time(lambda: "stuck" in sync.server.members())
    begin = time.monotonic()

    def interrupt() -> None:
        if sync.groups and sync.groups["stuck"].received:
            raise InterruptedError

    sync.check = interrupt
    with pytest.raises(InterruptedError):
        sync.publisher().publish(1, sync.gather, PROBE)
    assert time.monotonic() - begin < SOON_S
    assert set(sync.server.members()) == {"stuck"}, "it is not given up, and will hear that the run is over"


def test_an_actor_that_is_gone_holds_nobody_up(sync: Sync, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that it leaves, in the middle of a broadcast that will never end."""
    monkeypatch.setattr(leader, "_KEPT_BYTES", 2 * 1024)
    sync.start("good")
    sync.start("stuck", "call")

    def leave() -> None:
        if "stuck" in sync.groups and sync.groups["stuck"].received and (actor := sync.server.members().get("stuck")):
            sync.server.eject("stuck", actor, "it leaves")

    sync.check = leave
    begin = time.monotonic()
    assert set(sync.publisher().publish(1, sync.gather, PROBE).members) == {"good"}
    assert time.monotonic() - begin < SOON_S and sync.groups["good"].received == 1 + BUCKETS
