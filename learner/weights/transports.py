"""How the bytes of the weights reach an engine: through a process group, from shared memory, or from files.

Every actor chooses one of the three with ``sync.transport``, and one round may use all of them. ``Transport`` says what
each has to do; ``make_transports`` makes them.
"""

from __future__ import annotations

import itertools
import math
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from common import wire
from common.config import SyncConfig
from common.nccl import nccl_settings
from common.process import FatalError
from common.run_files import owned_directory
from learner.weights.bucket_queue import POLL_S
from learner.weights.buckets import bytes_of
from learner.weights.process_group import (
    GroupStore,
    ProcessGroup,
    broadcast_first,
    discard_group,
    raise_error,
    start_broadcast,
)
from learner.weights.round import ActorLost, Receiver, Round
from learner.weights.shared_memory import allocate_shared_buffer, create_handle
from learner.work.actors import ActorState

_BROADCAST_POLL_S = 0.001  # between two checks of whether a broadcast is complete


class Transport(ABC):
    """Serves all actors that chose it, round after round.

    The gathering thread calls ``begin_round``, for each bucket ``buffer`` and ``add_bucket``, and ``end_round``. In
    between each actor's own thread calls ``prepare``, ``order`` and ``send``, and ``disconnect`` if the actor is lost.
    """

    def begin_round(self, round_: Round) -> None:  # noqa: B027
        """Called before anything of a round, also of one in which no actor uses this transport. Does not block."""

    def buffer(self, number: int) -> Tensor | None:
        """The memory into which bucket ``number`` must be gathered, [bytes of the bucket] uint8; None if any will do.

        Called only in rounds that use this transport.
        """
        return None

    def add_bucket(self, round_: Round, number: int, tensors: Sequence[Tensor]) -> None:  # noqa: B027
        """Takes a gathered bucket; called only in rounds that use this transport.

        Args:
            tensors: those of the bucket, as views of its buffer. They must not be used after the call.

        Raises:
            FatalError: the learner cannot provide the bucket to anybody.
        """

    def prepare(self, receiver: Receiver, round_: Round) -> None:
        """Blocks until there is something to send, so that no engine pauses earlier than it must.

        Raises:
            ActorLost: the actor is gone, or could not be connected.
        """
        while not round_.all_gathered.wait(POLL_S):
            receiver.check_present()

    @abstractmethod
    def order(self, receiver: Receiver, round_: Round) -> wire.Receive:
        """What the engine is told: where the weights come from. Called after ``prepare``; does not block."""

    def send(self, receiver: Receiver, round_: Round) -> None:  # noqa: B027
        """Sends the weights to an engine that has its order; blocks for at most ``round_.deadlines.transfer_s``.

        Raises:
            ActorLost: the actor is gone, or the weights did not reach its engine.
        """

    def disconnect(self, name: str, actor: ActorState) -> None:  # noqa: B027
        """Frees what was kept for an actor that is lost. Does not block, and does nothing if nothing was kept.

        Any thread may call it, also while another one is in ``send``, which then ends.
        """

    def end_round(self, round_: Round) -> None:  # noqa: B027
        """Called when all have the weights or the round was cancelled; only in rounds that use this transport."""

    def close(self) -> None:  # noqa: B027
        """Wakes threads that wait in ``prepare``. No other round may follow."""


@dataclass
class _Connection:
    actor: ActorState
    group: ProcessGroup
    is_tried: bool = False  # a broadcast has gone through it


class GroupTransport(Transport):
    """Broadcasts each bucket, as soon as it is gathered, through a process group with one engine.

    The group is formed in the first round of an actor and kept until the actor is gone. NCCL connects the ranks of a
    group in its first broadcast. An engine takes broadcasts in an update alone, so this update begins with one more
    bucket, which has its own deadline: the smallest tensor, as zeros, which a later bucket of the update replaces.

    Args:
        store: through which the groups form.
        backend: "gloo" or "nccl".
        run_id: makes the names of groups unique, because an engine may still know those of an earlier learner.
        device: where the learner's weights are.
    """

    def __init__(self, store: GroupStore, backend: str, run_id: str, device: torch.device) -> None:
        self._store, self._backend, self._run_id = store, backend, run_id
        self._device = device if backend == "nccl" else torch.device("cpu")
        self._connections: dict[str, _Connection] = {}  # by name of the actor
        self._numbers = itertools.count()

    def begin_round(self, round_: Round) -> None:
        for name, connection in list(self._connections.items()):
            if round_.actors.get(name) is not connection.actor:
                self.disconnect(name, connection.actor)

    def prepare(self, receiver: Receiver, round_: Round) -> None:
        receiver.check_present()
        connection = self._connections.get(receiver.name)
        if connection is None or connection.actor is not receiver.actor:
            self._connections[receiver.name] = self._connect(receiver, round_.deadlines.form_s)
        while round_.queue.get(receiver.name, 0) is None:
            receiver.check_present()

    def order(self, receiver: Receiver, round_: Round) -> wire.Receive:
        connection = self._connections[receiver.name]
        order = round_.order(group=connection.group.group_name)
        if connection.is_tried:
            return order
        return msgspec.structs.replace(order, buckets=[_smallest_tensor(round_.buckets), *order.buckets])

    def send(self, receiver: Receiver, round_: Round) -> None:
        """The deadline counts only the time of sending, not that of waiting for a bucket to be gathered."""
        deadlines, left_s = round_.deadlines, round_.deadlines.transfer_s
        connection = self._connections[receiver.name]
        group = connection.group
        try:
            if not connection.is_tried:
                self._try(connection, receiver, bytes_of(_smallest_tensor(round_.buckets)), deadlines.form_s)
            for number, bucket in enumerate(round_.buckets):
                while (buffer := round_.queue.get(receiver.name, number)) is None:
                    receiver.check_present()
                begin, limit_s = time.monotonic(), min(left_s, deadlines.bucket_s)
                work = start_broadcast(group, buffer[: bytes_of(bucket)], limit_s)
                while not work.is_completed():
                    receiver.check_present()
                    if time.monotonic() > begin + limit_s:
                        raise ActorLost(
                            f"the weights did not reach its engine within {limit_s:.0f} s (bucket {number + 1} of "
                            f"{len(round_.buckets)}, {deadlines.transfer_s:.0f} s for all)"
                        )
                    time.sleep(_BROADCAST_POLL_S)
                raise_error(work)
                left_s -= time.monotonic() - begin
        except RuntimeError as error:  # the base of torch's distributed errors
            raise ActorLost(f"sending weights to its engine failed: {_first_line(error)}") from None

    def disconnect(self, name: str, actor: ActorState) -> None:
        connection = self._connections.get(name)
        if connection is not None and connection.actor is actor:
            self._connections.pop(name, None)
            discard_group(connection.group, self._backend)

    def close(self) -> None:
        self._store.close()

    def _connect(self, receiver: Receiver, timeout_s: float) -> _Connection:
        """Forms a group with the actor's engine; each of the two steps blocks for at most ``timeout_s``."""
        name, world = f"lrpo-{self._run_id}-{next(self._numbers)}", 1 + receiver.actor.engine_ranks
        receiver.send(
            wire.Join(
                group=name, host=self._store.host, port=self._store.port, world=world, backend=self._backend,
                timeout_s=timeout_s, nccl=nccl_settings(),
            )
        )  # fmt: skip
        try:
            group = self._store.form_group(self._backend, name, world, timeout_s)
        except RuntimeError as error:  # the base of torch's distributed errors
            raise ActorLost(f"its weight group did not form within {timeout_s:.0f} s: {_first_line(error)}") from None
        try:
            receiver.wait_joined(name, timeout_s)
        except ActorLost:
            discard_group(group, self._backend)
            raise
        return _Connection(receiver.actor, group)

    def _try(self, connection: _Connection, receiver: Receiver, size: int, timeout_s: float) -> None:
        """Sends the additional bucket of ``size`` bytes; blocks for at most ``timeout_s``."""
        zeros = torch.zeros(size, dtype=torch.uint8, device=self._device)
        try:
            broadcast_first(connection.group, zeros, timeout_s, receiver.check_present)
        except TimeoutError:
            self.disconnect(receiver.name, receiver.actor)  # which frees the thread that is left behind
            raise ActorLost(f"its engine did not connect to the weight group within {timeout_s:.0f} s") from None
        connection.is_tried = True


class SharedMemoryTransport(Transport):
    """Gathers into memory that engines on this machine read where it is.

    Every bucket has memory of its own, which is the same one in each round: nobody reports when a GPU has finished
    reading, so it must not be used for another bucket. It is freed in the first round in which no actor needs it.

    Args:
        buckets: how the weights are cut.
        device: where the learner's weights are; the shared memory is there, too.
    """

    def __init__(self, buckets: Sequence[wire.Bucket], device: torch.device) -> None:
        self._buckets, self._device = buckets, device
        self._buffers: list[Tensor] = []  # one for each bucket that was gathered so far

    def begin_round(self, round_: Round) -> None:
        if not round_.uses("shared"):
            self._buffers.clear()

    def buffer(self, number: int) -> Tensor:
        if number == len(self._buffers):
            self._buffers.append(allocate_shared_buffer(bytes_of(self._buckets[number]), self._device))
        return self._buffers[number]

    def order(self, receiver: Receiver, round_: Round) -> wire.Receive:
        ranks = range(receiver.actor.engine_ranks)
        return round_.order(handles=[[create_handle(buffer) for _ in ranks] for buffer in self._buffers])


class DiskTransport(Transport):
    """Writes one safetensors file for each bucket into a directory that exists while the round lasts.

    Args:
        directory: the run's own within ``sync.directory``, seen by learner and engines under the same path.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = ExitStack()  # of the round
        self._path: Path | None = None

    def add_bucket(self, round_: Round, number: int, tensors: Sequence[Tensor]) -> None:
        try:
            if self._path is None:
                self._path = self._files.enter_context(owned_directory(self._directory))
            by_name = dict(zip(round_.buckets[number].names, tensors, strict=True))
            save_file(by_name, self._path / f"model-{number:05}.safetensors")
        except (OSError, SafetensorError) as error:
            raise FatalError(f"cannot write weights to sync.directory = {self._directory}: {error}") from None

    def order(self, receiver: Receiver, round_: Round) -> wire.Receive:
        return round_.order(path=str(self._path))

    def end_round(self, round_: Round) -> None:
        self._path = None
        self._files.close()


def make_transports(
    config: SyncConfig, host: str, backend: str, buckets: Sequence[wire.Bucket], device: torch.device
) -> dict[str, Transport]:
    """All transports, by their value of ``sync.transport``.

    Args:
        config: the section ``sync``.
        host: on which the store of process groups listens.
        backend: of process groups, "gloo" or "nccl".
        buckets: how the weights are cut.
        device: where the learner's weights are.

    Raises:
        FatalError: the store cannot listen on ``host`` and ``sync.port``.
    """
    run_id = uuid.uuid4().hex[:8]
    return {
        "group": GroupTransport(GroupStore(host, config.port, config.timeout_s), backend, run_id, device),
        "shared": SharedMemoryTransport(buckets, device),
        "disk": DiskTransport(config.directory),
    }


def _smallest_tensor(buckets: Sequence[wire.Bucket]) -> wire.Bucket:
    """A bucket of the smallest tensor alone."""
    every = [single for bucket in buckets for single in zip(bucket.names, bucket.dtypes, bucket.shapes, strict=True)]
    name, dtype, shape = min(every, key=lambda single: math.prod(single[2]))
    return wire.Bucket(names=[name], dtypes=[dtype], shapes=[shape])


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
