"""From prompt groups to training samples: advantages, what becomes of a group, and the weight of each token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.config import LearnerConfig
from common.wire import Rollout
from learner.groups import Group, Outcome
from learner.train.grpo import advantages, token_weights
from learner.train.packing import Sample


def group_advantages(group: Group, config: LearnerConfig) -> NDArray[np.float64]:
    """The advantage of each rollout of a group, [K] float64; see ``grpo.advantages`` for the equation.

    A rollout that could not be scored takes no part in the group's mean and deviation, and has the advantage 0. Where
    ``learner.step_reward`` gives advantages, these are taken.
    """
    scores = [rollout.score for rollout in group.rollouts]
    scored_K = np.array([score.scored for score in scores], np.bool_)
    result = np.zeros(len(scores))
    if group.advantages:
        result[scored_K] = np.array(group.advantages)[scored_K]
    elif scored_K.any():
        result[scored_K] = advantages(
            np.array([score.reward for score in scores])[scored_K],
            np.array([score.compliant for score in scores])[scored_K],
            form=config.advantage,
            divide_by_std=config.advantage_std,
            ddof=config.std_ddof,
            compliance_weight=config.compliance_weight,
        )
    return result


def group_outcome(group: Group, config: LearnerConfig) -> Outcome:
    """What a step does with a group.

    Returns:
        ``zero_variance``: all advantages are zero, and ``learner.drop_zero_variance`` leaves such groups out.
        ``masked``: every rollout is left out, because it was not scored, or was truncated and
        ``learner.mask_truncated`` is set. Otherwise ``trained``.
    """
    if not any(rollout.score.scored for rollout in group.rollouts):
        return "masked"
    if config.drop_zero_variance and not group_advantages(group, config).any():
        return "zero_variance"
    return "trained" if any(_carries_gradient(rollout, config) for rollout in group.rollouts) else "masked"


def _carries_gradient(rollout: Rollout, config: LearnerConfig) -> bool:
    return rollout.score.scored and not (config.mask_truncated and rollout.truncated)


def group_samples(batch: Sequence[Group], config: LearnerConfig) -> tuple[list[Sample], list[str]]:
    """The rollouts of a batch that carry gradient, as samples, and the languages that ``Sample.language`` indexes.

    A rollout in no language counts under the name ``none``.
    """
    chosen = [
        (f"{group.work.id}, answer {n + 1} ({rollout.language or 'none'})", rollout, float(advantage))
        for group in batch
        if group_outcome(group, config) == "trained"
        for n, (rollout, advantage) in enumerate(zip(group.rollouts, group_advantages(group, config), strict=True))
        if _carries_gradient(rollout, config)
    ]
    used = [rollout.language or "none" for _, rollout, _ in chosen]
    languages = sorted(set(used))
    weights = token_weights([len(rollout.response_ids) for _, rollout, _ in chosen], used, config.aggregation)
    samples = [
        Sample(rollout, advantage, float(weight), languages.index(language), name)
        for (name, rollout, advantage), language, weight in zip(chosen, used, weights, strict=True)
    ]
    return samples, languages
