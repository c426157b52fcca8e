"""What is known of the policy that the KL is taken to, its anchor, as training and checkpoints both have it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Anchor:
    """The anchor of a run.

    Args:
        moved: whether it is no longer the policy that the run began with. Not known of adapters, whose anchor is among
            the parameters of the policy in any case.
        stage: number of the stage for which it was last set, from 0; None where a checkpoint does not say it, as those
            of a run without stages and of earlier versions of this program.
    """

    moved: bool
    stage: int | None
