"""New weights to every engine at once, bucket by bucket as they are gathered, while requests wait inside the engines.

Each engine has a process group of its own with learner rank 0, formed when its actor comes and kept while it works; or
it reads the learner's memory, on the same machine, or a file. Each is served by a thread of its own, with deadlines
that grow with the bytes: one that dies, stops or fails is given up and named, and costs the others nothing but its
deadline.
"""

from __future__ import annotations

import itertools
import logging
import math
import queue
import shutil
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import BroadcastOptions, PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import Backend, GroupName, _new_process_group_helper, _world

from common import wire
from common.config import SyncConfig
from common.net.rendezvous import host_of
from common.process import FatalError
from learner.weights.buckets import dtype_of, lend, lendable, size_of
from learner.work.actors import ActorState
from learner.work.server import WorkServer

log = logging.getLogger("learner.publisher")

_POLL_S = 0.001
_TURN_S = 0.1  # how long a wait lasts before it looks whether the actor is still there


@dataclass(frozen=True)
class Published:
    members: dict[str, ActorState]  # actors whose engines have the weights
    seconds: float
    pause_s: float  # longest time an engine stood still


class _Lost(Exception):
    """An actor that did not take the weights; the message says why."""


class _Belt:
    """Buckets on their way from the thread that gathers to those that send; each is kept until all have sent it.

    Gathering is one bucket ahead of the fastest engine: two are whole at a time, and more only where an engine lags.
    """

    def __init__(self, senders: list[str], spare: list[Tensor]) -> None:
        self._sent = dict.fromkeys(senders, 0)  # how many buckets
        self._spare = spare  # buffers to be used again: fresh memory takes five times as long to fill
        self._kept: dict[int, Tensor] = {}
        self._changed = threading.Condition()

    def has_room(self, number: int) -> bool:
        """Whether this bucket may be gathered, after waiting a moment for it."""
        with self._changed:
            return self._changed.wait_for(lambda: max(self._sent.values(), default=number) >= number - 1, _TURN_S)

    def put(self, number: int, buffer: Tensor) -> None:
        with self._changed:
            self._kept[number] = buffer
            self._drop()

    def get(self, name: str, number: int) -> Tensor | None:
        """The bucket for one that has sent those before it; None if it is not there after waiting a moment."""
        with self._changed:
            self._sent[name] = number
            self._drop()
            self._changed.wait_for(lambda: number in self._kept, _TURN_S)
            return self._kept.get(number)

    def leave(self, name: str) -> None:
        with self._changed:
            self._sent.pop(name, None)
            self._drop()

    def _drop(self) -> None:
        last = min(self._sent.values(), default=math.inf)
        self._spare += [self._kept.pop(number) for number in list(self._kept) if number < last]
        self._changed.notify_all()


@dataclass(frozen=True)
class _Cargo:
    order: wire.Receive  # complete but for the group; ``path`` is of those who read a file
    belt: _Belt
    lent: list[Tensor]  # the buckets, for those who read them where they are
    whole: threading.Event  # all are gathered


@dataclass(frozen=True)
class _Link:
    peer: ActorState
    group: Any  # ProcessGroup of rank 0, this learner, and the ranks of one engine


class Publisher:
    """Rank 0's end of the weight transport.

    Args:
        server: through which actors are spoken to.
        config: the ``sync`` section.
        buckets: how the weights come and go, as ``plan`` makes them.
        device: where the learner's weights are.
        check: called while waiting; raises to end the wait.
    """

    def __init__(
        self,
        server: WorkServer,
        config: SyncConfig,
        buckets: list[wire.Bucket],
        device: torch.device,
        check: Callable[[], None],
    ) -> None:
        self._server, self._config, self._buckets, self._check = server, config, buckets, check
        self._backend = config.backend if config.backend != "auto" else "nccl" if device.type == "cuda" else "gloo"
        self._device = device if self._backend == "nccl" else torch.device("cpu")
        self._host = config.host or host_of(server.address)
        self._store = _listen(self._host, config)
        self._links: dict[str, _Link] = {}
        self._numbers = itertools.count()
        self._run = uuid.uuid4().hex[:8]  # an engine may still know the groups of a learner before this one
        self._ended = threading.Event()
        self._spare: list[Tensor] = []
        self._lent: list[Tensor] = []
        self._own_device = device

    def publish(self, version: int, weights: Iterator[tuple[str, Tensor]], probe: wire.Probe) -> Published:
        """Sends the weights, which come as the buckets name them, as ``version`` to all actors present.

        Returns who has them (maybe none). Raises what ``check`` raises; the weights are used up then, too.
        """
        begin = time.monotonic()
        members = self._server.members()
        for name, link in list(self._links.items()):
            if members.get(name) is not link.peer:
                self._unlink(name, link.peer)
        size = sum(map(size_of, self._buckets))
        deadline = self._config.timeout_s + len(members) * size / (self._config.slowest_mb_per_s * 1e6)
        path = ""
        if any(peer.transport == "disk" for peer in members.values()):
            path = str(self._config.directory / f"lrpo-{self._run}-{version}")
        order = wire.Receive(
            group="", path=path, version=version, buckets=self._buckets, probe=probe, timeout_s=deadline
        )  # fmt: skip
        lending = any(peer.transport == "shared" for peer in members.values())
        if not lending:
            self._lent.clear()
        grouped = [name for name, peer in members.items() if peer.transport == "group"]
        belt = _Belt(grouped, [] if lending else self._spare)
        cargo = _Cargo(order, belt, self._lent, threading.Event())
        results: queue.SimpleQueue[tuple[str, float | Exception]] = queue.SimpleQueue()
        for name, peer in members.items():
            # Python must not end under a thread inside torch. Forming a group can be ended, but for NCCL's.
            serve = partial(self._serve, name, peer, cargo, results)
            threading.Thread(target=serve, name=f"weights of {name}", daemon=self._backend == "nccl").start()
        try:
            self._gather(weights, cargo, lending=lending)
            pauses = self._collect(members, results)
        except BaseException:
            self._ended.set()  # the threads need not go on
            del self._store  # and one that waits for its group to form is woken
            raise
        finally:
            deque(weights, maxlen=0)  # the other ranks walk to the end
            del self._spare[2:]
            if path:
                shutil.rmtree(path, ignore_errors=True)
        seconds = time.monotonic() - begin
        return Published({name: members[name] for name in pauses}, seconds, max(pauses.values(), default=0.0))

    def _gather(self, weights: Iterator[tuple[str, Tensor]], cargo: _Cargo, *, lending: bool) -> None:
        """Bucket after bucket as bytes onto the belt and, where somebody reads it, into a file."""
        for number, bucket in enumerate(self._buckets):
            while not cargo.belt.has_room(number):
                self._check()
            buffer = self._lendable(number) if lending else self._passing()
            parts = (
                buffer[: size_of(bucket)].view(dtype_of(bucket)).split([math.prod(shape) for shape in bucket.shapes])
            )
            for part, (_, tensor) in zip(parts, itertools.islice(weights, len(parts)), strict=True):
                part.copy_(tensor.reshape(-1))
            if cargo.order.path:
                self._write(Path(cargo.order.path), number, bucket, parts)
            cargo.belt.put(number, buffer)
        cargo.whole.set()

    def _passing(self) -> Tensor:
        if not self._spare:
            largest = max(map(size_of, self._buckets))
            self._spare.append(torch.empty(largest, dtype=torch.uint8, device=self._device))
        return self._spare.pop()

    def _lendable(self, number: int) -> Tensor:
        """Of this bucket alone, and the same in every update: nobody tells when a GPU has read it to the end."""
        if number == len(self._lent):
            self._lent.append(lendable(size_of(self._buckets[number]), self._own_device))
        return self._lent[number]

    def _write(self, directory: Path, number: int, bucket: wire.Bucket, parts: Sequence[Tensor]) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            tensors = {n: part.view(s) for n, part, s in zip(bucket.names, parts, bucket.shapes, strict=True)}
            save_file(tensors, directory / f"model-{number:05}.safetensors")
        except (OSError, SafetensorError) as error:
            raise FatalError(f"cannot write weights to sync.directory = {self._config.directory}: {error}") from None

    def _collect(
        self, members: dict[str, ActorState], results: queue.SimpleQueue[tuple[str, float | Exception]]
    ) -> dict[str, float]:
        """The pauses of those who have the weights; nobody waits for one who is gone or was given up."""
        pauses: dict[str, float] = {}
        pending = set(members)
        while pending:
            try:
                name, result = results.get(timeout=_TURN_S)
            except queue.Empty:
                self._check()
                here = self._server.members()
                pending = {name for name in pending if here.get(name) is members[name]}
                continue
            if isinstance(result, Exception):
                raise result
            pauses[name] = result
            pending.discard(name)
        return pauses

    # -- one engine, on its own thread ---------------------------------------------------------------------------

    def _serve(
        self, name: str, peer: ActorState, cargo: _Cargo, results: queue.SimpleQueue[tuple[str, float | Exception]]
    ) -> None:
        try:
            results.put((name, self._update(name, peer, cargo)))
        except _Lost as error:
            self._server.eject(name, peer, str(error))
            self._unlink(name, peer)
        except Exception as error:  # a mistake of ours: the training thread must hear of it instead of waiting
            results.put((name, error))
        finally:
            cargo.belt.leave(name)

    def _update(self, name: str, peer: ActorState, cargo: _Cargo) -> float:
        group, order = None, cargo.order
        if peer.transport == "group":
            group = self._linked(name, peer)
            order = order.model_copy(update={"group": group.group_name, "path": ""})
        while not (cargo.whole.wait(_TURN_S) if group is None else cargo.belt.get(name, 0) is not None):
            self._still(name, peer)  # no engine stands still before there is something to send
        if peer.transport == "shared":
            loans = [[lend(buffer) for _ in range(peer.engine_ranks)] for buffer in cargo.lent]
            order = order.model_copy(update={"loans": loans, "path": ""})
        version = order.version
        self._server.send(name, wire.Pause(version=version, timeout_s=2 * order.timeout_s))
        self._hear(name, peer, ("ready", version), self._config.timeout_s + peer.drain_s)
        self._server.send(name, order)
        if group is not None:
            self._send(name, peer, group, cargo)
        reply = self._hear(name, peer, ("done", version), order.timeout_s)
        assert isinstance(reply, wire.Synced)
        return reply.pause_s

    def _linked(self, name: str, peer: ActorState) -> Any:
        self._still(name, peer)
        link = self._links.get(name)
        if link is not None and link.peer is peer:
            return link.group
        number, timeout_s = next(self._numbers), self._config.timeout_s
        group_name, world = f"lrpo-{self._run}-{number}", 1 + peer.engine_ranks
        host, port = self._host, self._store.port
        join = wire.Join(
            group=group_name, host=host, port=port, world=world, backend=self._backend, timeout_s=timeout_s
        )
        self._server.send(name, join)
        try:
            # A client of its own: on a shared one, waiting for this engine would hold up all others.
            store = TCPStore(host, port, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)
            group = form_group(self._backend, store, group_name, world, timeout_s)
        except RuntimeError as error:  # torch's distributed errors
            raise _Lost(f"its weight group did not form within {timeout_s:.0f} s: {_first_line(error)}") from None
        try:
            self._hear(name, peer, ("joined", group_name), timeout_s)
        except _Lost:
            dist.destroy_process_group(group)
            raise
        self._links[name] = _Link(peer, group)
        return group

    def _send(self, name: str, peer: ActorState, group: Any, cargo: _Cargo) -> None:
        """What is gathered, as it comes; the deadline counts the time of sending alone."""
        options = BroadcastOptions()
        left = cargo.order.timeout_s
        options.rootRank, options.timeout = 0, timedelta(seconds=left)
        try:
            for number in range(len(self._buckets)):
                while (buffer := cargo.belt.get(name, number)) is None:
                    self._still(name, peer)
                begin = time.monotonic()
                work = group.broadcast([buffer[: size_of(self._buckets[number])]], options)
                while not work.is_completed():
                    self._still(name, peer)
                    if time.monotonic() > begin + left:
                        if self._backend == "nccl":
                            group.abort()
                        raise _Lost(f"the weights did not reach its engine within {cargo.order.timeout_s:.0f} s")
                    time.sleep(_POLL_S)
                work.wait()  # raises what went wrong
                left -= time.monotonic() - begin
        except RuntimeError as error:
            raise _Lost(f"sending weights to its engine failed: {_first_line(error)}") from None

    def _hear(
        self, name: str, peer: ActorState, what: tuple[str, int | str], timeout: float
    ) -> wire.Joined | wire.Synced:
        """The reply about ``(stage, version)`` or ``("joined", group)``; others are of an earlier round."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                reply = peer.replies.get(timeout=_TURN_S)
            except queue.Empty:
                self._still(name, peer)
                if time.monotonic() > deadline:
                    raise _Lost(f"not {what[0]} within {timeout:.0f} s, weights {what[1]}") from None
                continue
            about = ("joined", reply.group) if isinstance(reply, wire.Joined) else (reply.stage, reply.version)
            if about == what:
                return reply

    def _still(self, name: str, peer: ActorState) -> None:
        if self._ended.is_set() or not self._server.is_present(name, peer):
            raise _Lost("it is gone")

    def _unlink(self, name: str, peer: ActorState) -> None:
        link = self._links.get(name)
        if link is not None and link.peer is peer:
            del self._links[name]
            dist.destroy_process_group(link.group)


def _listen(host: str, config: SyncConfig) -> TCPStore:
    """The store through which groups form, listening on ``host`` alone: by itself it would on every interface."""
    listener = socket.socket()
    listener.setsockopt(
        socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
    )  # else a restart waits until old connections are gone
    try:
        listener.bind((host, config.port))
        listener.listen()
    except OSError as error:
        raise FatalError(f"cannot listen on sync.host:port {host}:{config.port}: {error}") from None
    return TCPStore(
        host,
        listener.getsockname()[1],
        is_master=True,
        timeout=timedelta(seconds=config.timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def form_group(backend: str, store: TCPStore, name: str, world: int, timeout_s: float, rank: int = 0) -> Any:
    """A process group beside the default one.

    ``new_group`` takes ranks of the default group only, and under torchrun ``rendezvous`` only connects, never listens;
    engines build theirs by the same helper.
    """
    # A watchdog of NCCL that runs out ends the process: it must not come before the deadlines here, which abort.
    timeout = timedelta(seconds=timeout_s) if backend == "gloo" else timedelta(days=1)
    group, _ = _new_process_group_helper(
        world, rank, [], Backend(backend), PrefixStore(name, store), group_name=GroupName(name), timeout=timeout,
        backend_options=None,
    )  # fmt: skip
    _world.pg_group_ranks[group] = {one: one for one in range(world)}  # what destroy_process_group wants to forget
    return group


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
