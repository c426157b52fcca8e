"""The policy-gradient losses of the field: what a token's loss is before importance weight, KL and entropy.

Pure functions of tensors, each with its paper. π is the policy being trained, π_old the one that the ratio is taken
against, A the advantage of the answer. Every function returns the loss [R], with the gradient of ``logp_R``, and
whether the clip of the ratio has changed the token's loss, [R] bool. Of ``ppo`` and ``gspo`` that is a token of which
the loss takes the clipped ratio: A > 0 above the upper bound, or A < 0 below the lower one (verl's ``pg_clipfrac``,
TRL's ``clip_ratio/region_mean``). Of ``cispo`` it is one whose weight is clipped, for any A but 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST_LOG_RATIO = 20.0  # nats; far outside every bound, and its exponential is finite


def ppo(
    logp_R: Tensor, old_logp_R: Tensor, advantage_R: Tensor, *, low: float, high: float, dual_clip: float = 0.0
) -> tuple[Tensor, Tensor]:
    """PPO's clip (arXiv 1707.06347, equation 7) with bounds of their own on each side (DAPO, arXiv 2503.14476, eq. 10).

    With r = π / π_old: −min(r A, clip(r, 1 − low, 1 + high) A). For a negative A it is at most −dual_clip · A
    (dual clip, arXiv 1912.09729).

    Args:
        dual_clip: above 1; 0 for none.
    """
    ratio_R = torch.exp((logp_R - old_logp_R).clamp(max=_LARGEST_LOG_RATIO))
    clipped_R = ratio_R.clamp(1 - low, 1 + high)
    loss_R = torch.maximum(-advantage_R * ratio_R, -advantage_R * clipped_R)
    if dual_clip:
        loss_R = torch.where(advantage_R < 0, torch.minimum(loss_R, -advantage_R * dual_clip), loss_R)
    return loss_R, _takes_the_clipped(ratio_R, advantage_R, low, high)


def gspo(
    logp_R: Tensor, old_logp_R: Tensor, advantage_R: Tensor, sequence_R: Tensor, *, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """GSPO (arXiv 2507.18071): the ratio of the whole answer, clipped as PPO clips that of a token.

    s = exp(mean over the answer's tokens of log π − log π_old) (equation 7), and for token t (equation 14)
    s_t = sg(s) · π_t / sg(π_t), which is s with the gradient of one token; the loss is −min(s_t A, clip(s_t) A). Summed
    over an answer with equal weights, value and gradient are those of −min(s A, clip(s) A) (equation 5).

    Args:
        sequence_R: [R] int64, which answer the token belongs to, from 0; an answer is never divided.
    """
    difference_R = (logp_R - old_logp_R).detach()
    # There is room for one answer a token: their number is not asked for, which would have the host wait for the GPU.
    sums_S = torch.zeros_like(difference_R).index_add_(0, sequence_R, difference_R)
    counts_S = torch.zeros_like(difference_R).index_add_(0, sequence_R, torch.ones_like(difference_R))
    mean_R = (sums_S / counts_S)[sequence_R].clamp(max=_LARGEST_LOG_RATIO)
    ratio_R = torch.exp(logp_R - logp_R.detach() + mean_R)
    clipped_R = ratio_R.clamp(1 - low, 1 + high)
    loss_R = torch.maximum(-advantage_R * ratio_R, -advantage_R * clipped_R)
    return loss_R, _takes_the_clipped(ratio_R, advantage_R, low, high)


def cispo(logp_R: Tensor, old_logp_R: Tensor, advantage_R: Tensor, *, low: float, high: float) -> tuple[Tensor, Tensor]:
    """CISPO (MiniMax-M1, arXiv 2506.13585, equations 4 and 5): −sg(clip(π / π_old, 1 − low, 1 + high)) · A · log π.

    The clip limits the weight of a token's gradient and never drops a token. The paper has no lower bound, which is
    ``low`` ≥ 1. TRL's ``epsilon_high`` is 1 + ``high``.
    """
    ratio_R = torch.exp((logp_R - old_logp_R).clamp(max=_LARGEST_LOG_RATIO)).detach()
    outside_R = (ratio_R < 1 - low) | (ratio_R > 1 + high)
    return -ratio_R.clamp(1 - low, 1 + high) * advantage_R * logp_R, outside_R & (advantage_R != 0)


def _takes_the_clipped(ratio_R: Tensor, advantage_R: Tensor, low: float, high: float) -> Tensor:
    """Where the clipped surrogate is the smaller one; the dual clip, which bounds the other, is not counted."""
    return ((advantage_R > 0) & (ratio_R > 1 + high)) | ((advantage_R < 0) & (ratio_R < 1 - low))
