"""Counts what a state machine of hypothesis really did, so that a test can tell that it came everywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Steps of a state machine, and the points of the protocol at which events happened.

    Attributes:
        checks: calls of an invariant, of which there is one after each step and one or two before the first.
        examples: machines that were begun.
        met: (event, point) -> how often the event happened there.
    """

    checks: int = 0
    examples: int = 0
    met: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def steps(self) -> int:
        """Steps that were taken, at least."""
        return max(0, self.checks - 2 * self.examples)

    def note(self, event: str, points: Iterable[str]) -> None:
        """The event happened, and the protocol was at these points."""
        self.met.update((event, point) for point in points)

    def missing(self, expected: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
        """The points that an event never met, given those that it should meet."""
        return [(event, point) for event, points in expected.items() for point in points if not self.met[event, point]]

    def __str__(self) -> str:
        met = "\n".join(f"  {event:<24} {point:<36} {count}" for (event, point), count in sorted(self.met.items()))
        return f"{self.steps} steps of {self.examples} machines\n{met}"
