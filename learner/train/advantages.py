"""Advantages: how much better an answer is than the others to the same question. Pure functions of numpy arrays.

Shape suffixes in this folder: K rollouts of one group, N rollouts of a step, J parts of a reward, T tokens and R
response tokens of a micro-batch, S sequences of a micro-batch, D hidden size, V vocabulary. ``logp_R`` is a tensor of
shape [R].
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
AdvantageForm = Literal["gated", "split"]


def normalise(values: Floats, *, divide_by_std: bool, ddof: int = 1, eps: float = 1e-6) -> Floats:
    """(x − mean x) / (std x + eps), where std x = √(Σ(x − mean x)² / (n − ddof)).

    Of equal values, and of a single one, the result is exactly 0.

    Args:
        values: [n].
        divide_by_std: whether to divide; Dr. GRPO (arXiv 2503.20783) does not.
        ddof: 1 for the deviation of a sample, as torch.std in verl and TRL has it; 0 for that of a population.
    """
    if not values.size or not np.ptp(values):
        return np.zeros(len(values))  # exactly zero: the mean of equal values may differ from them by rounding
    centred: Floats = values - values.mean()
    return centred / (values.std(ddof=ddof) + eps) if divide_by_std else centred


def advantages(
    rewards_K: Floats,
    compliant_K: NDArray[np.bool_],
    *,
    form: AdvantageForm,
    divide_by_std: bool,
    ddof: int = 1,
    compliance_weight: float = 1.0,
    eps: float = 1e-6,
) -> Floats:
    """The advantage of each of the K rollouts of a group; all are zero when there is nothing to learn.

    With c = 1 for a compliant rollout and 0 for any other:

    * ``gated``: (r − mean r) / (std r + eps), GRPO (arXiv 2402.03300, section 4.1.2) over all languages of the group
      (LRPO, arXiv 2605.25360). Here r is 0 for a rollout that left its language, so one such failure outweighs all
      differences in quality.
    * ``split``: (q − mean q) / (std q' + eps) + compliance_weight · (c − mean c). Here q' are the rewards of the
      compliant rollouts, and q is q' with the least of them in place of the others. So differences in quality are
      measured among compliant rollouts alone, and a rollout that left its language is worth ``compliance_weight`` less
      than the worst that kept to it: never more.

    Without ``divide_by_std`` the deviations are left out.

    Args:
        rewards_K: [K] float64, the quality of a compliant rollout and 0 for any other.
        compliant_K: [K] bool, whether the rollout kept to its language.
        ddof: as in :func:`normalise`.

    Returns:
        [K] float64. They sum to 0 in either form.
    """
    if form == "gated":
        return normalise(rewards_K, divide_by_std=divide_by_std, ddof=ddof, eps=eps)
    result: Floats = compliance_weight * (compliant_K - compliant_K.mean())
    kept = rewards_K[compliant_K]
    if kept.size and np.ptp(kept):
        quality_K = np.where(compliant_K, rewards_K, kept.min())
        result += (quality_K - quality_K.mean()) / (kept.std(ddof=ddof) + eps if divide_by_std else 1.0)
    return result


def decoupled_sum(
    parts_J_K: Floats, weights_J: Floats, *, divide_by_std: bool, ddof: int = 1, eps: float = 1e-4
) -> Floats:
    """GDPO (arXiv 2601.05242), first half: each part of the reward is normalised in the group, then they are summed.

    S = Σ_j w_j · (r_j − mean r_j) / (std r_j + eps). The second half divides the sums of all groups of a step by their
    deviation; :func:`whiten` does that.

    Args:
        parts_J_K: [J, K], NaN where a rollout has no such part: it takes no part in the mean and the deviation of that
            part, and nothing is added for it.
        weights_J: [J].

    Returns:
        [K]; a part that is equal in all rollouts adds exactly 0. They sum to 0.
    """
    total = np.zeros(parts_J_K.shape[1])
    for values_K, weight in zip(parts_J_K, weights_J, strict=True):
        present = ~np.isnan(values_K)
        total[present] += weight * normalise(values_K[present], divide_by_std=divide_by_std, ddof=ddof, eps=eps)
    return total


def whiten(values: Floats, eps: float = 1e-4) -> Floats:
    """GDPO, second half: A = S / (std S + eps), over the rollouts of a whole step, with the deviation of a sample.

    The paper also takes the mean of S away, which is 0 because the sums of every group add up to 0. Left out, a group
    in which nothing differs keeps advantages of exactly 0.

    Args:
        values: [n], the sums of :func:`decoupled_sum` of all groups.
    """
    return values / (values.std(ddof=1) + eps) if len(values) > 1 else np.zeros(len(values))


def overlong_penalty(lengths_K: Floats, limit: int, buffer: int, largest: float) -> Floats:
    """What DAPO (arXiv 2503.14476, equation 13) takes from the reward of a long answer, in [0, largest].

    largest · clip((n − (limit − buffer)) / buffer, 0, 1) for an answer of n tokens.

    Args:
        lengths_K: [K] tokens.
        limit: length from which the penalty is largest, in tokens.
        buffer: over how many tokens before that it grows.
    """
    result: Floats = largest * np.clip((lengths_K - (limit - buffer)) / buffer, 0.0, 1.0)
    return result
