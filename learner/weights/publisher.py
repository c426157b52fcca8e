"""Publishes new weights to all engines at once, bucket by bucket as they are gathered. This is rank 0's part.

A round has these steps. Rank 0 tells all ranks who sends to which engine. They gather one bucket after another
together, and each leader has its engines' process groups broadcast it (``learner/weights/leader.py``). On rank 0 a
thread for each actor sees to its engine: it tells the engine to pause as soon as there is something to send, has the
weights sent by the actor's transport, and waits until the engine has them. Requests in flight wait inside the engine
meanwhile.

Every step has a deadline (``learner/weights/deadlines.py``), and that of the transfer grows with the number of bytes.
An engine that dies, stops or fails costs the others at most the time for which it may hold a bucket: its actor is given
up with the reason, and nothing waits for what has to do with it. A rank that fails ends the run, by the rule of
``learner/ranks.py``.
"""

from __future__ import annotations

import itertools
import logging
import math
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from common import wire
from common.config import SyncConfig
from common.net.rendezvous import host_of
from learner.rank_links import RankLinks
from learner.weights.bucket_queue import POLL_S
from learner.weights.buckets import bytes_of
from learner.weights.deadlines import round_deadlines
from learner.weights.leader import BucketHooks, Leader, group_backend
from learner.weights.leader_messages import CHANNEL, LeaderOrder, LeaderReport
from learner.weights.process_group import GroupStore
from learner.weights.round import ActorGivenUp, Receiver, Round, fitting_actors, split_by_need
from learner.weights.transports import DiskTransport, GroupTransport, SharedMemoryTransport, Transport
from learner.work.actors import ActorState
from learner.work.server import WorkServer

log = logging.getLogger("learner.publisher")

# What an actor's thread reports: the name of the actor, and the seconds of its pause or an error of this program.
_Results: TypeAlias = "queue.SimpleQueue[tuple[str, float | Exception]]"

# Begins to gather on all ranks, which are given these bytes, and returns rank 0's names and tensors.
StartGather: TypeAlias = Callable[[bytes], Iterator[tuple[str, Tensor]]]

_OWN = 0  # this rank


@dataclass(frozen=True)
class Published:
    """What came of a round."""

    members: dict[str, ActorState]  # the actors whose engines have the weights
    seconds: float  # that the round took
    pause_s: float  # longest time for which one of these engines did not generate


class Publisher:
    """Rank 0's end of the weight sync.

    Attributes:
        leader: which sends to the engines of this node.
        transports: by their value of ``sync.transport``.

    Args:
        server: sends messages to the actors and knows who is present.
        config: the section ``sync``.
        buckets: how the weights are cut, from ``cut_into_buckets``.
        device: where the learner's weights are.
        check: is called at least every 0.1 s while ``publish`` waits, on its thread; raises to end the wait.
        collective_s: how long the learner's other ranks wait for rank 0 in a collective; every round is shorter.
        links: with the other ranks; None if there are none.

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
        links: RankLinks | None = None,
    ) -> None:
        self._server, self._config, self._buckets, self._check_interrupts = server, config, buckets, check
        self._collective_s, self._links = collective_s, links
        self._numbers = itertools.count(1)
        self._published: int | None = None  # the version of the last round
        self._cancelled = threading.Event()
        self._mistake = ""  # of a leader
        backend, run_id = group_backend(config, device), uuid.uuid4().hex[:8]
        store = GroupStore(config.host or host_of(server.address), config.port, config.timeout_s)
        self._groups = GroupTransport(
            store, backend, run_id, {_OWN: ""} if links is None else links.leaders,
            give_order=self._give_order, on_given_up=self._give_up, on_failed=self._note_mistake,
        )  # fmt: skip
        self.leader = Leader(buckets, backend, device, self._groups.hear)
        if links is not None:
            links.listen(CHANNEL, LeaderReport, lambda _rank, report: self._groups.hear(report))
        self.transports: dict[str, Transport] = {
            "group": self._groups,
            "shared": SharedMemoryTransport(buckets, device),
            "disk": DiskTransport(config.directory),
        }

    def publish(self, version: int, start_gather: StartGather, probe: wire.Probe) -> Published:
        """Sends the weights as ``version`` to all actors that are present now.

        If it is the version of the round before, those that are marked to have it go on generating and are left alone.

        Blocks until every actor has them, left, or was given up, which happens within the deadlines of
        ``learner/weights/deadlines.py``.

        Args:
            version: number of the policy version.
            start_gather: is called once, with the plan of the round for all ranks. The names and tensors that it
                returns are in the order of the buckets. They are used up in any case, because other ranks take part in
                gathering until its end.
            probe: with which the engines prove that they have the weights. This is not waited for.

        Returns:
            Who has the weights, maybe nobody.

        Raises:
            FatalError: files cannot be written to ``sync.directory``, or the server has failed.
            RuntimeError: a leader has failed by a mistake of this program.
            Exception: whatever ``check`` raises. No other round may follow then.
        """
        begin = time.monotonic()
        self._server.begin_version(version)
        round_ = self._make_round(version, probe)
        for transport in self.transports.values():
            transport.begin_round(round_)
        plan = self._groups.plan(round_)
        self.leader.begin_round(plan, _OWN, reuse=not round_.uses("shared"))
        weights = start_gather(wire.encode(plan))
        results: _Results = queue.SimpleQueue()
        for name, actor in round_.actors.items():
            serve = partial(self._serve, name, actor, round_, results)
            threading.Thread(target=serve, name=f"weights of {name}", daemon=True).start()
        try:
            self.leader.gather(weights, self._bucket_hooks(round_))
            round_.gathered.end()
            pauses = self._collect(round_, results)
        except BaseException:
            self._cancelled.set()
            for transport in self.transports.values():
                transport.close()  # which frees leaders that wait for their engines, so that gathering can end
            raise
        finally:
            deque(weights, maxlen=0)
            for transport in self._used(round_):
                transport.end_round(round_)
        seconds = time.monotonic() - begin
        self._published = version
        members = {name: actor for name, actor in round_.up_to_date.items() if self._server.is_present(name, actor)}
        members |= {name: round_.actors[name] for name in pauses}
        return Published(members, seconds, max(pauses.values(), default=0.0))

    def _make_round(self, version: int, probe: wire.Probe) -> Round:
        present = fitting_actors(self._server, self.transports)
        actors, up_to_date = split_by_need(present, is_new=version != self._published)
        leaders = {name: rank for name, rank in self._groups.assign(present).items() if name in actors}
        # What shared memory and files take is this node's, as is what its leader sends.
        senders = [leaders.get(name, _OWN) for name in actors]
        sizes = list(map(bytes_of, self._buckets)) or [0]
        return Round(
            number=next(self._numbers),
            version=version,
            probe=probe,
            buckets=self._buckets,
            actors=actors,
            leaders=leaders,
            up_to_date=up_to_date,
            deadlines=round_deadlines(
                self._config,
                engines=max(map(senders.count, senders), default=0),
                total_bytes=sum(sizes),
                bucket_bytes=max(sizes),
                drain_s=max((actor.drain_s for actor in actors.values()), default=0.0),
                collective_s=self._collective_s,
            ),
        )

    def _used(self, round_: Round) -> list[Transport]:
        return [transport for name, transport in self.transports.items() if round_.uses(name)]

    def _bucket_hooks(self, round_: Round) -> BucketHooks:
        """What the transports of this round do with each bucket, beside what the leader does with it."""
        transports = self._used(round_)

        def memory(number: int) -> Tensor | None:
            return next((buffer for each in transports if (buffer := each.buffer(number)) is not None), None)

        def on_bucket(number: int, tensors: Sequence[Tensor]) -> None:
            for transport in transports:
                transport.add_bucket(round_, number, tensors)
            round_.gathered.has_first.set()

        return BucketHooks(self._check, memory, on_bucket)

    def _check(self) -> None:
        self._check_interrupts()
        if self._mistake:
            raise RuntimeError(f"a leader of the weight sync has failed: {self._mistake}")

    # -- what leaders need and report, on any thread -------------------------------------------------------------------

    def _give_order(self, rank: int, order: LeaderOrder) -> None:
        if rank == _OWN or self._links is None:
            self.leader.obey(order)
        else:
            self._links.send(rank, CHANNEL, order)

    def _note_mistake(self, error: str) -> None:
        self._mistake = error

    def _give_up(self, name: str, actor: ActorState, reason: str) -> None:
        """Gives up an actor. Does not block for longer than it takes to tell its leader.

        Once the round is cancelled no actor is at fault: each stays, to hear that the run is over.
        """
        if self._cancelled.is_set():
            return
        self._server.eject(name, actor, reason)
        self.transports[actor.transport].forget(name, actor)

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
        except ActorGivenUp as error:
            self._give_up(name, actor, str(error))
        except Exception as error:  # a mistake of this program: the main thread must raise it instead of waiting
            results.put((name, error))

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
