"""Sends the gathered weights to a share of the engines, through a process group with each of them.

Every learner node has one leader, its first rank. All ranks take part in gathering, so each holds every weight once as
a whole, and a leader can send it on at no further cost. Rank 0 is the leader of its own node, and it alone decides:
which engine belongs to which leader, when a group forms, when an engine is ready, and who is given up. A leader does
what it is told for one group at a time, on a thread for each, and reports what came of it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common import wire
from common.config import SyncConfig
from learner.weights.bucket_queue import POLL_S, BucketQueue, SpareBuffers
from learner.weights.buckets import bytes_of, smallest_tensor, tensors_in, wait_for_copies
from learner.weights.deadlines import Deadlines
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
from learner.weights.process_group import (
    ProcessGroup,
    broadcast_first,
    connect_to_store,
    discard_group,
    form_group,
    leave_errors_to_callers,
    on_stream,
    raise_error,
    sending_stream,
    start_broadcast,
    wait_briefly,
)

log = logging.getLogger("learner.publisher")

_KEPT_BYTES = 2**30  # of gathered buckets that wait for a slow engine; two buckets at least
_LATER_S = 1.0  # gloo's own deadline comes this much later than ours, whose error says more
_BEGIN_POLL_S = 0.1  # between two checks of whether the round has begun here, too


class _Forgotten(Exception):
    """The group is forgotten, so that there is nothing left to do or to report."""


class _GiveUp(Exception):
    """The engine is to be given up, because it did not take part. The message says why."""


@dataclass(eq=False)
class _EngineGroup:
    """The process group with an engine, from the order to form it until it is forgotten."""

    name: str
    backend: str
    process_group: ProcessGroup | None = None  # None while it forms
    is_forgotten: bool = False

    def check(self) -> None:
        if self.is_forgotten:
            raise _Forgotten


@dataclass(frozen=True)
class _LeaderRound:
    """A round, as the leader of some engines sees it."""

    plan: RoundPlan
    first_bucket_s: Mapping[str, float]  # of this leader's groups, see ``RoundPlan``
    queue: BucketQueue

    @property
    def deadlines(self) -> Deadlines:
        return self.plan.deadlines


def _any_memory(_number: int) -> None:
    return None


def _let_go(_buffer: Tensor) -> None:
    """Frees a buffer, as soon as nobody else has it."""


def _ignore(_number: int, _tensors: Sequence[Tensor]) -> None:
    pass


@dataclass(frozen=True)
class BucketHooks:
    """What else happens with each bucket where it is gathered; rank 0 has transports of other kinds.

    Args:
        check: is called at least every 0.1 s while gathering waits for an engine; raises to end it.
        memory: gives the buffer, [bytes of the bucket] uint8, into which a bucket must be gathered; None if any will
            do.
        on_bucket: takes a gathered bucket: its number and its tensors, which must not be used after the call.
    """

    check: Callable[[], None] = lambda: None
    memory: Callable[[int], Tensor | None] = _any_memory
    on_bucket: Callable[[int, Sequence[Tensor]], None] = _ignore


def buckets_kept(largest: int) -> int:
    """The most gathered buckets that a leader has in memory at a time, the one that is being filled included.

    Args:
        largest: bytes of the largest bucket.
    """
    return max(2, _KEPT_BYTES // max(largest, 1))


def group_backend(config: SyncConfig, device: torch.device) -> str:
    """The backend of process groups with engines, "gloo" or "nccl".

    Args:
        device: where the learner's weights are.
    """
    if config.backend != "auto":
        return config.backend
    return "nccl" if device.type == "cuda" else "gloo"


class Leader:
    """One learner node's end of the process groups. Only ``gather`` blocks.

    Made after the default group and all other groups of the learner: torch leaves errors of groups that are made later
    to their callers.

    Args:
        buckets: how the weights are cut, the same on all ranks.
        backend: "gloo" or "nccl".
        device: where the learner's weights are.
        report: tells rank 0. It is called from any thread, and must not block for more than a second.
    """

    def __init__(
        self,
        buckets: Sequence[wire.Bucket],
        backend: str,
        device: torch.device,
        report: Callable[[LeaderReport], None],
    ) -> None:
        leave_errors_to_callers()
        self._buckets, self._report = buckets, report
        self._device = device if backend == "nccl" else torch.device("cpu")
        self._largest = max(map(bytes_of, buckets), default=0)
        # Two buffers are in use while all engines keep pace, and one or two more while one lags behind. Fresh memory of
        # a CPU costs more than filling it. In that of a GPU nothing is kept from round to round: torch gives what is
        # freed to training meanwhile, and has it at hand for the next bucket.
        self._spare = SpareBuffers(self._largest, most=4) if self._device.type == "cpu" else None
        self._stream = sending_stream(self._device)
        self._lock = threading.Lock()  # for the three that follow, which all threads share
        self._groups: dict[str, _EngineGroup] = {}  # by name
        self._forgotten: set[str] = set()  # names of groups, which are never used again
        self._round: _LeaderRound | None = None

    # -- the thread that gathers ---------------------------------------------------------------------------------------

    def begin_round(self, plan: RoundPlan, rank: int, *, reuse: bool = True) -> None:
        """Forgets the groups that are not in the plan, and gets ready to gather for those that have a share in it.

        Args:
            plan: of the round.
            rank: of this leader, whose share is taken from the plan.
            reuse: all buckets are gathered into this leader's own buffers, which it uses again.
        """
        share = plan.shares.get(rank, {})
        queue = BucketQueue(
            share,
            recycle=self._spare.give_back if reuse and self._spare is not None else _let_go,
            room=buckets_kept(self._largest),
        )
        with self._lock:
            not_in_plan = [name for name in self._groups if name not in share and name not in plan.up_to_date]
            self._round = _LeaderRound(plan, share, queue)
            # Rank 0 gave these up before its plan arrived here: nobody will send to them.
            given_up = [name for name in share if name in self._forgotten]
        for group_name in not_in_plan:
            self._forget(group_name)
        for group_name in given_up:
            queue.leave(group_name)

    def gather(self, weights: Iterator[tuple[str, Tensor]], hooks: BucketHooks | None = None) -> None:
        """Copies one bucket after another into a buffer, for the threads that send it.

        Blocks until all are gathered; an engine holds that up for at most the deadlines of the plan.

        Args:
            weights: names and tensors in the order of the buckets.
            hooks: what else happens with each bucket.

        Raises:
            Exception: whatever ``hooks`` raise.
        """
        hooks = hooks or BucketHooks()
        round_ = self._round
        assert round_ is not None, "begin_round comes first"
        for number, bucket in enumerate(self._buckets):
            while not round_.queue.has_room(number):
                hooks.check()
                self._give_up_holders(round_, number)
            required = hooks.memory(number)
            buffer = required if required is not None else self._get_buffer(bucket)
            tensors = tensors_in(buffer, bucket)
            for target, (_, tensor) in zip(tensors, itertools.islice(weights, len(tensors)), strict=True):
                target.copy_(tensor.reshape(target.shape))
            wait_for_copies(buffer.device)
            hooks.on_bucket(number, tensors)
            round_.queue.put(number, buffer)

    def _get_buffer(self, bucket: wire.Bucket) -> Tensor:
        """[at least the bytes of the bucket] uint8 with any content."""
        if self._spare is not None:
            return self._spare.borrow()
        return torch.empty(bytes_of(bucket), dtype=torch.uint8, device=self._device)

    def _give_up_holders(self, round_: _LeaderRound, number: int) -> None:
        """Gives up engines that hold the buckets before ``number`` for too long."""
        for group_name, held_s in round_.queue.held_s(number).items():
            first = round_.queue.sent(group_name) == 0
            limit_s = round_.first_bucket_s[group_name] if first else round_.deadlines.bucket_s
            if held_s > limit_s:
                self._give_up(group_name, f"its engine held up the weights of the others for {limit_s:.0f} s")

    # -- any thread ----------------------------------------------------------------------------------------------------

    def obey(self, order: LeaderOrder) -> None:
        """Begins to do what rank 0 orders; reports what came of it later."""
        match order:
            case FormGroup():
                group = _EngineGroup(order.group, order.backend)
                with self._lock:
                    if order.group in self._forgotten:  # by an order that another thread of rank 0 gave first
                        return
                    self._groups[order.group] = group
                self._start(self._form, group, order)
            case SendWeights():
                with self._lock:
                    found = self._groups.get(order.group)
                if found is not None:  # otherwise its engine was given up, which is reported already
                    self._start(self._send, found, order)
            case ForgetGroup():
                self._forget(order.group)

    def _give_up(self, group_name: str, reason: str) -> None:
        """Gives up an engine and tells rank 0.

        The others come first: its place in the queue is free before anything is done about its own group.
        """
        self._forget(group_name, lambda: self._report(EngineGivenUp(group_name, reason)))

    def _forget(self, group_name: str, report: Callable[[], None] = lambda: None) -> None:
        """Frees what is kept for a group, and reports before it frees what may take a while. Does not block."""
        process_group: ProcessGroup | None = None
        with self._lock:
            self._forgotten.add(group_name)
            group, round_ = self._groups.pop(group_name, None), self._round
            if group is not None:
                group.is_forgotten = True
                process_group = group.process_group  # one that forms later is discarded where it has formed
        if round_ is not None:
            round_.queue.leave(group_name)
        report()
        if group is not None and process_group is not None:
            discard_group(process_group, group.backend)

    def _start(self, work: Callable[..., None], group: _EngineGroup, order: FormGroup | SendWeights) -> None:
        """Does what concerns one group on a thread of its own.

        Daemons: one that is inside torch, waiting for an engine that is gone, may not be woken, and nothing may wait
        for it. No round does, and the process ends without Python's clean-up (learner/__main__.py).
        """

        def run() -> None:
            try:
                with on_stream(self._stream):
                    work(group, order)
            except _Forgotten:
                pass
            except _GiveUp as error:
                if not group.is_forgotten:
                    self._give_up(group.name, str(error))
            except Exception as error:  # a mistake of this program: rank 0 must end the run instead of waiting
                log.exception("sending weights has failed")
                self._report(LeaderFailed(f"{type(error).__name__}: {error}"))

        threading.Thread(target=run, name=f"{type(order).__name__} {group.name}", daemon=True).start()

    def _form(self, group: _EngineGroup, order: FormGroup) -> None:
        """Forms a group with an engine, as its rank 0; blocks for at most ``order.timeout_s`` in each of its steps."""
        try:
            # Every group has a client of its own: on a shared one, waiting for one engine would hold up the others.
            store = connect_to_store(order.host, order.port, order.timeout_s)
            process_group = form_group(order.backend, store, order.group, order.world, order.timeout_s)
        except RuntimeError as error:  # the base of torch's distributed errors
            raise _GiveUp(
                f"its weight group did not form within {order.timeout_s:.0f} s: {_first_line(error)}"
            ) from None
        with self._lock:
            group.process_group = process_group
            is_forgotten = group.is_forgotten
        if is_forgotten:
            discard_group(process_group, order.backend)
            return
        self._report(GroupFormed(order.group))

    def _send(self, group: _EngineGroup, order: SendWeights) -> None:
        """Sends all buckets; the deadline counts only the time of sending, not that of waiting for a bucket."""
        process_group, round_ = group.process_group, self._wait_for_round(group, order.round)
        deadlines, left_s = round_.deadlines, round_.deadlines.transfer_s
        try:
            if order.connects:
                self._connect(group, deadlines.form_s)
            for number, bucket in enumerate(self._buckets):
                while (buffer := round_.queue.get(group.name, number)) is None:
                    group.check()
                if left_s <= 0:  # a bucket may have arrived a little later than it should
                    raise _GiveUp(
                        f"{number} of {len(self._buckets)} buckets took all of the {deadlines.transfer_s:.0f} s that "
                        "its engine has for the weights"
                    )
                begin, limit_s = time.monotonic(), min(left_s, deadlines.bucket_s)
                work = start_broadcast(process_group, buffer[: bytes_of(bucket)], limit_s + _LATER_S)
                while not wait_briefly(work, group.backend, min(POLL_S, limit_s)):
                    group.check()
                    if time.monotonic() > begin + limit_s:
                        raise _GiveUp(
                            f"the weights did not reach its engine within {limit_s:.0f} s (bucket {number + 1} of "
                            f"{len(self._buckets)}, {deadlines.transfer_s:.0f} s for all)"
                        )
                raise_error(work)
                left_s -= time.monotonic() - begin
                del buffer, work  # the last bucket must not stay in memory while this waits for the next one
        except RuntimeError as error:  # the base of torch's distributed errors
            raise _GiveUp(f"sending weights to its engine failed: {_first_line(error)}") from None
        round_.queue.leave(group.name)
        self._report(WeightsSent(group.name, order.round))

    def _wait_for_round(self, group: _EngineGroup, number: int) -> _LeaderRound:
        """The round of an order, which may come before this rank has begun it; rank 0 has the deadline."""
        while (round_ := self._round) is None or round_.plan.number < number:
            group.check()
            time.sleep(_BEGIN_POLL_S)
        return round_

    def _connect(self, group: _EngineGroup, timeout_s: float) -> None:
        """Sends the additional bucket that connects the ranks; blocks for at most ``timeout_s``."""
        zeros = torch.zeros(bytes_of(smallest_tensor(self._buckets)), dtype=torch.uint8, device=self._device)
        try:
            broadcast_first(group.process_group, group.backend, zeros, timeout_s, group.check)
        except TimeoutError:
            raise _GiveUp(f"its engine did not connect to the weight group within {timeout_s:.0f} s") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
