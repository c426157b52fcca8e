"""Which group is leased, to whom, and which P go into a step: admission-bounded, oldest first, each exactly once.

Pure bookkeeping: no clock, no socket, no thread. ``docs/staleness.md`` proves the bound on the policy lag.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

Result = TypeVar("Result")


def staleness_bound(groups_per_step: int, staleness: int, window: int) -> int:
    """Most policy updates between a token and the step that trains on it: ⌊((S+1)P + W − 2) / P⌋, and 0 for S = 0.

    A group leased at version v finds at most (S+1)P − 1 others alive, and at most W − 1 younger ones overtake it.
    Each step before its own uses up P of these. With S = 0 every group alive is in the step, so none overtakes.
    """
    if staleness == 0:
        return 0
    return ((staleness + 1) * groups_per_step + window - 2) // groups_per_step


@dataclass
class _Slot(Generic[Result]):
    actor: str | None = None  # who has the lease; None: waits for one
    deadline: float = 0.0
    attempts: int = 0
    overtaken: int = 0  # how many younger groups were taken before this one
    result: Result | None = None
    training: bool = False


class WorkQueue(Generic[Result]):
    """Hands out sequence numbers 0, 1, 2, … and collects one result for each.

    At most (S+1)P groups are alive: leased, finished, or in the step whose weights are not yet published.

    Args:
        groups_per_step: P.
        staleness: S.
        window: W; a group is overtaken by at most W − 1 younger ones.
        attempts: a group released or expired this often is given up.
        total: groups wanted in all; admission stops there.
        next_sequence: the first fresh one, after a restart.
        pending: older ones still to be done, after a restart.
        results: of those pending that were finished before it.

    Example:
        >>> queue = WorkQueue[str](groups_per_step=1, staleness=0, window=1, attempts=3, total=1)
        >>> queue.lease("a", deadline=60.0)
        0
        >>> queue.lease("b", deadline=60.0) is None  # the only slot is taken
        True
        >>> queue.submit(0, "a", "answer")
        True
        >>> queue.take()
        [(0, 'answer')]
    """

    def __init__(
        self,
        *,
        groups_per_step: int,
        staleness: int,
        window: int,
        attempts: int,
        total: int,
        next_sequence: int = 0,
        pending: Iterable[int] = (),
        results: Mapping[int, Result] | None = None,
    ) -> None:
        self.groups_per_step = groups_per_step
        self.capacity = (staleness + 1) * groups_per_step
        self.window = window
        self.attempts = attempts
        self.remaining = total  # groups that take() has yet to give
        self.next_sequence = next_sequence
        self._blocker = -1  # while it and older ones stay unfinished, the window forbids to take
        self.retried = self.orphaned = self.failed = 0  # given out again; of these, as their actor was lost; given up
        done = results or {}
        self._alive: dict[int, _Slot[Result]] = {n: _Slot(result=done.get(n)) for n in sorted(pending)}  # oldest first
        self._waiting = [n for n, slot in self._alive.items() if slot.result is None]  # a heap: those without a lease
        self._finished, self._training = len(self._alive) - len(self._waiting), 0

    def lease(self, actor: str, deadline: float) -> int | None:
        """The oldest group without a lease, or a fresh one if admission allows; else None."""
        first = islice(self._alive, self.capacity)  # a resumed run may hold more
        if self._waiting and (len(self._alive) <= self.capacity or self._waiting[0] in first):
            sequence = heapq.heappop(self._waiting)
            self._alive[sequence].actor, self._alive[sequence].deadline = actor, deadline
            return sequence
        if len(self._alive) >= self.capacity or len(self._alive) - self._training >= self.remaining:
            return None
        sequence = self.next_sequence
        self.next_sequence += 1
        self._alive[sequence] = _Slot(actor=actor, deadline=deadline)
        return sequence

    def submit(self, sequence: int, actor: str, result: Result) -> bool:
        """Whether the result is accepted: only from the one who holds the lease, so late duplicates are not."""
        slot = self._alive.get(sequence)
        if slot is None or slot.actor != actor:
            return False
        slot.actor, slot.result = None, result
        self._finished += 1
        self._moved(sequence)
        return True

    def extend(self, actor: str, sequences: Iterable[int], deadline: float) -> None:
        """A heartbeat: leases the actor still works on live on; any other runs out."""
        for sequence in sequences:
            slot = self._alive.get(sequence)
            if slot is not None and slot.actor == actor:
                slot.deadline = deadline

    def release(self, sequence: int, actor: str) -> bool:
        """Gives a lease back; whether the group is thereby given up for good (its ``attempts`` are used up)."""
        slot = self._alive.get(sequence)
        if slot is None or slot.actor != actor:
            return False
        slot.actor = None
        slot.attempts += 1
        self.retried += 1
        if slot.attempts < self.attempts:
            heapq.heappush(self._waiting, sequence)
            return False
        del self._alive[sequence]
        self.failed += 1
        self._moved(sequence)
        return True

    def drop(self, actor: str) -> None:
        """The actor is gone: its leases go back to the front. That is not the groups' fault, so no attempt counts."""
        for sequence, slot in self._alive.items():
            if slot.actor == actor:
                slot.actor = None
                heapq.heappush(self._waiting, sequence)
                self.retried += 1
                self.orphaned += 1

    def expired(self, now: float) -> list[tuple[int, str]]:
        """The leases whose deadline is over, to be released: ``[(sequence, actor)]``."""
        return [(n, slot.actor) for n, slot in self._alive.items() if slot.actor is not None and slot.deadline < now]

    def take(self) -> list[tuple[int, Result]] | None:
        """P finished groups, oldest first, or None while there are too few.

        A group that is not finished yet is passed over only as long as fewer than W younger ones have been.
        The last groups of the run come together, however few.
        """
        wanted = min(self.groups_per_step, self.remaining)
        if not self.enough() or self._blocker >= 0:
            return None
        chosen: list[tuple[int, Result]] = []
        passed: list[tuple[_Slot[Result], int]] = []  # (slot, how many were chosen before it)
        tightest = (-self.groups_per_step, -1)  # by how many it was overtaken, less those chosen before it; which
        for sequence, slot in self._untaken():
            if len(chosen) == wanted:
                break
            if slot.result is None:
                passed.append((slot, len(chosen)))
                tightest = max(tightest, (slot.overtaken - len(chosen), sequence))
            elif tightest[0] + len(chosen) < self.window - 1:
                chosen.append((sequence, slot.result))
            else:
                self._blocker = tightest[1]
                return None
        if len(chosen) < wanted or not chosen:
            return None
        for slot, before in passed:
            slot.overtaken += len(chosen) - before
        for sequence, _ in chosen:
            self._alive[sequence].training = True
            self._alive[sequence].result = None
        self.remaining -= len(chosen)
        self._finished -= len(chosen)
        self._training += len(chosen)
        return chosen

    def enough(self) -> bool:
        """Whether as many groups are finished as a step takes; the window may still forbid to take them."""
        return self._finished >= min(self.groups_per_step, self.remaining) > 0

    def published(self) -> None:
        """The weights of the step are with the engines: its slots are free."""
        self._alive = {sequence: slot for sequence, slot in self._alive.items() if not slot.training}
        self._training = 0

    def give_up_one(self) -> None:
        """One group fewer is wanted: for a fixed set of questions, where a failed one has no replacement."""
        self.remaining -= 1
        self._blocker = -1

    def untaken(self) -> list[int]:
        """Sequence numbers handed out and not yet in a step."""
        return [sequence for sequence, _ in self._untaken()]

    def finished(self) -> dict[int, Result]:
        """Results that wait to be taken."""
        return {sequence: slot.result for sequence, slot in self._alive.items() if slot.result is not None}

    def leased(self) -> int:
        return sum(slot.actor is not None for slot in self._alive.values())

    def _moved(self, sequence: int) -> None:
        if sequence <= self._blocker:
            self._blocker = -1

    def _untaken(self) -> list[tuple[int, _Slot[Result]]]:
        return [(sequence, slot) for sequence, slot in self._alive.items() if not slot.training]
