"""Publishes new weights to all engines at once, bucket by bucket as they are gathered.

A round has these steps. Rank 0's main thread gathers one bucket after another from the ranks. A thread for each actor
sees to its engine: it tells the engine to pause as soon as there is something to send, sends the weights by the actor's
transport, and waits until the engine has them. Requests in flight wait inside the engine meanwhile.

Every step has a deadline (``learner/weights/deadlines.py``), and that of the transfer grows with the number of bytes.
An engine that dies, stops or fails costs the others at most the time for which it may hold a bucket: its actor is given
up with the reason, and nothing waits for what has to do with it.
"""

from __future__ import annotations

import itertools
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from common import wire
from common.config import SyncConfig
from common.net.rendezvous import host_of
from learner.weights.bucket_queue import POLL_S, BucketQueue, SpareBuffers
from learner.weights.buckets import bytes_of, tensors_in, wait_for_copies
from learner.weights.deadlines import round_deadlines
from learner.weights.round import ActorLost, Receiver, Round, fitting_actors
from learner.weights.transports import Transport, make_transports
from learner.work.actors import ActorState
from learner.work.server import WorkServer

log = logging.getLogger("learner.publisher")

# What an actor's thread reports: the name of the actor, and the seconds of its pause or an error of this program.
_Results: TypeAlias = "queue.SimpleQueue[tuple[str, float | Exception]]"

_KEPT_BYTES = 2**30  # of gathered buckets that wait for a slow engine; two buckets at least


@dataclass(frozen=True)
class Published:
    """What came of a round."""

    members: dict[str, ActorState]  # the actors whose engines have the weights
    seconds: float  # that the round took
    pause_s: float  # longest time for which one of these engines did not generate


class Publisher:
    """Rank 0's end of the weight sync.

    Attributes:
        transports: by their value of ``sync.transport``.

    Args:
        server: sends messages to the actors and knows who is present.
        config: the section ``sync``.
        buckets: how the weights are cut, from ``cut_into_buckets``.
        device: where the learner's weights are.
        check: is called at least every 0.1 s while ``publish`` waits, on its thread; raises to end the wait.
        collective_s: how long the learner's other ranks wait for rank 0 in a collective; every round is shorter.

    Raises:
        FatalError: the store of process groups cannot listen on ``sync.host`` and ``sync.port``.
    """

    def __init__(
        self,
        server: WorkServer,
        config: SyncConfig,
        buckets: list[wire.Bucket],
        device: torch.device,
        check: Callable[[], None],
        collective_s: float = math.inf,
    ) -> None:
        self._server, self._config, self._buckets, self._check = server, config, buckets, check
        self._collective_s = collective_s
        self._backend = config.backend if config.backend != "auto" else "nccl" if device.type == "cuda" else "gloo"
        host = config.host or host_of(server.address)
        self.transports = make_transports(config, host, self._backend, buckets, device)
        self._spare = SpareBuffers(
            max(map(bytes_of, buckets), default=0), device if self._backend == "nccl" else torch.device("cpu")
        )
        self._cancelled = threading.Event()

    def publish(self, version: int, weights: Iterator[tuple[str, Tensor]], probe: wire.Probe) -> Published:
        """Sends the weights as ``version`` to all actors that are present now.

        Blocks until every actor has them, left, or was given up, which happens within the deadlines of
        ``learner/weights/deadlines.py``.

        Args:
            version: number of the policy version.
            weights: names and tensors in the order of the buckets. Used up in any case, because other ranks take part
                in gathering until its end.
            probe: with which the engines prove that they have the weights. This is not waited for.

        Returns:
            Who has the weights, maybe nobody.

        Raises:
            FatalError: files cannot be written to ``sync.directory``, or the server has failed.
            Exception: whatever ``check`` raises. No other round may follow then.
        """
        begin = time.monotonic()
        self._server.begin_version(version)
        round_ = self._make_round(version, probe)
        for transport in self.transports.values():
            transport.begin_round(round_)
        results: _Results = queue.SimpleQueue()
        for name, actor in round_.actors.items():
            # Daemons: one that is inside torch, waiting for an engine that is gone, may not be woken, and nothing may
            # wait for it. The round does not, and the process ends without Python's clean-up (learner/__main__.py).
            serve = partial(self._serve, name, actor, round_, results)
            threading.Thread(target=serve, name=f"weights of {name}", daemon=True).start()
        try:
            self._gather(weights, round_)
            pauses = self._collect(round_, results)
        except BaseException:
            self._cancelled.set()
            for transport in self.transports.values():
                transport.close()
            raise
        finally:
            deque(weights, maxlen=0)
            self._spare.free_all_but(2)
            for transport in self._used(round_):
                transport.end_round(round_)
        seconds = time.monotonic() - begin
        return Published({name: round_.actors[name] for name in pauses}, seconds, max(pauses.values(), default=0.0))

    def _make_round(self, version: int, probe: wire.Probe) -> Round:
        actors = fitting_actors(self._server, self.transports)
        sizes = list(map(bytes_of, self._buckets)) or [0]
        longest_drain_s = max((actor.drain_s for actor in actors.values()), default=0.0)
        # Shared memory belongs to its transport. Other buffers are used again as soon as all have sent them.
        shared = any(actor.transport == "shared" for actor in actors.values())
        return Round(
            version=version,
            probe=probe,
            buckets=self._buckets,
            actors=actors,
            deadlines=round_deadlines(
                self._config, len(actors), sum(sizes), max(sizes), longest_drain_s, self._collective_s
            ),
            queue=BucketQueue(
                [name for name, actor in actors.items() if actor.transport == "group"],
                recycle=(lambda buffer: None) if shared else self._spare.give_back,
                room=max(2, _KEPT_BYTES // max(*sizes, 1)),
            ),
        )

    def _used(self, round_: Round) -> list[Transport]:
        return [transport for name, transport in self.transports.items() if round_.uses(name)]

    def _gather(self, weights: Iterator[tuple[str, Tensor]], round_: Round) -> None:
        """Copies one bucket after another into a buffer, for the transports and for the queue of the senders."""
        transports = self._used(round_)
        for number, bucket in enumerate(round_.buckets):
            while not round_.queue.has_room(number):
                self._check()
                self._drop_holders(round_, number)
            required = [buffer for each in transports if (buffer := each.buffer(number)) is not None]
            buffer = required[0] if required else self._spare.take()
            tensors = tensors_in(buffer, bucket)
            for target, (_, tensor) in zip(tensors, itertools.islice(weights, len(tensors)), strict=True):
                target.copy_(tensor.reshape(target.shape))
            wait_for_copies(buffer.device)
            for transport in transports:
                transport.add_bucket(round_, number, tensors)
            round_.queue.put(number, buffer)
        round_.all_gathered.set()

    def _drop_holders(self, round_: Round, number: int) -> None:
        """Gives up engines that hold the buckets before ``number`` for too long, and forgets those that are gone."""
        for name, held_s in round_.queue.held_s(number).items():
            actor, deadlines = round_.actors[name], round_.deadlines
            first = round_.queue.sent(name) == 0
            limit_s = deadlines.first_bucket_s(actor.drain_s) if first else deadlines.bucket_s
            if held_s > limit_s:
                self._lose(name, actor, round_, f"its engine held up the weights of the others for {limit_s:.0f} s")
            elif not self._server.is_present(name, actor):
                self._lose(name, actor, round_, "it is gone")

    def _lose(self, name: str, actor: ActorState, round_: Round, reason: str) -> None:
        """Gives up an actor in a round. Does not block.

        The others come first: its place in the queue is free before anything is done about its own process group.
        """
        round_.queue.leave(name)
        self._server.eject(name, actor, reason)
        self.transports[actor.transport].disconnect(name, actor)

    def _collect(self, round_: Round, results: _Results) -> dict[str, float]:
        """The pauses, in seconds, of the actors that have the weights; waits for nobody who is gone or was given up."""
        pauses: dict[str, float] = {}
        pending = set(round_.actors)
        while pending:
            try:
                name, result = results.get(timeout=POLL_S)
            except queue.Empty:
                self._check()
                present = self._server.members()
                pending = {name for name in pending if present.get(name) is round_.actors[name]}
                continue
            if isinstance(result, Exception):
                raise result
            pauses[name] = result
            pending.discard(name)
        return pauses

    # -- one actor, on its own thread ------------------------------------------------------------------------------

    def _serve(self, name: str, actor: ActorState, round_: Round, results: _Results) -> None:
        transport = self.transports[actor.transport]
        is_present = partial(self._is_present, name, actor)
        receiver = Receiver(name, actor, partial(self._server.send, actor), is_present)
        try:
            results.put((name, self._update(receiver, transport, round_)))
        except ActorLost as error:
            if not self._cancelled.is_set():  # otherwise the actor is not at fault, and is to hear why the run ends
                self._lose(name, actor, round_, str(error))
        except Exception as error:  # a mistake of this program: the main thread must raise it instead of waiting
            results.put((name, error))
        finally:
            round_.queue.leave(name)

    def _is_present(self, name: str, actor: ActorState) -> bool:
        return not self._cancelled.is_set() and self._server.is_present(name, actor)

    def _update(self, receiver: Receiver, transport: Transport, round_: Round) -> float:
        """Brings one engine to the round's version; returns the seconds for which it did not generate."""
        transport.prepare(receiver, round_)
        order = transport.order(receiver, round_)
        # If nothing follows the pause, the engine goes on by itself, later than the learner could still send anything.
        receiver.send(wire.Pause(version=round_.version, timeout_s=2 * round_.deadlines.transfer_s))
        receiver.wait_ready(round_.version, round_.deadlines.pause_s + receiver.actor.drain_s)
        receiver.send(order)
        transport.send(receiver, round_)
        return receiver.wait_done(round_.version, round_.deadlines.transfer_s)
