"""Where an actor's time goes: the seconds in each of its states, and how many groups were generated at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from common.stopwatch import Stopwatch


@dataclass
class GenerationTime:
    """What the generation of one group took; filled in when the generation has ended."""

    seconds: float = 0.0  # without pauses for weight updates
    mean_groups: float = 0.0  # groups being generated meanwhile, this one included, on average over ``seconds``
    groups_at_end: int = 0  # groups being generated when this one ended, this one included


class ActorTimes:
    """Books the time since the last change of state under the state that the actor was in.

    The states, of which the first that applies counts:

    * ``sync``: a weight update is under way;
    * ``generate``: the engine generates at least one group;
    * ``wait_reward``: the actor holds groups, all of them generated, which are being scored or delivered;
    * ``wait_work``: the actor holds no group.
    """

    def __init__(self) -> None:
        self._stopwatch = Stopwatch()
        self._booked_until = time.monotonic()
        self._groups_held = 0
        self._groups_generating = 0
        self._syncing = False
        self._generating_s = 0.0  # seconds in which at least one group was generated, without weight updates
        self._generating_group_s = 0.0  # the same, times the number of groups

    def set_groups_held(self, count: int) -> None:
        """Says how many groups the actor holds from now on."""
        if count < self._groups_held:  # the time before a new group is booked under the state that follows
            self._book()
        self._groups_held = count

    @contextmanager
    def generating(self) -> Iterator[GenerationTime]:
        """Surrounds the generation of a group."""
        self._book()
        self._groups_generating += 1
        spent = GenerationTime()
        generating_s, generating_group_s = self._generating_s, self._generating_group_s
        try:
            yield spent
        finally:
            self._book()
            spent.seconds = self._generating_s - generating_s
            spent.mean_groups = (self._generating_group_s - generating_group_s) / max(spent.seconds, 1e-9)
            spent.groups_at_end = self._groups_generating
            self._groups_generating -= 1

    @contextmanager
    def syncing(self) -> Iterator[None]:
        """Surrounds a weight update, from the pause until generation goes on."""
        self._book()
        self._syncing = True
        try:
            yield
        finally:
            self._book()
            self._syncing = False

    def seconds(self) -> dict[str, float]:
        """State -> seconds since the actor's life began."""
        self._book()
        return self._stopwatch.seconds()

    def describe_shares(self) -> str:
        """The share of each state, as in ``generate 80%, wait_work 20%``."""
        seconds = self.seconds()
        total = sum(seconds.values()) or 1.0
        return ", ".join(f"{state} {spent / total:.0%}" for state, spent in sorted(seconds.items()))

    def _book(self) -> None:
        now = time.monotonic()
        elapsed = now - self._booked_until
        self._booked_until = now
        self._stopwatch.add(self._state(), elapsed)
        if self._groups_generating and not self._syncing:
            self._generating_s += elapsed
            self._generating_group_s += elapsed * self._groups_generating

    def _state(self) -> str:
        if self._syncing:
            return "sync"
        if self._groups_generating:
            return "generate"
        return "wait_reward" if self._groups_held else "wait_work"
