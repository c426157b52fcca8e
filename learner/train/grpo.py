"""GRPO across languages as pure functions (LRPO, arXiv 2605.25360, section 6 of the method).

The group of a question holds rollouts in several languages; its advantages are normalised together.
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

Form = Literal["gated", "split"]
Aggregation = Literal["token", "sequence", "fertility"]
Correction = Literal["truncate", "mask"]


def advantages(
    rewards: NDArray[np.float64],
    compliant: NDArray[np.bool_],
    *,
    form: Form,
    divide_by_std: bool,
    compliance_weight: float = 1.0,
    eps: float = 1e-6,
) -> NDArray[np.float64]:
    """What each of the K rollouts of a group is worth against the others; all zero when there is nothing to learn.

    N(x) = (x − mean x) / (std x + eps), population std; without the division if not ``divide_by_std``.
    ``gated``: N(r), where r is 0 for who left the language, so that one failure dwarfs differences of quality.
    ``split``: c·N(r over the compliant) + compliance_weight·(c − mean c), with c 1 for the compliant, else 0.

    Args:
        rewards: [K], quality times gate.
        compliant: [K], whether the answer kept its language.

    Returns:
        [K]; they sum to 0 in either form.
    """

    def normalised(values: NDArray[np.float64]) -> NDArray[np.float64]:
        if not np.ptp(values):
            return np.zeros(len(values))  # not what rounding makes of equal values
        centred: NDArray[np.float64] = values - values.mean()
        return centred / (values.std() + eps) if divide_by_std else centred

    if form == "gated":
        return normalised(rewards)
    result: NDArray[np.float64] = compliance_weight * (compliant - compliant.mean())
    if compliant.any():
        result[compliant] += normalised(rewards[compliant])
    return result


def token_weights(lengths: Sequence[int], languages: Sequence[str], aggregation: Aggregation) -> NDArray[np.float64]:
    """What a token of each of the N rollouts of a step weighs; over all their tokens this sums to 1.

    ``token``: 1 / Σn. ``sequence``: 1 / (N·n_i), each rollout alike. ``fertility``: 1 / (N·f), where f is the mean
    length of the step's rollouts in that language: languages count by rollouts, whatever tokens they take to say
    the same, and within a language each token counts alike.

    Args:
        lengths: [N] response tokens n_i, of all ranks.
    """
    sizes = np.array(lengths, np.float64)
    if aggregation == "token":
        return np.full(len(sizes), 1 / max(sizes.sum(), 1))
    if aggregation == "sequence":
        return 1 / (len(sizes) * sizes)
    rollouts, tokens = Counter(languages), Counter[str]()
    for language, size in zip(languages, lengths, strict=True):
        tokens[language] += size
    return np.array([rollouts[language] / (len(sizes) * tokens[language]) for language in languages])


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss of a token.

    Args:
        clip_low, clip_high: the ratio π/π_old is clipped to [1 − clip_low, 1 + clip_high].
        dual_clip: with a negative advantage the loss is at most −dual_clip · A (arXiv 1912.09729).
        kl: weight of the k3 estimate of KL(π ‖ π_ref), exp(d) − d − 1 with d = log π_ref − log π.
        correction: of the weight π_old/π_behaviour: ``truncate`` at the cap (truncated importance sampling), or
            ``mask``: tokens outside [importance_floor, importance_cap] weigh 0 (IcePop).
    """

    clip_low: float
    clip_high: float
    kl: float
    importance_cap: float
    importance_floor: float = 0.0
    correction: Correction = "truncate"
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
        importance = torch.exp(drift)
        if self.correction == "truncate":
            weight = importance.clamp(max=self.importance_cap)
        else:
            inside = (importance >= self.importance_floor) & (importance <= self.importance_cap)
            weight = torch.where(inside, importance, 0)
        loss = weight * surrogate
        stats = {
            "clip_share": ((ratio < 1 - self.clip_low) | (ratio > 1 + self.clip_high)).float(),
            "importance_weight": weight,
            "importance_limited": (weight != importance).float(),
            "mismatch": drift.abs(),
        }
        if ref_logp is not None:
            difference = ref_logp - logp
            k3 = torch.exp(difference) - difference - 1
            loss = loss + self.kl * k3
            stats["kl"] = k3.detach()
        return loss, stats
