"""What the learner is about: a prompt group that came back, what became of it, and what a training step did.

These types depend on no socket, so that training, checkpoints and recordings do not either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from common import wire

Outcome = Literal[
    "trained",
    "zero_variance",  # all its answers have the advantage 0, and learner.drop_zero_variance is set
    "masked",  # no answer may carry gradient: each hit the length limit (learner.mask_truncated) or was not scored
    "skipped",  # the loss or the gradient of its step was not finite, so the step was not taken
    "failed",  # given up, for the reason that stands in its ledger line
    "passed_over",  # it taught nothing lately (data.curriculum), so the next question was asked in its place
    "stale",  # its answers are too old for the staleness bound, which a resume may lower; the question is asked again
]


class Group(wire.WireStruct):
    """A prompt group that came back: what was asked, which actor answered, and its K rollouts.

    Args:
        work: the question with the K languages asked for and their propensities.
        actor: name of the actor that answered.
        rollouts: [K], in the order of ``work.languages``.
        note: a remark for the ledger, such as that answers were cut; usually empty.
        timing: seconds that the actor spent on the group's stages.
        advantages: [K], where ``learner.step_reward`` gives them; empty otherwise.
    """

    work: wire.Work
    actor: str
    rollouts: list[wire.Rollout]
    note: str = ""
    timing: wire.Timing | None = None
    advantages: list[float] = msgspec.field(default_factory=list)

    def cost(self) -> dict[str, Any]:
        """What the ledger keeps of the cost: ``actor``, ``lengths`` [K] of the responses in tokens, and ``timing``."""
        lengths = [len(rollout.response_ids) for rollout in self.rollouts]
        return {"actor": self.actor, "lengths": lengths, "timing": self.timing and msgspec.structs.asdict(self.timing)}


@dataclass(frozen=True)
class StepResult:
    """What one training step did; every mean is over the response tokens that carry gradient.

    Args:
        means: statistic -> its mean; ``loss`` is the loss itself, the mean over the step's optimizer steps.
        by_language: statistic -> language -> the mean over this language's tokens.
        fill: share of the micro-batches' capacity, ``learner.microbatch_tokens`` each, that the tokens fill.
        grad_norm: norm of the gradient before it was clipped, the mean over the optimizer steps.
        lr: learning rate of the step.
        problem: empty, or which loss or gradient was not finite; that optimizer step was left out, and counts in no
            mean.
        by_lag: statistic -> lag in policy updates -> the mean over the tokens of this lag.
        by_actor: statistic -> actor -> the mean over the tokens that this actor made.
        skipped: indices of the batch's groups whose optimizer steps were all left out.
        gradient_noise: the share of the first optimizer step's squared gradient norm that is noise
            (``learner/train/gradient_noise.py``); None where it was not measured or cannot be told.
        optimizer_steps: how many there were to take, and how many of them were ``left_out``.
    """

    means: dict[str, float]
    by_language: dict[str, dict[str, float]]
    fill: float
    grad_norm: float
    lr: float
    problem: str = ""
    by_lag: dict[str, dict[int, float]] = field(default_factory=dict)
    by_actor: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: frozenset[int] = frozenset()
    gradient_noise: float | None = None
    optimizer_steps: int = 1
    left_out: int = 0


def token_lags(batch: Sequence[Group], version: int) -> NDArray[np.int32]:
    """The lag of each response token of a batch, in policy updates, in the step that trains on it: [tokens] int32.

    Args:
        version: the policy version that the step begins with.
    """
    lags: NDArray[np.int32] = version - np.concatenate([r.versions for group in batch for r in group.rollouts])
    return lags
