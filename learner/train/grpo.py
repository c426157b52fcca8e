"""The equations of GRPO across languages, as pure functions (LRPO, arXiv 2605.25360).

A prompt group holds K rollouts in several languages, and its advantages are normalised over all of them together.

Shape suffixes in this folder: K rollouts of one group, N rollouts of a step, T tokens and R response tokens of a
micro-batch, D hidden size, V vocabulary. ``logp_R`` is a tensor of shape [R].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

AdvantageForm = Literal["gated", "split"]
Aggregation = Literal["token", "sequence", "fertility"]
Correction = Literal["truncate", "mask", "none"]


def advantages(
    rewards_K: NDArray[np.float64],
    compliant_K: NDArray[np.bool_],
    *,
    form: AdvantageForm,
    divide_by_std: bool,
    ddof: int = 1,
    compliance_weight: float = 1.0,
    eps: float = 1e-6,
) -> NDArray[np.float64]:
    """The advantage of each of the K rollouts of a group; all are zero when there is nothing to learn.

    With N(x) = (x − mean x) / (std x + eps), where std x = √(Σ(x − mean x)² / (n − ddof)) over the n values, and
    N(x) = x − mean x unless ``divide_by_std``:

    * ``gated``: N(r). Here r is 0 for a rollout that left its language, so one such failure outweighs all differences
      in quality.
    * ``split``: c · N(r over the compliant rollouts) + compliance_weight · (c − mean c), where c is 1 for a compliant
      rollout and 0 for any other. Quality is compared among compliant rollouts alone.

    Args:
        rewards_K: [K] float64, the quality of a compliant rollout and 0 for any other.
        compliant_K: [K] bool, whether the rollout kept to its language.
        ddof: 1 for the deviation of a sample, as torch.std in verl and TRL has it; 0 for that of a population.

    Returns:
        [K] float64. They sum to 0 in either form.
    """

    def normalised(values: NDArray[np.float64]) -> NDArray[np.float64]:
        if not np.ptp(values):
            return np.zeros(len(values))  # exactly zero: the mean of equal values may differ from them by rounding
        centred: NDArray[np.float64] = values - values.mean()
        return centred / (values.std(ddof=ddof) + eps) if divide_by_std else centred

    if form == "gated":
        return normalised(rewards_K)
    result: NDArray[np.float64] = compliance_weight * (compliant_K - compliant_K.mean())
    if compliant_K.any():
        result[compliant_K] += normalised(rewards_K[compliant_K])
    return result


def token_weights(
    lengths_N: Sequence[int], languages_N: Sequence[str], aggregation: Aggregation
) -> NDArray[np.float64]:
    """The weight in the loss of each token of a rollout. Over all response tokens of the step the weights sum to 1.

    * ``token``: 1 / Σn. Every token counts alike.
    * ``sequence``: 1 / (N · n_i). Every rollout counts alike.
    * ``fertility``: 1 / (N · f), where f is the mean length of the step's rollouts in the same language. A language
      counts by its number of rollouts, however many tokens it needs to say the same, and within a language every
      token counts alike.

    Args:
        lengths_N: number of response tokens n_i of each of the N rollouts of the step, those of all ranks.
        languages_N: the language of each of these rollouts.

    Returns:
        [N] float64.
    """
    sizes = np.array(lengths_N, np.float64)
    if aggregation == "token":
        return np.full(len(sizes), 1 / max(sizes.sum(), 1))
    if aggregation == "sequence":
        return 1 / (len(sizes) * sizes)
    rollouts, tokens = Counter(languages_N), Counter[str]()
    for language, size in zip(languages_N, lengths_N, strict=True):
        tokens[language] += size
    return np.array([rollouts[language] / (len(sizes) * tokens[language]) for language in languages_N])


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss of a response token: a clipped surrogate times an importance weight, plus a KL penalty.

    Args:
        clip_low, clip_high: the ratio π/π_old is clipped to [1 − clip_low, 1 + clip_high].
        dual_clip: with a negative advantage A the loss is at most −dual_clip · A (arXiv 1912.09729).
        kl: weight of the k3 estimate of KL(π ‖ π_ref), which is exp(d) − d − 1 with d = log π_ref − log π.
        correction: how the importance weight π_old/π_behaviour is limited. ``truncate``: to ``importance_cap``
            (truncated importance sampling). ``mask``: a token whose weight is outside
            [importance_floor, importance_cap] weighs 0 (IcePop). ``none``: it is 1, as if engine and learner agreed.
    """

    clip_low: float
    clip_high: float
    kl: float
    importance_cap: float
    importance_floor: float = 0.0
    correction: Correction = "truncate"
    dual_clip: float = 3.0

    def __call__(
        self,
        logp_R: Tensor,
        old_logp_R: Tensor,
        behaviour_logp_R: Tensor,
        advantage_R: Tensor,
        ref_logp_R: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each token, with gradient, and detached statistics of each token.

        Args:
            logp_R: log-probabilities under the policy being trained; the gradient flows through these alone.
            old_logp_R: under the policy at the beginning of the step, which the ratio is taken against.
            behaviour_logp_R: under the policy version that generated the token, as the engine reported them.
            advantage_R: advantage of the rollout that the token belongs to.
            ref_logp_R: under the reference policy; None when ``kl`` is 0.

        Returns:
            The loss [R] and statistics by name, each [R] float32: ``clip_share``, ``importance_weight``,
            ``importance_limited``, ``mismatch`` (nats) and, with a reference, ``kl`` (nats).
        """
        ratio_R = torch.exp(logp_R - old_logp_R)
        clipped_R = ratio_R.clamp(1 - self.clip_low, 1 + self.clip_high)
        surrogate_R = torch.maximum(-advantage_R * ratio_R, -advantage_R * clipped_R)
        bounded_R = torch.minimum(surrogate_R, -advantage_R * self.dual_clip)
        surrogate_R = torch.where(advantage_R < 0, bounded_R, surrogate_R)
        drift_R = (old_logp_R - behaviour_logp_R).detach()
        importance_R = torch.exp(drift_R)
        if self.correction == "truncate":
            weight_R = importance_R.clamp(max=self.importance_cap)
            limited_R = weight_R != importance_R
        elif self.correction == "none":
            weight_R = torch.ones_like(importance_R)
            limited_R = torch.zeros_like(importance_R, dtype=torch.bool)
        else:
            inside_R = (importance_R >= self.importance_floor) & (importance_R <= self.importance_cap)
            weight_R = torch.where(inside_R, importance_R, 0)
            limited_R = ~inside_R
        loss_R = weight_R * surrogate_R
        statistics = {
            "clip_share": ((ratio_R < 1 - self.clip_low) | (ratio_R > 1 + self.clip_high)).float(),
            "importance_weight": weight_R,
            "importance_limited": limited_R.float(),
            "mismatch": drift_R.abs(),
        }
        if ref_logp_R is not None:
            difference_R = ref_logp_R - logp_R
            k3_R = torch.exp(difference_R) - difference_R - 1
            loss_R = loss_R + self.kl * k3_R
            statistics["kl"] = k3_R.detach()
        return loss_R, statistics
