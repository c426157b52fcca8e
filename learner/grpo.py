"""GRPO across languages as pure functions of tensors (LRPO, arXiv 2605.25360, section 6 of the method).

The group of a question holds rollouts in several languages; its advantages are normalised together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def advantages(rewards: NDArray[np.float32], *, divide_by_std: bool, eps: float = 1e-6) -> NDArray[np.float32]:
    """A_i = (r_i − mean r) / (std r + eps), population std; without the division if not ``divide_by_std``.

    Args:
        rewards: [K] of one group.

    Returns:
        [K] float32; all zero when the rewards are equal.
    """
    centred = rewards - rewards.mean()
    if divide_by_std:
        centred = centred / (rewards.std() + eps)
    result: NDArray[np.float32] = centred.astype(np.float32)
    return result


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss of a token.

    Args:
        clip_low, clip_high: the ratio π/π_old is clipped to [1 − clip_low, 1 + clip_high].
        dual_clip: with a negative advantage the loss is at most −dual_clip · A (arXiv 1912.09729).
        kl: weight of the k3 estimate of KL(π ‖ π_ref), exp(d) − d − 1 with d = log π_ref − log π.
        importance_cap: the weight π_old/π_behaviour is truncated here (truncated importance sampling).
    """

    clip_low: float
    clip_high: float
    kl: float
    importance_cap: float
    dual_clip: float = 3.0

    def __call__(
        self, logp: Tensor, old_logp: Tensor, behaviour_logp: Tensor, advantage: Tensor, ref_logp: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses and detached statistics, each [tokens] float32.

        Args:
            logp: of the policy being trained, with gradient.
            old_logp: of the policy at the beginning of the step, the one the ratio is taken against.
            behaviour_logp: as the engine sampled it, maybe some versions ago.
            advantage: of the rollout the token belongs to.
            ref_logp: of the initial policy; None when kl is 0.
        """
        ratio = torch.exp(logp - old_logp)
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        surrogate = torch.maximum(-advantage * ratio, -advantage * clipped)
        surrogate = torch.where(advantage < 0, torch.minimum(surrogate, -advantage * self.dual_clip), surrogate)
        drift = (old_logp - behaviour_logp).detach()
        weight = torch.exp(drift).clamp(max=self.importance_cap)
        loss = weight * surrogate
        stats = {
            "clip_share": ((ratio < 1 - self.clip_low) | (ratio > 1 + self.clip_high)).float(),
            "importance_weight": weight,
            "mismatch": drift.abs(),
        }
        if ref_logp is not None:
            difference = ref_logp - logp
            k3 = torch.exp(difference) - difference - 1
            loss = loss + self.kl * k3
            stats["kl"] = k3.detach()
        return loss, stats
