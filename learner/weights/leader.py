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
    DropGroup,
    EngineGivenUp,
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


class _Dropped(Exception):
    """Rank 0 or this leader has given the engine up, so that there is nothing left to do or to report."""


class _Lost(Exception):
    """The engine did not take part. The message says why."""


@dataclass(eq=False)
class _Connection:
    """A group with an engine, from the order to form it until it is dropped."""

    name: str
    backend: str
    group: ProcessGroup | None = None  # None while it forms
    is_dropped: bool = False

    def check(self) -> None:
        if self.is_dropped:
            raise _Dropped


@dataclass(frozen=True)
class _Round:
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
class Gathering:
    """What else happens with each bucket where it is gathered; rank 0 has transports of other kinds.

    Args:
        check: is called at least every 0.1 s while gathering waits for an engine; raises to end it.
        memory: gives the buffer, [bytes of the bucket] uint8, into which a bucket must be gathered; None if any will
            do.
        take: takes a gathered bucket: its number and its tensors, which must not be used after the call.
    """

    check: Callable[[], None] = lambda: None
    memory: Callable[[int], Tensor | None] = _any_memory
    take: Callable[[int, Sequence[Tensor]], None] = _ignore


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
        self._connections: dict[str, _Connection] = {}  # by name of the group
        self._dropped: set[str] = set()  # groups, whose names are never used again
        self._round: _Round | None = None

    # -- the thread that gathers ---------------------------------------------------------------------------------------

    def begin_round(self, plan: RoundPlan, rank: int, *, reuse: bool = True) -> None:
        """Drops the groups that are not in the plan, and gets ready to gather for those that have a share in it.

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
            left = [name for name in self._connections if name not in share and name not in plan.resting]
            self._round = _Round(plan, share, queue)
            # Of the share, but lost before this rank got the plan. Nobody will send to them.
            lost = [name for name in share if name in self._dropped]
        for name in left:
            self._drop(name)
        for name in lost:
            queue.leave(name)

    def gather(self, weights: Iterator[tuple[str, Tensor]], extra: Gathering | None = None) -> None:
        """Copies one bucket after another into a buffer, for the threads that send it.

        Blocks until all are gathered; an engine holds that up for at most the deadlines of the plan.

        Args:
            weights: names and tensors in the order of the buckets.
            extra: what else happens with each bucket.

        Raises:
            Exception: whatever ``extra`` raises.
        """
        extra = extra or Gathering()
        round_ = self._round
        assert round_ is not None, "begin_round comes first"
        for number, bucket in enumerate(self._buckets):
            while not round_.queue.has_room(number):
                extra.check()
                self._lose_holders(round_, number)
            required = extra.memory(number)
            buffer = required if required is not None else self._take_buffer(bucket)
            tensors = tensors_in(buffer, bucket)
            for target, (_, tensor) in zip(tensors, itertools.islice(weights, len(tensors)), strict=True):
                target.copy_(tensor.reshape(target.shape))
            wait_for_copies(buffer.device)
            extra.take(number, tensors)
            round_.queue.put(number, buffer)

    def _take_buffer(self, bucket: wire.Bucket) -> Tensor:
        """[at least the bytes of the bucket] uint8 with any content."""
        if self._spare is not None:
            return self._spare.take()
        return torch.empty(bytes_of(bucket), dtype=torch.uint8, device=self._device)

    def _lose_holders(self, round_: _Round, number: int) -> None:
        """Gives up engines that hold the buckets before ``number`` for too long."""
        for name, held_s in round_.queue.held_s(number).items():
            first = round_.queue.sent(name) == 0
            limit_s = round_.first_bucket_s[name] if first else round_.deadlines.bucket_s
            if held_s > limit_s:
                self._lose(name, f"its engine held up the weights of the others for {limit_s:.0f} s")

    # -- any thread ----------------------------------------------------------------------------------------------------

    def take(self, order: LeaderOrder) -> None:
        """Begins to do what rank 0 orders; reports what came of it later."""
        match order:
            case FormGroup():
                connection = _Connection(order.group, order.backend)
                with self._lock:
                    if order.group in self._dropped:  # by an order that another thread of rank 0 gave first
                        return
                    self._connections[order.group] = connection
                self._start(self._form, connection, order)
            case SendWeights():
                with self._lock:
                    found = self._connections.get(order.group)
                if found is not None:  # otherwise it was lost, which is reported already
                    self._start(self._send, found, order)
            case DropGroup():
                self._drop(order.group)

    def _lose(self, name: str, reason: str) -> None:
        """Gives up an engine and tells rank 0.

        The others come first: its place in the queue is free before anything is done about its own group.
        """
        self._drop(name, lambda: self._report(EngineGivenUp(name, reason)))

    def _drop(self, name: str, report: Callable[[], None] = lambda: None) -> None:
        group: ProcessGroup | None = None
        with self._lock:
            self._dropped.add(name)
            connection, round_ = self._connections.pop(name, None), self._round
            if connection is not None:
                connection.is_dropped = True
                group = connection.group  # one that forms later is discarded where it has formed
        if round_ is not None:
            round_.queue.leave(name)
        report()
        if connection is not None and group is not None:
            discard_group(group, connection.backend)

    def _start(self, work: Callable[..., None], connection: _Connection, order: FormGroup | SendWeights) -> None:
        """Does what concerns one group on a thread of its own.

        Daemons: one that is inside torch, waiting for an engine that is gone, may not be woken, and nothing may wait
        for it. No round does, and the process ends without Python's clean-up (learner/__main__.py).
        """

        def run() -> None:
            try:
                with on_stream(self._stream):
                    work(connection, order)
            except _Dropped:
                pass
            except _Lost as error:
                if not connection.is_dropped:
                    self._lose(connection.name, str(error))
            except Exception as error:  # a mistake of this program: rank 0 must end the run instead of waiting
                log.exception("sending weights has failed")
                self._report(LeaderFailed(f"{type(error).__name__}: {error}"))

        threading.Thread(target=run, name=f"{type(order).__name__} {connection.name}", daemon=True).start()

    def _form(self, connection: _Connection, order: FormGroup) -> None:
        """Forms a group with an engine, as its rank 0; blocks for at most ``order.timeout_s`` in each of its steps."""
        try:
            # Every group has a client of its own: on a shared one, waiting for one engine would hold up the others.
            store = connect_to_store(order.host, order.port, order.timeout_s)
            group = form_group(order.backend, store, order.group, order.world, order.timeout_s)
        except RuntimeError as error:  # the base of torch's distributed errors
            raise _Lost(f"its weight group did not form within {order.timeout_s:.0f} s: {_first_line(error)}") from None
        with self._lock:
            connection.group = group
            is_dropped = connection.is_dropped
        if is_dropped:
            discard_group(group, order.backend)
            return
        self._report(GroupFormed(order.group))

    def _send(self, connection: _Connection, order: SendWeights) -> None:
        """Sends all buckets; the deadline counts only the time of sending, not that of waiting for a bucket."""
        name, group = connection.name, connection.group
        round_ = self._wait_for_round(connection, order.round)
        deadlines, left_s = round_.deadlines, round_.deadlines.transfer_s
        try:
            if order.connects:
                self._connect(connection, deadlines.form_s)
            for number, bucket in enumerate(self._buckets):
                while (buffer := round_.queue.get(name, number)) is None:
                    connection.check()
                if left_s <= 0:  # a bucket may have arrived a little later than it should
                    raise _Lost(
                        f"{number} of {len(self._buckets)} buckets took all of the {deadlines.transfer_s:.0f} s that "
                        "its engine has for the weights"
                    )
                begin, limit_s = time.monotonic(), min(left_s, deadlines.bucket_s)
                work = start_broadcast(group, buffer[: bytes_of(bucket)], limit_s + _LATER_S)
                while not wait_briefly(work, connection.backend, min(POLL_S, limit_s)):
                    connection.check()
                    if time.monotonic() > begin + limit_s:
                        raise _Lost(
                            f"the weights did not reach its engine within {limit_s:.0f} s (bucket {number + 1} of "
                            f"{len(self._buckets)}, {deadlines.transfer_s:.0f} s for all)"
                        )
                raise_error(work)
                left_s -= time.monotonic() - begin
                del buffer, work  # the last bucket must not stay in memory while this waits for the next one
        except RuntimeError as error:  # the base of torch's distributed errors
            raise _Lost(f"sending weights to its engine failed: {_first_line(error)}") from None
        round_.queue.leave(name)
        self._report(WeightsSent(name, order.round))

    def _wait_for_round(self, connection: _Connection, number: int) -> _Round:
        """The round of an order, which may come before this rank has begun it; rank 0 has the deadline."""
        while (round_ := self._round) is None or round_.plan.number < number:
            connection.check()
            time.sleep(_BEGIN_POLL_S)
        return round_

    def _connect(self, connection: _Connection, timeout_s: float) -> None:
        """Sends the additional bucket that connects the ranks; blocks for at most ``timeout_s``."""
        zeros = torch.zeros(bytes_of(smallest_tensor(self._buckets)), dtype=torch.uint8, device=self._device)
        try:
            broadcast_first(connection.group, connection.backend, zeros, timeout_s, connection.check)
        except TimeoutError:
            raise _Lost(f"its engine did not connect to the weight group within {timeout_s:.0f} s") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
