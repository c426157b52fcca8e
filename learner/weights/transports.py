"""How the bytes of the weights reach an engine: through a process group, from shared memory, or from files.

Every actor chooses one of the three with ``sync.transport``, and one round may use all of them. ``Transport`` says what
each has to do on rank 0. Process groups alone have leaders (``learner/weights/leader.py``), so that their bytes leave
every learner node. Shared memory is read on rank 0's machine, and files are written once for all engines.
"""

from __future__ import annotations

import itertools
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from common import wire
from common.nccl import nccl_settings
from common.process import FatalError
from common.run_files import owned_directory
from learner.weights.assignment import assign_leaders
from learner.weights.bucket_queue import POLL_S
from learner.weights.buckets import bytes_of, smallest_tensor
from learner.weights.leader_messages import (
    EngineGivenUp,
    ForgetGroup,
    FormGroup,
    GroupFormed,
    LeaderFailed,
    LeaderOrder,
    LeaderReport,
    RoundPlan,
    SendWeights,
    WeightsSent,
)
from learner.weights.process_group import GroupStore
from learner.weights.round import ActorGivenUp, Receiver, Round
from learner.weights.shared_memory import SharedBuffer
from learner.work.actors import ActorState

log = logging.getLogger("learner.publisher")


class Transport(ABC):
    """Serves all actors that chose it, round after round.

    The gathering thread calls ``begin_round``, for each bucket ``buffer`` and ``add_bucket``, and ``end_round``. In
    between each actor's own thread calls ``prepare``, ``order`` and ``send``, and ``forget`` if it gives the actor up.
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
            ActorGivenUp: the actor is gone, or could not be connected.
        """
        while not round_.gathered.has_all.wait(POLL_S):
            receiver.check_present()

    @abstractmethod
    def order(self, receiver: Receiver, round_: Round) -> wire.Receive:
        """What the engine is told: where the weights come from. Called after ``prepare``; does not block."""

    def send(self, receiver: Receiver, round_: Round) -> None:  # noqa: B027
        """Sees to it that an engine that has its order gets the weights, within the deadlines of the round.

        Raises:
            ActorGivenUp: the actor is gone, or the weights did not reach its engine.
        """

    def forget(self, name: str, actor: ActorState) -> None:  # noqa: B027
        """Frees what was kept for an actor that is gone or given up. Does not block.

        Does nothing if nothing was kept. Any thread may call it, also while another is in ``send``, which then ends.
        """

    def end_round(self, round_: Round) -> None:  # noqa: B027
        """Called when all have the weights or the round was cancelled; only in rounds that use this transport."""

    def close(self) -> None:  # noqa: B027
        """Wakes threads that wait in ``prepare``. No other round may follow."""


@dataclass(eq=False)
class _ActorGroup:
    """The process group with an actor's engine, as rank 0 knows it."""

    actor: ActorState
    leader: int  # rank that sends to it
    name: str  # of the process group
    is_formed: threading.Event = field(default_factory=threading.Event)
    is_sent: threading.Event = field(default_factory=threading.Event)  # the weights of this round
    is_tried: bool = False  # a broadcast has gone through it


class GroupTransport(Transport):
    """Has each bucket broadcast, as soon as it is gathered, through a process group with one engine.

    The group is formed in the first round of an actor and kept until the actor is gone or gets another leader. NCCL
    connects the ranks of a group in its first broadcast. An engine takes broadcasts in an update alone, so this update
    begins with one more bucket, which has its own deadline: the smallest tensor, as zeros, which a later bucket of the
    update replaces.

    Args:
        store: through which the groups form.
        backend: "gloo" or "nccl".
        run_id: makes the names of groups unique, because an engine may still know those of an earlier learner.
        leaders: the name of the machine by the rank of each leader.
        give_order: gives an order to the leader with this rank; blocks for at most a second. Raises OSError if it is
            gone.
        on_given_up: is called with the name of an actor, the actor and the reason when a leader gives its engine up.
        on_failed: is called with a description when a leader has made a mistake.
    """

    def __init__(
        self,
        store: GroupStore,
        backend: str,
        run_id: str,
        leaders: Mapping[int, str],
        *,
        give_order: Callable[[int, LeaderOrder], None],
        on_given_up: Callable[[str, ActorState, str], None],
        on_failed: Callable[[str], None],
    ) -> None:
        self._store, self._backend, self._run_id, self._leaders = store, backend, run_id, leaders
        self._give_order, self._on_given_up, self._on_failed = give_order, on_given_up, on_failed
        self._groups: dict[str, _ActorGroup] = {}  # by name of the actor
        self._before: dict[str, int] = {}  # the leader that each actor had last
        self._numbers = itertools.count()

    def assign(self, actors: Mapping[str, ActorState]) -> dict[str, int]:
        """The rank of the leader, by name, of each of these actors that takes its weights through a group."""
        hosts = {name: actor.process.host for name, actor in actors.items() if actor.transport == "group"}
        return assign_leaders(hosts, self._leaders, self._before)

    def begin_round(self, round_: Round) -> None:
        for name, group in list(self._groups.items()):
            takes_part = round_.actors.get(name) is group.actor
            stays = takes_part and round_.leaders.get(name) == group.leader
            if not stays and round_.up_to_date.get(name) is not group.actor:
                self.forget(name, group.actor)
        for name, leader in round_.leaders.items():
            if name not in self._groups:
                group_name = f"lrpo-{self._run_id}-{next(self._numbers)}"
                self._groups[name] = _ActorGroup(round_.actors[name], leader, group_name)
                if len(self._leaders) > 1:
                    log.info("rank %d of the learner sends the weights to the engine of actor %s", leader, name)
        self._before |= round_.leaders

    def plan(self, round_: Round) -> RoundPlan:
        """What all leaders must know of a round that has begun."""
        shares: dict[int, dict[str, float]] = {leader: {} for leader in self._leaders}
        up_to_date: list[str] = []
        for name, group in self._groups.items():
            if name in round_.up_to_date:
                up_to_date.append(group.name)
                continue
            first_s = round_.deadlines.first_bucket_s(group.actor.drain_s)
            shares[group.leader][group.name] = first_s
        return RoundPlan(round_.number, round_.deadlines, shares, up_to_date)

    def prepare(self, receiver: Receiver, round_: Round) -> None:
        receiver.check_present()
        group, timeout_s = self._group_of(receiver), round_.deadlines.form_s
        if not group.is_formed.is_set():
            join = wire.Join(
                group=group.name, host=self._store.host, port=self._store.port, backend=self._backend,
                world=1 + receiver.actor.engine_ranks, timeout_s=timeout_s, nccl=nccl_settings(),
            )  # fmt: skip
            receiver.send(join)
            form = FormGroup(join.group, join.backend, join.host, join.port, join.world, timeout_s)
            self._order(group, form)
            self._wait_for_leader(group, group.is_formed, "form its weight group", receiver, round_)
            receiver.wait_joined(group.name, timeout_s)
        while not round_.gathered.has_first.wait(POLL_S):
            receiver.check_present()

    def order(self, receiver: Receiver, round_: Round) -> wire.Receive:
        group = self._group_of(receiver)
        order = round_.order(group=group.name)
        if group.is_tried:
            return order
        return msgspec.structs.replace(order, buckets=[smallest_tensor(round_.buckets), *order.buckets])

    def send(self, receiver: Receiver, round_: Round) -> None:
        group = self._group_of(receiver)
        group.is_sent.clear()
        connects, group.is_tried = not group.is_tried, True
        self._order(group, SendWeights(group.name, round_.number, connects))
        self._wait_for_leader(group, group.is_sent, "send the weights", receiver, round_)

    def hear(self, report: LeaderReport) -> None:
        """Takes a leader's report, on any thread; does not block. One about a group that is forgotten is ignored."""
        if isinstance(report, LeaderFailed):
            self._on_failed(report.error)
            return
        found = [(name, each) for name, each in list(self._groups.items()) if each.name == report.group]
        for name, group in found:
            match report:
                case GroupFormed():
                    group.is_formed.set()
                case WeightsSent():
                    group.is_sent.set()
                case EngineGivenUp():
                    self._on_given_up(name, group.actor, report.reason)

    def forget(self, name: str, actor: ActorState) -> None:
        group = self._groups.get(name)
        if group is not None and group.actor is actor:
            self._groups.pop(name, None)
            with suppress(OSError):  # then that rank has ended, and so will this one
                self._give_order(group.leader, ForgetGroup(group.name))

    def close(self) -> None:
        self._store.close()
        for name, group in list(self._groups.items()):
            self.forget(name, group.actor)

    def _group_of(self, receiver: Receiver) -> _ActorGroup:
        group = self._groups.get(receiver.name)
        if group is None or group.actor is not receiver.actor:
            raise ActorGivenUp("it is gone")  # another thread has given it up in the meantime
        return group

    def _order(self, group: _ActorGroup, order: LeaderOrder) -> None:
        try:
            self._give_order(group.leader, order)
        except OSError as error:
            raise ActorGivenUp(f"rank {group.leader}, its leader, cannot be reached: {error}") from None

    def _wait_for_leader(
        self, group: _ActorGroup, event: threading.Event, what: str, receiver: Receiver, round_: Round
    ) -> None:
        """Waits for a report. A leader has its own deadlines; those of a round bound one that is slow or stopped."""
        while not event.wait(POLL_S):
            receiver.check_present()
            if round_.gathered.is_overdue(round_.longest_s()):
                raise ActorGivenUp(f"rank {group.leader}, its leader, did not {what} within {round_.longest_s():.0f} s")


class SharedMemoryTransport(Transport):
    """Gathers into memory that engines on this machine read where it is.

    Every bucket has memory of its own, which is the same one in each round: nobody reports when a GPU has finished
    reading, so it must not be used for another bucket. It is freed in the first round in which no actor of this
    transport is present.

    Args:
        buckets: how the weights are cut.
        device: where the learner's weights are; the shared memory is there, too.
    """

    def __init__(self, buckets: Sequence[wire.Bucket], device: torch.device) -> None:
        self._buckets, self._device = buckets, device
        self._buffers: list[SharedBuffer] = []  # one for each bucket that was gathered so far

    def begin_round(self, round_: Round) -> None:
        if not any(actor.transport == "shared" for actor in (*round_.actors.values(), *round_.up_to_date.values())):
            self._buffers.clear()

    def buffer(self, number: int) -> Tensor:
        if number == len(self._buffers):
            self._buffers.append(SharedBuffer(bytes_of(self._buckets[number]), self._device))
        return self._buffers[number].tensor

    def order(self, receiver: Receiver, round_: Round) -> wire.Receive:
        ranks = range(receiver.actor.engine_ranks)
        return round_.order(handles=[[buffer.create_handle() for _ in ranks] for buffer in self._buffers])


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
