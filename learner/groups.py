"""A prompt group as it comes back from an actor: what was asked, by whom it was answered, and its K rollouts."""

from __future__ import annotations

from typing import Any

import msgspec

from common import wire


class Group(wire.WireStruct):
    """A group as it comes back: what was asked, by whom it was done, and its K answers."""

    work: wire.Work
    actor: str
    rollouts: list[wire.Rollout]
    note: str = ""  # for the ledger
    timing: wire.Timing | None = None

    def took(self) -> dict[str, Any]:
        """For the ledger: by whom, how many tokens, how long."""
        lengths = [len(rollout.response_ids) for rollout in self.rollouts]
        return {"actor": self.actor, "lengths": lengths, "timing": self.timing and msgspec.structs.asdict(self.timing)}
