"""What is known of the reference policy, to which the KL is taken, as training and checkpoints both have it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReferenceState:
    """Which policy the reference of a run is.

    Args:
        moved: whether it is no longer the policy that the run began with, and is there. Of adapters, after a resume:
            whether the checkpoint has those of the reference, moved or not.
        stage: number of the stage for which it was last set, from 0; None where a checkpoint does not say it, as those
            of a run that never had stages and of earlier versions of this program.
    """

    moved: bool
    stage: int | None
