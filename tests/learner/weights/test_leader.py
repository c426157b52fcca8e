"""One leader by itself: engines that are given up before a round begins, its memory, and its CUDA stream.

Process groups are stand-ins.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from learner.weights import leader as leader_module
from learner.weights.bucket_queue import BucketQueue
from learner.weights.buckets import bytes_of, cut_into_buckets
from learner.weights.deadlines import Deadlines
from learner.weights.leader import BucketHooks, Leader, buckets_kept
from learner.weights.leader_messages import (
    EngineGivenUp,
    ForgetGroup,
    FormGroup,
    GroupFormed,
    RoundPlan,
    SendWeights,
    WeightsSent,
)
from learner.weights.process_group import broadcast_first, on_stream

SHAPES = {"embed": [64, 64], "norm": [64], **{f"layer{number}": [32, 64] for number in range(12)}}  # 2 KiB to 16 KiB
BUCKETS = cut_into_buckets(SHAPES, "float32", 8 / 1024)
LARGEST = max(map(bytes_of, BUCKETS))
PATIENCE_S = 60.0
LONG_S = 3600.0
DEADLINES = Deadlines(form_s=LONG_S, pause_s=LONG_S, bucket_s=LONG_S, transfer_s=LONG_S)


class Group:
    """A process group whose broadcasts are complete at once, or when the test says so."""

    def __init__(self) -> None:
        self.group_name = "g0"
        self.began: Callable[[], object] = lambda: None
        self.is_complete = threading.Event()
        self.is_complete.set()
        self.waited = 0

    def broadcast(self, *_: object) -> Group:
        self.began()
        return self

    def is_completed(self) -> bool:
        return self.is_complete.is_set()

    def wait(self, *_: object) -> None:
        assert self.is_complete.is_set(), "a wait would come before what else is queued on the stream"
        self.waited += 1


class Sync:
    """A leader, what it has reported, and the group that it forms."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, device: str = "cpu") -> None:
        monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "3")  # and put back after the test
        self.group, self.reports = Group(), list[Any]()
        monkeypatch.setattr(leader_module, "connect_to_store", lambda *_: None)
        monkeypatch.setattr(leader_module, "form_group", lambda *_: self.group)
        self.leader = Leader(BUCKETS, "nccl", torch.device(device), lambda report: self.report(report))

    def report(self, report: Any) -> None:
        self.reports.append(report)

    def form(self) -> None:
        self.leader.obey(FormGroup("g0", "nccl", "127.0.0.1", 1, 2, LONG_S))

    def begin(self, first_bucket_s: float = LONG_S, number: int = 1) -> None:
        self.leader.begin_round(RoundPlan(number, DEADLINES, {0: {"g0": first_bucket_s}}, []), 0)

    def gather(self, device: str = "cpu", **extra: Any) -> None:
        self.leader.gather(((name, torch.ones(shape, device=device)) for name, shape in SHAPES.items()), **extra)

    def wait(self, kind: type) -> None:
        in_time(lambda: any(isinstance(report, kind) for report in self.reports))


def in_time(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def late(begin: float) -> BucketHooks:
    """Ends gathering when it takes as long as only a deadline would explain."""

    def check() -> None:
        assert time.monotonic() < begin + PATIENCE_S, "gathering waits for an engine that is given up"

    return BucketHooks(check=check)


@pytest.mark.parametrize("formed", [True, False])
def test_an_engine_that_is_given_up_before_this_leader_has_the_plan_holds_up_nothing(
    formed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 has put it into the plan, and its order to forget it overtakes the plan; or its group did not form."""
    sync = Sync(monkeypatch)
    monkeypatch.setattr(leader_module, "discard_group", lambda *_: None)
    if formed:
        sync.form()
        sync.wait(GroupFormed)
        sync.leader.obey(ForgetGroup("g0"))
    else:
        monkeypatch.setattr(leader_module, "form_group", lambda *_: (_ for _ in ()).throw(RuntimeError("refused")))
        sync.form()
        sync.wait(EngineGivenUp)
    sync.begin()
    sync.gather(hooks=late(time.monotonic()))
    if formed:
        assert len(sync.reports) == 1, "rank 0 knows it already"
    sync.form()
    assert not sync.leader._groups, "an order that comes after all makes no group that nobody would free"


def test_a_group_that_forms_while_its_engine_is_given_up_is_discarded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sync = Sync(monkeypatch)
    discarded, may_form = list[Any](), threading.Event()

    def form(*_: object) -> Group:
        assert may_form.wait(PATIENCE_S)
        return sync.group

    def tell(_report: Any) -> None:
        """Of the engine that is given up: between the mark and the look for its group, that forms now."""
        may_form.set()
        in_time(lambda: bool(discarded))

    monkeypatch.setattr(leader_module, "form_group", form)
    monkeypatch.setattr(leader_module, "discard_group", lambda group, backend: discarded.append(group))
    monkeypatch.setattr(sync, "report", tell)
    sync.begin(first_bucket_s=0.0)
    sync.form()
    sync.gather()
    assert discarded == [sync.group]


def test_on_a_gpu_a_leader_has_no_more_buckets_than_it_must_and_none_between_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch's device without data stands for the GPU: its tensors have an owner, and no memory to be used again."""
    sync, buffers = Sync(monkeypatch, "meta"), list[weakref.ref[Tensor]]()
    put, get, most = BucketQueue.put, BucketQueue.get, 0
    last, held = dict[int, weakref.ref[Tensor]](), list[int]()  # by number of the bucket; those that lived too long

    def alive() -> list[Tensor]:
        return [buffer for each in buffers if (buffer := each()) is not None]

    def count(queue: BucketQueue, number: int, buffer: Tensor) -> None:
        nonlocal most
        assert buffer.nbytes == bytes_of(BUCKETS[number]), "not as large as the largest"
        last[number] = weakref.ref(buffer)
        buffers.append(last[number])
        most = max(most, len(alive()))
        put(queue, number, buffer)

    def look(queue: BucketQueue, sender: str, number: int) -> Tensor | None:
        found = get(queue, sender, number)
        if found is not None and number and last[number - 1]() is not None:
            held.append(number - 1)
        return found

    monkeypatch.setattr(BucketQueue, "put", count)
    monkeypatch.setattr(BucketQueue, "get", look)
    monkeypatch.setattr(leader_module, "_KEPT_BYTES", 3 * LARGEST)
    sync.form()
    sync.wait(GroupFormed)
    for number in (1, 2):
        sync.reports.clear()
        sync.begin(number=number)
        sync.leader.obey(SendWeights("g0", number, connects=number == 1))
        sync.gather("meta")
        sync.wait(WeightsSent)
        gc.collect()
        in_time(lambda: not alive())
    assert len(buffers) == 2 * len(BUCKETS) and 1 <= most <= 2
    assert not held, "the only engine has them"

    most = 0
    sync.begin(number=3)
    sync.group.is_complete.clear()
    sync.leader.obey(SendWeights("g0", 3, connects=False))
    gathering = threading.Thread(target=sync.gather, args=("meta",))
    gathering.start()
    in_time(lambda: len(buffers) > 2 * len(BUCKETS) + 1)
    sync.group.is_complete.set()
    gathering.join(PATIENCE_S)
    assert 2 <= most <= buckets_kept(LARGEST) == 3


class Streams:
    """Stands for torch's streams: each thread has its current one, and at first the default stream."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.local, self.priorities = threading.local(), list[int]()
        monkeypatch.setattr(torch.cuda, "Stream", self.make)
        monkeypatch.setattr(torch.cuda, "stream", self.use)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: self.current)

    @property
    def current(self) -> str:
        return str(getattr(self.local, "stream", "default"))

    def make(self, _device: torch.device, priority: int) -> str:
        self.priorities.append(priority)
        return f"stream {len(self.priorities)}"

    @contextmanager
    def use(self, stream: str) -> Iterator[None]:
        before, self.local.stream = self.current, stream
        yield
        self.local.stream = before


def test_no_broadcast_is_begun_on_the_stream_of_gathering(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL would let it wait for the gathering of later buckets, and gathering for an engine that takes nothing."""
    streams, used = Streams(monkeypatch), list[str]()
    sync = Sync(monkeypatch, "cuda")
    sync.group.began = lambda: used.append(streams.current)
    buffers = [torch.zeros(bytes_of(bucket), dtype=torch.uint8) for bucket in BUCKETS]  # as there is no GPU
    sync.form()
    sync.wait(GroupFormed)
    sync.begin()
    sync.leader.obey(SendWeights("g0", 1, connects=False))
    sync.gather(hooks=BucketHooks(memory=lambda number: buffers[number]))
    sync.wait(WeightsSent)
    assert used == ["stream 1"] * len(BUCKETS) and streams.current == "default"
    assert streams.priorities == [-1], "of a pool from which NCCL takes none for its groups"

    zeros = cast(Tensor, SimpleNamespace(is_cuda=True, device="cuda:0"))
    with on_stream(cast(torch.cuda.Stream, "another")):
        broadcast_first(sync.group, "nccl", zeros, PATIENCE_S, lambda: None)
    assert used[len(BUCKETS) :] == ["another"], "its thread has the caller's"


def test_the_first_broadcast_is_not_waited_for_on_a_stream_before_it_is_complete() -> None:
    group, zeros = Group(), torch.zeros(1, dtype=torch.uint8)
    group.is_complete.clear()
    with pytest.raises(TimeoutError):
        broadcast_first(group, "nccl", zeros, 0.3, lambda: None)
    assert group.waited == 0
    threading.Timer(0.2, group.is_complete.set).start()
    broadcast_first(group, "nccl", zeros, PATIENCE_S, lambda: None)
    assert group.waited == 1, "which tells of an error"
