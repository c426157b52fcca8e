"""Which actor gets a prompt group that others could not do, and when such a group is given up for good.

The oldest group goes first, to an actor with a free slot: to one that has not had it, the least busy first, or else to
the one that had it the longest ago. So what says nothing about a group (an outage, a lost message, weights that were
replaced, an engine that ended with others in it) keeps no free actor from it. An actor that has *failed* at a group
waits until all others that may lease have had it since, because it is idle again at once and would be asked for ever.

A group is given up when so many attempts have failed for one cause as its limit says, and two machines have failed for
this cause, or all that are there. Those that still start are there, and the group waits for them; ``ActorRegistry``
leaves out those whose starts have failed before. A machine is a host, or an actor where all are on one host. Where
others have an outage each time, so that no second one ever fails, the group is given up by the next failure after each
of those who are there has had it ``_ENOUGH_TURNS`` times; and in any case, even if they come back under ever new names,
once failures for one cause are ``_ENOUGH_TURNS`` for each of those who are there above the limit.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property

_ENOUGH_TURNS = 3
_ENGINE = "engine"  # the cause of a failure of which Trials.engines_ended is the number


class Trials:
    """The attempts at one group that gave no result, and those who made them.

    Attributes:
        failed_attempts: number of attempts that have failed, by cause. They outlive the learner, see ``Setbacks``.
        engines_ended: number of engines that ended by themselves while they generated its answers; outlives it, too.
    """

    def __init__(self, failed_attempts: Mapping[str, int] | None = None, engines_ended: int = 0) -> None:
        self.failed_attempts = dict(failed_attempts or {})
        self.engines_ended = engines_ended
        # Those that had the group in this process and could not do it, the newest last: how often, and whether the last
        # time was a failure.
        self._had: dict[str, tuple[int, bool]] = {}
        self._failed: defaultdict[str, dict[str, str]] = defaultdict(dict)  # cause -> actor that failed -> its host
        self._is_at_limit = False  # it would have been given up, had others failed as well

    def add_outage(self, actor: str) -> None:
        """The actor gives the group back for a reason that says nothing about either."""
        self._note(actor, failed=False)

    def add_failure(self, actor: str, cause: str, limit: int, present: Mapping[str, str]) -> bool:
        """The actor has failed at the group. Returns whether the group is to be given up.

        Args:
            limit: how many attempts may fail for this cause.
            present: the hosts of all actors that are there, this one and those whose start is waited for too, by name.
        """
        self._note(actor, failed=True)
        self.failed_attempts[cause] = self.failed_attempts.get(cause, 0) + 1
        self._failed[cause][actor] = present[actor]
        return self._is_to_be_given_up(cause, self.failed_attempts[cause], limit, present)

    def add_ended_engine(self, actor: str, limit: int, present: Mapping[str, str], *, alone: bool) -> bool:
        """The actor's engine has ended while it generated the answers. Returns whether the group is to be given up.

        The first end says nothing about the group, unless the group was alone. It is given up only if it was.

        Args:
            limit: how many engines may end.
            present: as for ``add_failure``.
            alone: whether the engine generated nothing else.
        """
        self._note(actor, failed=alone)
        self.engines_ended += 1
        if alone or self.engines_ended > 1:
            self._failed[_ENGINE][actor] = present[actor]
        return alone and self._is_to_be_given_up(_ENGINE, self.engines_ended, limit, present)

    def turns(self, names: Iterable[str], able: Collection[str], present: Collection[str]) -> dict[str, int]:
        """Which of these actors may get the group now, by name: the larger the number, the later they had it.

        Whoever has not had it has -1. Whoever has failed at it may get it when all others have had it since.

        Args:
            names: of some actors that may lease.
            able: the names of all actors that may lease.
            present: the names of all actors that are there. A group at its limit waits for those that start as well.
        """
        places = {actor: place for place, actor in enumerate(self._had)}
        longest_ago = min(places.get(other, -1) for other in (present if self._is_at_limit else able))
        return {
            name: place
            for name in names
            if (place := places.get(name, -1)) <= longest_ago or not self._had.get(name, (0, False))[1]
        }

    def was_had(self) -> bool:
        """Whether any actor has had the group in this process and could not do it."""
        return bool(self._had)

    def _note(self, actor: str, *, failed: bool) -> None:
        times, _ = self._had.pop(actor, (0, False))
        self._had[actor] = times + 1, failed

    def _is_to_be_given_up(self, cause: str, count: int, limit: int, present: Mapping[str, str]) -> bool:
        if count < limit:
            return False
        if self._have_enough_failed(self._failed[cause], present):
            return True
        self._is_at_limit = True
        if count >= limit + _ENOUGH_TURNS * max(1, len(present)):
            return True
        return all(self._had.get(one, (0, False))[0] >= _ENOUGH_TURNS for one in present)

    @staticmethod
    def _have_enough_failed(failed: Mapping[str, str], present: Mapping[str, str]) -> bool:
        """Whether two machines have failed, or all that are there."""
        machines_failed, machines = set(failed.values()), set(present.values())
        if len(machines_failed | machines) <= 1:
            # One that has started again has another name by default, so only the names of those that are there count.
            machines_failed, machines = set(failed) & set(present), set(present)
        return len(machines_failed) > 1 or machines <= machines_failed


class FreeActors:
    """The actors that have free slots while groups are leased, and who of them gets a group.

    Args:
        free: (number of leases held, number of slots) of each actor that has free slots, by name.
        others: gives the names of all actors that may lease, and those of all that are there. It is asked once at most,
            for the first group that somebody has had: to name all takes a while, and most turns have none.
    """

    def __init__(
        self, free: Mapping[str, tuple[int, int]], others: Callable[[], tuple[Collection[str], Collection[str]]]
    ) -> None:
        self._held = {name: held for name, (held, _) in free.items()}
        self._slots = {name: slots for name, (_, slots) in free.items()}
        # A heap of (leases held, name). Entries that no longer agree with _held are passed over.
        self._by_load = sorted((held, name) for name, held in self._held.items())
        self._ask_for_others = others

    @cached_property
    def _others(self) -> tuple[Collection[str], Collection[str]]:
        return self._ask_for_others()

    def __bool__(self) -> bool:
        return bool(self._held)

    def choose(self, trials: Trials) -> str | None:
        """Who gets a group with these trials; None if it waits for actors that are busy or start."""
        if trials.was_had():
            return self._next_in_turn(trials, self._held)
        while self._by_load and self._held.get(self._by_load[0][1]) != self._by_load[0][0]:
            heapq.heappop(self._by_load)
        return self._by_load[0][1] if self._by_load else None

    def choose_empty(self, trials: Trials) -> str | None:
        """As ``choose``, among the actors that hold no lease."""
        return self._next_in_turn(trials, (name for name, held in self._held.items() if not held))

    def choose_soonest_empty(self, trials: Trials) -> str | None:
        """Of those that may get the group, the one with the fewest leases."""
        held = [(self._held[name], name) for name in trials.turns(self._held, *self._others)]
        return min(held)[1] if held else None

    def add_lease(self, name: str) -> None:
        """The actor has got one more."""
        self._held[name] += 1
        if self._held[name] >= self._slots[name]:
            self.remove(name)
        else:
            heapq.heappush(self._by_load, (self._held[name], name))

    def remove(self, name: str) -> None:
        """The actor is to get no more."""
        del self._held[name]

    def _next_in_turn(self, trials: Trials, names: Iterable[str]) -> str | None:
        turns = trials.turns(names, *self._others)
        return min(turns, key=lambda name: (turns[name], self._held[name], name), default=None)
