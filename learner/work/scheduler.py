"""The work queue: which prompt group is leased next and which finished groups a training step takes.

Its rules are those of the staleness bound: it admits only so many groups at a time, gives them to steps oldest first,
and gives each of them to exactly one step. ``docs/staleness.md`` proves the bound. The module is bookkeeping alone: it
reads no clock, opens no socket and starts no thread, and it is not thread-safe. Whether the *answers* of a group are
valid is not decided here but in ``learner/work/admission.py``.

Which actor gets a group that others could not do, and when it is given up for good, is decided in
``learner/work/turns.py``.

With *refill* a finished group that is of no use for training is set aside, and its slot is free at once for another
question, so that a step has P groups that are. The groups set aside are handed to that step as well, to be reported and
entered with it.

Symbols: P = ``learner.groups_per_step``, S = ``learner.staleness``, W = ``learner.window``.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

from learner.work.turns import Trials

Result = TypeVar("Result")


def staleness_bound(groups_per_step: int, staleness: int, window: int) -> int:
    """The largest possible lag: ⌊((S + 1)P + W − 2) / P⌋ policy updates for S ≥ 1, and 0 for S = 0.

    The lag of a token is the number of policy updates between the weights that produced it and the step that trains on
    it. When a group is leased, at most (S + 1)P − 1 other groups are alive, and later at most W − 1 younger groups are
    trained before it. Every step before its own uses up P of these. For S = 0, all groups alive belong to the same
    step, so that none is trained before another.

    Args:
        groups_per_step: P, at least 1.
        staleness: S, at least 0.
        window: W, at least 1.
    """
    if staleness == 0:
        return 0
    return ((staleness + 1) * groups_per_step + window - 2) // groups_per_step


def find_stale(
    pending: Iterable[int],
    versions: Mapping[int, int],
    step: int,
    groups_per_step: int,
    bound: int,
    aside: Collection[int] = (),
) -> list[int]:
    """The finished groups of a resumed run that could be trained with a larger lag than ``bound``.

    There are none unless P, S or W has changed. Steps take the oldest finished groups, so nothing younger is trained
    before a finished group, and the one at place i of the groups alive is trained ⌊i / P⌋ steps from now at the latest.

    Args:
        pending: sequence numbers of the groups alive.
        versions: of the finished ones, the oldest policy version of their tokens.
        step: how many steps were trained; the version of the policy now.
        groups_per_step: P.
        bound: largest lag allowed, in policy updates.
        aside: those of ``pending`` that hold no slot, and go with the next step.
    """
    places = [(0, n) for n in aside] + list(enumerate(sorted(set(pending) - set(aside))))
    return [n for place, n in places if n in versions and step + place // groups_per_step - versions[n] > bound]


@dataclass(frozen=True)
class Setbacks:
    """What is held against a group: it outlives the learner, because a group that ends engines may end it again."""

    sequence: int
    failed_attempts: dict[str, int]  # by cause
    engines_ended: int  # by themselves, while they generated its answers


@dataclass
class _Slot(Generic[Result]):
    """The state of one group that is alive."""

    actor: str | None = None  # the actor that holds the lease; None while there is no lease
    deadline: float = 0.0  # of the lease, on the caller's clock
    trials: Trials = field(default_factory=Trials)
    overtaken: int = 0  # number of younger groups that steps have taken before this one
    result: Result | None = None  # present from the answer until a step takes it
    training: bool = False  # a step has taken it, and the weights of that step are not yet published


class WorkQueue(Generic[Result]):
    """Hands out sequence numbers 0, 1, 2, … and collects one result for each.

    A group is alive from its first lease until the weights of its step are published. At most (S + 1)P groups are alive
    at a time. Not thread-safe, and no method blocks.

    Args:
        groups_per_step: P.
        staleness: S.
        window: W; a step may pass over an unfinished group until W − 1 younger groups have been taken before it.
        attempts: how often a group may fail for the same cause before it is given up for good, by the rules of
            ``learner/work/turns.py``.
        engines: how many engines may end by themselves while they generate the answers of a group. From then on the
            group is leased alone, and it is given up by the same rules if it was alone when the last of them ended.
        total: number of groups that steps are still to take; no group is leased beyond it.
        next_sequence: the first new sequence number, when a run resumes.
        pending: when a run resumes, the sequence numbers handed out before and not yet trained.
        results: when a run resumes, the results of those pending groups that were finished.
        setbacks: when a run resumes, what is held against some of the pending groups.
        refill: most groups that are set aside for one step.
        is_useful: whether a result is of use for training. Those that are not are set aside, up to ``refill`` for each
            step; further ones count as all others.

    Examples:
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
        engines: int = 2,
        total: int,
        next_sequence: int = 0,
        pending: Iterable[int] = (),
        results: Mapping[int, Result] | None = None,
        setbacks: Iterable[Setbacks] = (),
        refill: int = 0,
        is_useful: Callable[[Result], bool] = lambda _: True,
    ) -> None:
        self.groups_per_step = groups_per_step
        self.capacity = (staleness + 1) * groups_per_step
        self.window = window
        self.attempts = attempts
        self.engines = engines
        self.remaining = total  # number of groups that take() has yet to return
        self.next_sequence = next_sequence
        self.retried = 0  # leases that ended without a result, after which the group was offered again or given up
        self.orphaned = 0  # those of the retried leases that ended because their actor was gone
        self.failed = 0  # groups given up for good
        # The unfinished group because of which the window forbids the next step to take anything, or -1. While it and
        # all older groups stay as they are, take() need not look again.
        self._blocker = -1
        done = results or {}
        # Ordered from the oldest group to the youngest.
        self._alive: dict[int, _Slot[Result]] = {n: _Slot(result=done.get(n)) for n in sorted(pending)}
        for one in setbacks:
            self._alive[one.sequence].trials = Trials(one.failed_attempts, one.engines_ended)
        unleased = [n for n, slot in self._alive.items() if slot.result is None]
        self._waiting = [n for n in unleased if not self.is_suspect(n)]  # those without a lease, the oldest first
        self._suspects = [n for n in unleased if self.is_suspect(n)]  # as well, of those that are leased alone
        self._finished, self._training = len(self._alive) - len(unleased), 0  # numbers of slots in these states
        self._refill, self._is_useful = refill, is_useful
        self._aside: dict[int, Result] = {}  # results that the next step gets beside its P groups; they hold no slot
        for sequence in sorted(done):
            self._set_aside_if_useless(sequence, done[sequence])

    def offers(self) -> Iterator[int]:
        """The groups that may be leased now beside others: those that wait, the oldest first, and then new ones.

        A new one is offered only after the one before it was leased.
        """
        yield from self._admitted(self._waiting)
        while len(self._alive) < self.capacity and len(self._alive) - self._training < self.remaining:
            offered = self.next_sequence
            yield offered
            if offered == self.next_sequence:
                break

    def suspects(self) -> list[int]:
        """The groups that may have ended engines and have no lease, the oldest first.

        An actor that gets one of them must hold no other group, and must get none while it holds this one.
        """
        return self._admitted(self._suspects)

    def trials(self, sequence: int) -> Trials:
        """The attempts at a group that gave no result; a new group has none."""
        slot = self._alive.get(sequence)
        return Trials() if slot is None else slot.trials

    def lease(self, actor: str, deadline: float, sequence: int | None = None) -> int | None:
        """Leases a group.

        Args:
            actor: who gets the lease.
            deadline: when the lease expires, on the clock that ``expired`` is called with.
            sequence: one of ``offers`` or ``suspects``; None means the first of ``offers``.

        Returns: the sequence number, or None if nothing is offered.
        """
        if sequence is None and (sequence := next(self.offers(), None)) is None:
            return None
        if sequence == self.next_sequence:
            self.next_sequence += 1
            self._alive[sequence] = _Slot()
        else:
            unleased = self._suspects if self.is_suspect(sequence) else self._waiting
            place = bisect_left(unleased, sequence)
            assert unleased[place : place + 1] == [sequence], f"group {sequence} is not offered"
            del unleased[place]
        self._alive[sequence].actor, self._alive[sequence].deadline = actor, deadline
        return sequence

    def is_suspect(self, sequence: int) -> bool:
        """Whether the group is one that is leased alone."""
        slot = self._alive.get(sequence)
        return slot is not None and slot.trials.engines_ended >= self.engines

    def submit(self, sequence: int, actor: str, result: Result) -> bool:
        """Stores the result of a group, and returns whether it was accepted.

        Only the actor that holds the lease may submit, so a duplicate or an answer after the lease was lost is refused.
        """
        slot = self._alive.get(sequence)
        if slot is None or slot.actor != actor:
            return False
        slot.actor, slot.result = None, result
        self._finished += 1
        self._set_aside_if_useless(sequence, result)
        self._forget_blocker(sequence)
        return True

    def extend(self, actor: str, sequences: Iterable[int], deadline: float) -> None:
        """Moves the deadline of those leases that the actor says it still works on. Its other leases are left alone."""
        for sequence in sequences:
            slot = self._alive.get(sequence)
            if slot is not None and slot.actor == actor:
                slot.deadline = deadline

    def postpone(self, seconds: float, latest: float) -> None:
        """Moves the deadlines of all leases by so many seconds, but not beyond ``latest``."""
        for slot in self._alive.values():
            slot.deadline = max(slot.deadline, min(latest, slot.deadline + seconds))

    def put_back(self, sequence: int, actor: str) -> None:
        """Ends a lease without a result, for a reason that says nothing about the group: no attempt is counted.

        Does nothing if the actor does not hold the lease.
        """
        slot = self._alive.get(sequence)
        if slot is not None and slot.actor == actor:
            slot.trials.add_outage(actor)
            self.retried += 1
            self._offer(sequence)

    def release(
        self,
        sequence: int,
        actor: str,
        cause: str = "",
        attempts: int | None = None,
        present: Mapping[str, str] | None = None,
    ) -> bool:
        """Ends a lease without a result and counts a failed attempt; the group is offered again, or given up for good.

        Args:
            sequence: of the group.
            actor: must hold the lease.
            cause: attempts are counted for each cause apart.
            attempts: how many may fail for it; None means those of the constructor.
            present: the hosts of all actors that are there, also of those that start, by name. None means that no other
                is.

        Returns: whether the group was given up. False, too, if the actor does not hold the lease.
        """
        slot = self._alive.get(sequence)
        if slot is None or slot.actor != actor:
            return False
        self.retried += 1
        limit = self.attempts if attempts is None else attempts
        if slot.trials.add_failure(actor, cause, limit, {actor: ""} if present is None else present):
            self._give_up(sequence)
            return True
        self._offer(sequence)
        return False

    def end_engine(self, actor: str, sequences: Iterable[int], present: Mapping[str, str] | None = None) -> int | None:
        """Notes that an engine has ended by itself while it generated the answers of these groups of an actor.

        Args:
            present: as for ``release``.

        Returns: the group that was given up for it, if there is one. The leases of the others go on.
        """
        held = [n for n in sequences if n in self._alive and self._alive[n].actor == actor]
        present, alone = {actor: ""} if present is None else present, len(held) == 1
        for sequence in held:
            if self._alive[sequence].trials.add_ended_engine(actor, self.engines, present, alone=alone):
                self.retried += 1
                self._give_up(sequence)
                return sequence
        return None

    def release_all(self, actor: str) -> None:
        """Ends all leases of an actor that is gone. No attempt is counted, because the groups are not at fault."""
        for sequence, slot in self._alive.items():
            if slot.actor == actor:
                self._offer(sequence)
                self.retried += 1
                self.orphaned += 1

    def ask_again(self, sequence: int) -> None:
        """Drops the result of a finished group, which is too old, and offers the group again. No attempt is counted.

        One that was set aside gets a slot again, at its old place; until another is free there is one more than usual.
        """
        if sequence in self._aside:
            del self._aside[sequence]
            self._alive = dict(sorted([*self._alive.items(), (sequence, _Slot())]))
        else:
            self._alive[sequence].result = None
            self._finished -= 1
        self.retried += 1
        self._offer(sequence)

    def expired(self, now: float) -> list[tuple[int, str]]:
        """The leases whose deadline has passed, as ``[(sequence, actor)]``; the caller is to release them."""
        return [(n, slot.actor) for n, slot in self._alive.items() if slot.actor is not None and slot.deadline < now]

    def take(self) -> list[tuple[int, Result]] | None:
        """Takes the P oldest finished groups for a training step, and with them those that were set aside.

        An unfinished group is passed over only as long as fewer than W younger groups have been taken before it. The
        last groups of the run are taken together, even if they are fewer than P.

        Returns: ``[(sequence, result)]`` from old to young; None if too few groups are finished, or if the window
            requires an unfinished one to be waited for.
        """
        wanted = min(self.groups_per_step, self.remaining)
        if not self.has_full_batch() or self._blocker >= 0:
            return None
        chosen: list[tuple[int, Result]] = []
        passed_over: list[tuple[_Slot[Result], int]] = []  # (slot, number of groups chosen before it)
        # Of the groups passed over, the one nearest to its limit: (how often it was overtaken in earlier steps, minus
        # the number of groups chosen before it in this step; its sequence number).
        tightest = (-self.groups_per_step, -1)
        for sequence, slot in self._untaken_slots():
            if len(chosen) == wanted:
                break
            if slot.result is None:
                passed_over.append((slot, len(chosen)))
                tightest = max(tightest, (slot.overtaken - len(chosen), sequence))
            elif tightest[0] + len(chosen) < self.window - 1:
                chosen.append((sequence, slot.result))
            else:
                self._blocker = tightest[1]
                return None
        if len(chosen) < wanted or not chosen:
            return None
        for slot, chosen_before in passed_over:
            slot.overtaken += len(chosen) - chosen_before
        for sequence, _ in chosen:
            self._alive[sequence].training = True
            self._alive[sequence].result = None
        self.remaining -= len(chosen)
        self._finished -= len(chosen)
        self._training += len(chosen)
        chosen = sorted([*chosen, *self._aside.items()], key=lambda one: one[0])
        self._aside = {}
        return chosen

    def has_full_batch(self) -> bool:
        """Whether enough groups for a step are finished. ``take`` may still return None because of the window."""
        return self._finished >= min(self.groups_per_step, self.remaining) > 0

    def mark_published(self) -> None:
        """Frees the slots of the groups in training: the engines have the weights of their step."""
        self._alive = {sequence: slot for sequence, slot in self._alive.items() if not slot.training}
        self._training = 0

    def lower_total(self) -> None:
        """Makes the total one group smaller.

        This is for a fixed set of questions, in which a group that was given up is not replaced by another question.
        """
        self.remaining -= 1
        self._blocker = -1

    def untaken(self) -> list[int]:
        """The sequence numbers that were handed out and that no step has taken yet."""
        return sorted([*(sequence for sequence, _ in self._untaken_slots()), *self._aside])

    def finished(self) -> dict[int, Result]:
        """The results that wait for a step, by sequence number, those set aside included."""
        waiting = {sequence: slot.result for sequence, slot in self._alive.items() if slot.result is not None}
        return waiting | self._aside

    def setbacks(self) -> list[Setbacks]:
        """What is held against the groups that no step has taken yet, of those against which anything is."""
        return [
            Setbacks(sequence, dict(slot.trials.failed_attempts), slot.trials.engines_ended)
            for sequence, slot in self._untaken_slots()
            if slot.trials.failed_attempts or slot.trials.engines_ended
        ]

    def count_leased(self) -> int:
        """The number of leases that are held now."""
        return sum(slot.actor is not None for slot in self._alive.values())

    def _set_aside_if_useless(self, sequence: int, result: Result) -> None:
        """Frees the slot of a finished group that is of no use, if the next step may have one more of these."""
        if len(self._aside) < self._refill and not self._is_useful(result):
            del self._alive[sequence]
            self._finished -= 1
            self._aside[sequence] = result

    def _admitted(self, sequences: list[int]) -> list[int]:
        """Those that may be leased again: a run that resumes with a smaller S may hold more than it admits."""
        if len(self._alive) <= self.capacity:
            return list(sequences)
        admitted = set(islice(self._alive, self.capacity))
        return [sequence for sequence in sequences if sequence in admitted]

    def _offer(self, sequence: int) -> None:
        self._alive[sequence].actor = None
        insort(self._suspects if self.is_suspect(sequence) else self._waiting, sequence)

    def _give_up(self, sequence: int) -> None:
        del self._alive[sequence]
        self.failed += 1
        self._forget_blocker(sequence)

    def _forget_blocker(self, sequence: int) -> None:
        """Lets ``take`` look again if the group that changed is the blocking one, or older."""
        if sequence <= self._blocker:
            self._blocker = -1

    def _untaken_slots(self) -> list[tuple[int, _Slot[Result]]]:
        return [(sequence, slot) for sequence, slot in self._alive.items() if not slot.training]
