"""Orders to take new weights, and their answers."""

from __future__ import annotations

from typing import Literal

import numpy as np

from common.wire.base import FLOAT32, INT32, Float32, Int32, Message, WireStruct


class Join(Message):
    """Enter the group of the learner, rank 0, and this engine alone; answered by ``Joined`` or ``Leave``."""

    group: str
    host: str
    port: int
    world: int
    backend: str
    timeout_s: float


class Joined(Message):
    group: str


class Pause(Message):
    """Stop generating and make room for new weights; answered by ``Synced(stage="ready")``."""

    version: int
    timeout_s: float  # if nothing follows, generate on under the old weights


class Bucket(WireStruct):
    """Tensors sent as one flat buffer of bytes, in this order."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


class Probe(WireStruct):
    """A fixed sequence and what the learner's weights say of it: proof that an engine has the same ones."""

    ids: Int32  # [n]
    logprobs: Float32  # [n - 1] of all but the first, at temperature 1
    tolerance: float  # of the mean absolute difference, nats

    def __post_init__(self) -> None:
        if isinstance(self.ids, memoryview):
            self.ids, self.logprobs = np.frombuffer(self.ids, INT32), np.frombuffer(self.logprobs, FLOAT32)


class Loan(WireStruct):
    """Where memory of the learner is for another process on its machine: what torch's IPC tells."""

    cuda: bool
    fields: list[bool | int | bytes]


class Receive(Message):
    """Take these buckets from the group, memory or file; generate on; answered by ``Synced(stage="done")``."""

    group: str
    path: str  # a directory with a safetensors file instead of a group; "" for none
    version: int
    buckets: list[Bucket]
    probe: Probe
    timeout_s: float
    loans: list[list[Loan]] = []  # instead of group and path: of each bucket, for each rank of the engine


class Synced(Message):
    version: int
    stage: Literal["ready", "done"]
    pause_s: float  # how long generation stood still
