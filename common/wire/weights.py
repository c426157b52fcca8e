"""Weight sync between learner and actors: the learner's orders, and the actors' replies to them."""

from __future__ import annotations

from typing import Literal

import numpy as np

from common.wire.base import FLOAT32, INT32, Float32, Int32, LifeMessage, WireStruct


class Join(LifeMessage):
    """Learner to actor: form a process group of the learner, which is rank 0, and the ranks of your engine.

    The actor answers with ``Joined``, or with ``Leave`` if its engine cannot.
    """

    group: str  # name of the group
    host: str  # of the learner's TCP store, through which the group forms
    port: int
    world: int  # number of ranks, the learner's included
    backend: str  # "gloo" or "nccl"
    timeout_s: float
    nccl: dict[str, str] = {}  # the learner's settings of NCCL, which the engine must have, too; see common/nccl.py


class Joined(LifeMessage):
    """Actor to learner: the engine has joined the group."""

    group: str


class Pause(LifeMessage):
    """Learner to actor: stop generating, because new weights come. The actor answers with ``Synced(stage="ready")``."""

    version: int  # of the weights to come
    timeout_s: float  # after which the engine generates again with its old weights, if nothing has followed


class Bucket(WireStruct):
    """Tensors that lie one after another in a flat buffer of bytes. The three lists are equally long."""

    names: list[str]
    dtypes: list[str]  # as torch calls them; the same one for all tensors of a bucket
    shapes: list[list[int]]


class Probe(WireStruct):
    """A fixed sequence and its log-probabilities under the learner's weights; an engine must come to the same ones."""

    ids: Int32  # [n] tokens
    logprobs: Float32  # [n - 1], of all tokens but the first, in nats at temperature 1
    tolerance: float  # largest mean absolute difference of log-probabilities, in nats

    def __post_init__(self) -> None:
        if isinstance(self.ids, memoryview):
            self.ids, self.logprobs = np.frombuffer(self.ids, INT32), np.frombuffer(self.logprobs, FLOAT32)


class SharedMemoryHandle(WireStruct):
    """What another process on the learner's machine needs to open a piece of the learner's memory."""

    cuda: bool  # the memory is on a GPU
    fields: list[bool | int | bytes]  # as torch's inter-process communication defines them


class Receive(LifeMessage):
    """Learner to actor: take these weights, then generate again. The actor answers with ``Synced(stage="done")``.

    The weights come from the process group ``group``, from the files in ``path``, or from the memory of ``handles``.
    The other two of the three are empty.
    """

    group: str  # name of the group
    path: str  # directory with safetensors files
    version: int
    buckets: list[Bucket]
    probe: Probe
    timeout_s: float  # to take the weights
    handles: list[list[SharedMemoryHandle]] = []  # for each bucket, one for each rank of the engine


class LoadAdapter(LifeMessage):
    """Learner to actor: load this LoRA adapter beside those before it, and use it for all that begins from now on.

    The actor answers with ``Synced(stage="done")``; there is no pause. The adapter is a safetensors file with PEFT's
    names: in ``data``, or at ``path``. The other one of the two is empty. ``data`` travels in frames of its own, see
    ``encode_frames``.
    """

    version: int  # of the policy
    config: str  # PEFT's adapter_config.json
    data: bytes
    path: str
    sha256: str  # of the file
    probe: Probe
    timeout_s: float  # to load it


class Synced(LifeMessage):
    """Actor to learner: the engine has paused for the new weights, or has them and generates again."""

    version: int
    stage: Literal["ready", "done"]
    pause_s: float  # seconds for which the engine did not generate; 0 with "ready"
