"""From prompt groups to training samples: advantages, what becomes of a group, and the weight of each token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.config import LearnerConfig
from learner.groups import Group, Outcome
from learner.train.grpo import advantages, token_weights
from learner.train.packing import Sample


def group_advantages(group: Group, config: LearnerConfig) -> NDArray[np.float64]:
    """The advantage of each rollout of a group, [K] float64; see ``grpo.advantages`` for the equation."""
    scores = [rollout.score for rollout in group.rollouts]
    return advantages(
        np.array([score.reward for score in scores]),
        np.array([score.compliant for score in scores]),
        form=config.advantage,
        divide_by_std=config.advantage_std,
        ddof=config.std_ddof,
        compliance_weight=config.compliance_weight,
    )


def group_outcome(group: Group, config: LearnerConfig) -> Outcome:
    """What a step does with a group.

    Returns:
        ``zero_variance``: all advantages are zero, and ``learner.drop_zero_variance`` leaves such groups out.
        ``masked``: every rollout was truncated
        and ``learner.mask_truncated`` leaves those out. Otherwise ``trained``.
    """
    if config.drop_zero_variance and not group_advantages(group, config).any():
        return "zero_variance"
    masked = config.mask_truncated and all(rollout.truncated for rollout in group.rollouts)
    return "masked" if masked else "trained"


def group_samples(batch: Sequence[Group], config: LearnerConfig) -> tuple[list[Sample], list[str]]:
    """The rollouts of a batch that carry gradient, as samples, and the languages that ``Sample.language`` indexes.

    A rollout in no language counts under the name ``none``.
    """
    chosen = [
        (f"{group.work.id}, answer {n + 1} ({rollout.language or 'none'})", rollout, float(advantage))
        for group in batch
        if group_outcome(group, config) == "trained"
        for n, (rollout, advantage) in enumerate(zip(group.rollouts, group_advantages(group, config), strict=True))
        if not (config.mask_truncated and rollout.truncated)
    ]
    used = [rollout.language or "none" for _, rollout, _ in chosen]
    languages = sorted(set(used))
    weights = token_weights([len(rollout.response_ids) for _, rollout, _ in chosen], used, config.aggregation)
    samples = [
        Sample(rollout, advantage, float(weight), languages.index(language), name)
        for (name, rollout, advantage), language, weight in zip(chosen, used, weights, strict=True)
    ]
    return samples, languages
