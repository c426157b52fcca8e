"""The loss of a token: a surrogate times an importance weight, the KL to the reference policy, and the entropy.

Three policies meet in it: π, which is trained; π_old, the policy at the beginning of the step; and μ, the behaviour
policy, which generated the token. Their ratios are kept apart, as in decoupled PPO (arXiv 2110.00641; AReaL, arXiv
2505.24298): π / π_old is clipped, because it is what the step itself changes, and π_old / μ is a weight, because it is
how old the answer is, and how engine and learner differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from learner.train import surrogates

Loss = Literal["ppo", "gspo", "cispo"]
Correction = Literal["truncate", "mask", "none"]
Proximal = Literal["step", "behaviour"]
KLForm = Literal["k1", "k2", "k3"]
_LARGEST_DRIFT = 20.0  # nats, in the sums for the effective sample size, whose squares must be finite


def kl_estimate(logp_R: Tensor, ref_logp_R: Tensor, form: KLForm) -> Tensor:
    """An estimate of KL(π ‖ π_ref) from a token of π, with d = log π_ref − log π (joschu.net/blog/kl-approx.html).

    * ``k1``: −d. Unbiased, but the mean of its gradient over tokens of π is 0: use it with the importance weight.
    * ``k2``: d² / 2. A little biased; the mean of its gradient is that of the KL.
    * ``k3``: exp(d) − d − 1. Unbiased and never negative; verl's ``low_var_kl``, and GRPO's (arXiv 2402.03300, eq. 4).
    """
    difference_R = ref_logp_R - logp_R
    if form == "k1":
        return -difference_R
    if form == "k2":
        return difference_R**2 / 2
    return torch.exp(difference_R) - difference_R - 1


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss of a response token.

    Args:
        loss: the surrogate, a function of learner/train/surrogates.py.
        clip_low, clip_high: bounds of its ratio, which is clipped to [1 − clip_low, 1 + clip_high].
        dual_clip: of ``ppo``; 0 for none.
        proximal: ``step``: the ratio is π / π_old, and the importance weight π_old / μ. ``behaviour``: the ratio is
            π / μ, and there is no weight.
        kl: weight of the KL, in the form ``kl_form``.
        kl_importance: multiply the KL of a token by π / π_old, with its gradient, and by the importance weight
            (DeepSeek-V3.2, arXiv 2512.02556). Its gradient is then that of the KL, up to the limits of the
            weight, also for answers of an older policy.
        entropy_bonus: weight of the entropy of π at the token's position, which is taken from the loss.
        correction: how the importance weight is limited. ``truncate`` (truncated importance sampling): to
            ``importance_cap``. ``mask`` (IcePop): a token whose weight is outside [importance_floor, importance_cap]
            weighs 0. ``none``: it is 1, as if engine and learner agreed.
    """

    loss: Loss = "ppo"
    clip_low: float
    clip_high: float
    dual_clip: float = 3.0
    proximal: Proximal = "step"
    kl: float
    kl_form: KLForm = "k3"
    kl_importance: bool = False
    entropy_bonus: float = 0.0
    importance_cap: float
    importance_floor: float = 0.0
    correction: Correction = "truncate"

    def __call__(
        self,
        logp_R: Tensor,
        old_logp_R: Tensor,
        behaviour_logp_R: Tensor,
        advantage_R: Tensor,
        ref_logp_R: Tensor | None,
        *,
        entropy_R: Tensor,
        sequence_R: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each token, with gradient, and detached statistics of each token.

        Args:
            logp_R: log-probabilities under π; the gradient flows through these and ``entropy_R`` alone.
            old_logp_R: under π_old.
            behaviour_logp_R: under μ, as the engine reported them.
            advantage_R: advantage of the rollout that the token belongs to.
            ref_logp_R: under the reference policy; None when ``kl`` is 0.
            entropy_R: of π at each position, nats.
            sequence_R: [R] int64, which rollout of the micro-batch the token belongs to.

        Returns:
            The loss [R] and statistics by name, each [R]: ``clip_share``, ``importance_weight`` and
            ``importance_limited`` as they are used; of π_old / μ before it is limited, ``outside_bounds`` (1 outside
            [importance_floor, importance_cap]), ``raw_weight`` and ``raw_weight_squared``; ``mismatch``, the
            absolute difference of its logarithms (nats), and, with a reference, ``kl`` (nats).
        """
        drift_R = (old_logp_R - behaviour_logp_R).detach()
        raw_weight_R = torch.exp(drift_R)
        outside_R = (raw_weight_R < self.importance_floor) | (raw_weight_R > self.importance_cap)
        weight_R, limited_R = self._importance(raw_weight_R, outside_R)
        proximal_logp_R = old_logp_R if self.proximal == "step" else behaviour_logp_R
        surrogate_R, clipped_R = self._surrogate(logp_R, proximal_logp_R, advantage_R, sequence_R)
        loss_R = weight_R * surrogate_R
        bounded_weight_R = torch.exp(drift_R.clamp(-_LARGEST_DRIFT, _LARGEST_DRIFT))
        statistics = {
            "clip_share": clipped_R.float(),
            "importance_weight": weight_R,
            "importance_limited": limited_R.float(),
            "outside_bounds": outside_R.float(),
            "raw_weight": bounded_weight_R,
            "raw_weight_squared": bounded_weight_R.square(),
            "mismatch": drift_R.abs(),
        }
        if ref_logp_R is not None:
            kl_R = kl_estimate(logp_R, ref_logp_R, self.kl_form)
            statistics["kl"] = kl_R.detach()
            if self.kl_importance:
                kl_R = kl_R * torch.exp(logp_R - proximal_logp_R) * weight_R
            loss_R = loss_R + self.kl * kl_R
        if self.entropy_bonus:
            loss_R = loss_R - self.entropy_bonus * entropy_R
        return loss_R, statistics

    def _importance(self, raw_weight_R: Tensor, outside_R: Tensor) -> tuple[Tensor, Tensor]:
        """The importance weight as it is used, and where it was limited."""
        if self.correction == "none" or self.proximal == "behaviour":
            return torch.ones_like(raw_weight_R), torch.zeros_like(outside_R)
        if self.correction == "mask":
            return torch.where(outside_R, 0, raw_weight_R), outside_R
        weight_R = raw_weight_R.clamp(max=self.importance_cap)
        return weight_R, weight_R != raw_weight_R

    def _surrogate(
        self, logp_R: Tensor, proximal_logp_R: Tensor, advantage_R: Tensor, sequence_R: Tensor
    ) -> tuple[Tensor, Tensor]:
        low, high = self.clip_low, self.clip_high
        if self.loss == "gspo":
            return surrogates.gspo(logp_R, proximal_logp_R, advantage_R, sequence_R, low=low, high=high)
        if self.loss == "cispo":
            return surrogates.cispo(logp_R, proximal_logp_R, advantage_R, low=low, high=high)
        return surrogates.ppo(logp_R, proximal_logp_R, advantage_R, low=low, high=high, dual_clip=self.dual_clip)
