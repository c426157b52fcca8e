"""Shared memory of the learner: made while signals come, and handles of that of a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from common import wire
from learner.weights import shared_memory
from learner.weights.buckets import cut_into_buckets
from learner.weights.round import Receiver, Round
from learner.weights.transports import SharedMemoryTransport


def test_a_signal_while_shared_memory_is_made_does_not_hang_the_process() -> None:
    command = [sys.executable, "-m", "tests.support.shared_under_signals"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert re.fullmatch(r"3 fields, [1-9]\d* signals\n", done.stdout), "and the signals are handled afterwards"


class CudaMemory:
    """Stands for a tensor on a GPU and its storage, which torch wraps once more for every handle."""

    is_cuda = True

    def __init__(self, number: int) -> None:
        self.number, self.wrapped = number, 0

    def untyped_storage(self) -> CudaMemory:
        return self

    def _share_cuda_(self) -> tuple[Any, ...]:
        self.wrapped += 1
        return (0, b"memory", 64, 0, b"/torch_counters", 10 * self.number + self.wrapped, b"event", True)


def test_the_memory_of_a_gpu_is_wrapped_once_and_kept_by_no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds and engine ranks share its handle, whose counter would otherwise wait for an engine that is dead."""
    assert callable(torch.UntypedStorage._release_ipc_counter_cuda), "which no other test calls"
    made, released = list[CudaMemory](), list[tuple[bytes, int]]()

    def empty(*_: object, **__: object) -> CudaMemory:
        made.append(CudaMemory(len(made)))
        return made[-1]

    storage = SimpleNamespace(_release_ipc_counter_cuda=lambda *counter: released.append(counter))
    monkeypatch.setattr(shared_memory, "torch", SimpleNamespace(empty=empty, uint8=torch.uint8, UntypedStorage=storage))
    buckets = cut_into_buckets({"one": [4, 4], "two": [4, 4]}, "float32", 1e-6)
    transport = SharedMemoryTransport(buckets, torch.device("cpu"))
    receiver = cast(Receiver, SimpleNamespace(actor=SimpleNamespace(engine_ranks=2)))
    round_ = cast(Round, SimpleNamespace(order=lambda *, handles: handles))
    for _ in range(3):
        for number in range(len(buckets)):
            transport.buffer(number)
        handles = cast(list[list[wire.SharedMemoryHandle]], transport.order(receiver, round_))
        for number, of_ranks in enumerate(handles):
            fields = [0, b"memory", 64, 0, b"/torch_counters", 10 * number + 1, b"event", False]
            assert [(handle.cuda, handle.fields) for handle in of_ranks] == [(True, fields)] * 2
    assert [memory.wrapped for memory in made] == [1, 1]
    assert released == [(b"/torch_counters", 1), (b"/torch_counters", 11)], "once each"
