"""New weights to every engine through one process group, while the actors' requests wait inside the engines.

Rank 0 of the group is learner rank 0, the engines are the others. When actors come or go, the group is formed anew
under another name. An actor that does not answer in time is given up; nothing waits without a deadline.
"""

from __future__ import annotations

import logging
import queue
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import Backend, GroupName, _new_process_group_helper, _world

from common import wire
from common.config import Sync
from common.process import FatalError
from learner.server import Peer, Server

log = logging.getLogger("learner.publisher")

_POLL_S = 0.001
_SLOWEST_BYTES_PER_S = 20e6  # what a link must do for the deadline of a transfer to hold


@dataclass(frozen=True)
class Published:
    members: dict[str, Peer]  # actors whose engines have the weights
    seconds: float
    pause_s: float  # longest time an engine stood still


class Publisher:
    """Rank 0's end of the weight broadcast.

    Args:
        server: through which actors are spoken to.
        config: the ``sync`` section.
        device: where broadcast buffers live: a CUDA device for nccl.
        check: called while waiting; raises to end the wait.
    """

    def __init__(self, server: Server, config: Sync, device: torch.device, check: Callable[[], None]) -> None:
        self._server, self._config, self._device, self._check = server, config, device, check
        self._backend = config.backend if config.backend != "auto" else "nccl" if device.type == "cuda" else "gloo"
        self._store = _listen(config)
        self._group: Any = None
        self._name = ""
        self._joined: dict[str, Peer] = {}
        self._groups = 0
        self._run = uuid.uuid4().hex[:8]  # an engine may still know the groups of a learner before this one

    def publish(self, version: int, weights: list[tuple[str, Tensor]]) -> Published:
        """Sends the weights as ``version`` to all actors present; returns those who have them (maybe none)."""
        begin = time.monotonic()
        buckets = _buckets(weights, int(self._config.bucket_mb * 2**20))
        total = sum(tensor.nbytes for _, tensor in weights)
        timeout = self._config.timeout_s + total / _SLOWEST_BYTES_PER_S
        members = self._server.members()
        for name in members:
            self._server.send(name, wire.Pause(version=version, timeout_s=4 * timeout))
        ready = self._collect(wire.Synced, members, version, "ready", timeout)
        members = {name: peer for name, peer in members.items() if name in ready}
        if members and members != self._joined:
            members = self._regroup(members)
        described = [_describe(bucket) for bucket in buckets]
        order = wire.Receive(group=self._name, version=version, buckets=described, timeout_s=timeout)
        for name in members:
            self._server.send(name, order)
        if members:
            self._broadcast(buckets, timeout)
        done = self._collect(wire.Synced, members, version, "done", timeout)
        if set(done) != set(members):
            self._leave()
        pause = max((reply.pause_s for reply in done.values() if isinstance(reply, wire.Synced)), default=0.0)
        return Published({name: members[name] for name in done}, seconds=time.monotonic() - begin, pause_s=pause)

    def _broadcast(self, buckets: list[list[tuple[str, Tensor]]], timeout: float) -> None:
        """A broadcast that fails is no end of the run: the engines report it, and who failed is given up."""
        deadline = time.monotonic() + timeout
        try:
            for bucket in buckets:
                flat = torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for _, tensor in bucket])
                work = dist.broadcast(flat.to(self._device), src=0, group=self._group, async_op=True)
                assert work is not None
                while not work.is_completed():
                    self._check()
                    if time.monotonic() > deadline:
                        raise RuntimeError(f"not done after {timeout:.0f} s")
                    time.sleep(_POLL_S)
                work.wait()  # raises what went wrong
        except RuntimeError as error:
            log.error("broadcast through %s failed: %s", self._name, str(error).splitlines()[0])

    def _regroup(self, members: dict[str, Peer]) -> dict[str, Peer]:
        """Forms a new group of exactly these actors; whoever fails to join is given up and the others try again."""
        while members:
            self._leave()
            self._groups += 1
            self._name = f"lrpo-{self._run}-{self._groups}"
            world, rank = 1 + sum(peer.engine_ranks for peer in members.values()), 1
            for name, peer in members.items():
                join = wire.Join(
                    group=self._name,
                    host=self._config.host,
                    port=self._store.port,
                    rank=rank,
                    world=world,
                    backend=self._backend,
                    timeout_s=self._config.timeout_s,
                )
                self._server.send(name, join)
                rank += peer.engine_ranks
            try:
                self._group = _form_group(self._backend, self._store, self._name, world, self._config.timeout_s)
            except RuntimeError as error:  # torch's distributed errors; some member did not come
                log.error("weight group %s did not form: %s", self._name, str(error).splitlines()[0])
            joined = self._collect(wire.Joined, members, self._name, "", self._config.timeout_s)
            if self._group is not None and len(joined) == len(members):
                self._joined = members
                return members
            members = {name: peer for name, peer in members.items() if name in joined}
        return {}

    def _leave(self) -> None:
        if self._group is not None:
            dist.destroy_process_group(self._group)
        self._group, self._joined = None, {}

    def _collect(
        self,
        kind: type[wire.Joined] | type[wire.Synced],
        members: dict[str, Peer],
        key: str | int,
        stage: str,
        timeout: float,
    ) -> dict[str, wire.Joined | wire.Synced]:
        """Replies about group or version ``key`` by actor.

        Those that report failure, vanish or say nothing in time are given up, with the reason.
        """
        replies: dict[str, wire.Joined | wire.Synced] = {}
        pending = set(members)
        deadline = time.monotonic() + timeout
        while pending:
            try:
                name, reply = self._server.replies.get(timeout=0.2)
            except queue.Empty:
                self._check()
                here = self._server.members()
                gone = {name for name in pending if here.get(name) is not members[name]}
                late = pending if time.monotonic() > deadline else set()
                for lost in late - gone:
                    self._server.eject(lost, members[lost], f"no answer to the weight update within {timeout:.0f} s")
                pending -= gone | late
                continue
            if name not in pending or not isinstance(reply, kind) or _key(reply) != key:
                continue  # of an earlier round
            if reply.error:
                self._server.eject(name, members[name], reply.error)
                pending.discard(name)
            elif isinstance(reply, wire.Joined) or reply.stage == stage:
                replies[name] = reply
                pending.discard(name)
        return replies


def _listen(config: Sync) -> TCPStore:
    """The store through which groups form, listening on ``sync.host`` alone: by itself it would on every interface."""
    listener = socket.socket()
    try:
        listener.bind((config.host, config.port))
        listener.listen()
    except OSError as error:
        raise FatalError(f"cannot listen on sync.host:port {config.host}:{config.port}: {error}") from None
    return TCPStore(
        config.host,
        listener.getsockname()[1],
        is_master=True,
        timeout=timedelta(seconds=config.timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def _key(reply: wire.Joined | wire.Synced) -> str | int:
    return reply.group if isinstance(reply, wire.Joined) else reply.version


def _form_group(backend: str, store: TCPStore, name: str, world: int, timeout_s: float) -> Any:
    """A process group beside the default one.

    ``new_group`` takes ranks of the default group only, and under torchrun ``rendezvous`` only connects, never listens;
    engines build theirs by the same helper.
    """
    timeout = timedelta(seconds=timeout_s)
    prefixed = PrefixStore(name, store)
    prefixed.set_timeout(timeout)
    group, _ = _new_process_group_helper(
        world, 0, [], Backend(backend), prefixed, group_name=GroupName(name), timeout=timeout, backend_options=None
    )
    _world.pg_group_ranks[group] = {rank: rank for rank in range(world)}
    return group


def _buckets(weights: list[tuple[str, Tensor]], limit: int) -> list[list[tuple[str, Tensor]]]:
    """Consecutive tensors of at most ``limit`` bytes together (a larger one is alone), of one dtype each."""
    buckets: list[list[tuple[str, Tensor]]] = []
    room = 0
    for name, tensor in weights:
        if not buckets or tensor.nbytes > room or buckets[-1][0][1].dtype != tensor.dtype:
            buckets.append([])
            room = limit
        buckets[-1].append((name, tensor))
        room -= tensor.nbytes
    return buckets


def _describe(bucket: list[tuple[str, Tensor]]) -> wire.Bucket:
    return wire.Bucket(
        names=[name for name, _ in bucket],
        dtypes=[str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
        shapes=[list(tensor.shape) for _, tensor in bucket],
    )
