"""What becomes of a prompt group in a step: the advantages of its rollouts, and whether a rollout carries gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.config import LearnerConfig
from common.wire import Rollout, Score
from learner.groups import Group, Outcome
from learner.train.advantages import Floats, advantages, decoupled_sum, overlong_penalty, whiten


def group_advantages(group: Group, config: LearnerConfig, *, penalised: bool = True) -> Floats:
    """The advantage of each rollout of a group, [K]; learner/train/advantages.py has the equations.

    A rollout that could not be scored takes no part in the group's mean and deviation, and has the advantage 0. Where
    ``learner.step_reward`` gives advantages, these are taken. With ``learner.advantage`` = "decoupled" the result is
    not yet divided by the deviation of the step, and the penalty for long answers is a part like the others, with
    ``learner.overlong_penalty`` as its weight; elsewhere it is taken from the reward.

    Args:
        penalised: whether long answers are penalised.
    """
    scores = [rollout.score for rollout in group.rollouts]
    scored_K = np.array([score.scored for score in scores], np.bool_)
    result = np.zeros(len(scores))
    if group.advantages:
        result[scored_K] = np.array(group.advantages)[scored_K]
        return result
    if not scored_K.any():
        return result
    penalty_K = np.zeros(len(scores))
    if config.overlong_limit and penalised:
        lengths_K = np.array([len(rollout.response_ids) for rollout in group.rollouts], np.float64)
        limit, buffer = config.overlong_limit, config.overlong_buffer
        penalty_K = overlong_penalty(lengths_K, limit, buffer, config.overlong_penalty)
    if config.advantage == "decoupled":
        parts_J_K = np.array([_part(scores, name) for name in config.decoupled_parts])
        weights_J = np.array(list(config.decoupled_parts.values()))
        if penalty_K.any():
            # A part of its own, as all that a reward consists of. The division by its deviation takes the size of a
            # part away, so that the size of the penalty is the part's weight.
            share_K = penalty_K / config.overlong_penalty
            parts_J_K, weights_J = np.vstack([parts_J_K, -share_K]), np.append(weights_J, config.overlong_penalty)
        result[scored_K] = decoupled_sum(
            parts_J_K[:, scored_K], weights_J, divide_by_std=config.advantage_std, ddof=config.std_ddof
        )
        return result
    rewards_K = np.array([score.reward for score in scores]) - penalty_K
    result[scored_K] = advantages(
        rewards_K[scored_K],
        np.array([score.compliant for score in scores])[scored_K],
        form=config.advantage,
        divide_by_std=config.advantage_std,
        ddof=config.std_ddof,
        compliance_weight=config.compliance_weight,
    )
    return result


def _part(scores: Sequence[Score], name: str) -> Floats:
    """A part of the reward, [K]; NaN where an answer has no such part."""
    if name in ("reward", "quality", "compliance"):
        return np.array([float(getattr(score, "compliant" if name == "compliance" else name)) for score in scores])
    return np.array([score.terms.get(name, np.nan) for score in scores])


def step_advantages(groups: Sequence[Group], config: LearnerConfig) -> list[Floats]:
    """The advantages of the groups that a step trains on, for each of them [K]."""
    found = [group_advantages(group, config) for group in groups]
    if config.advantage != "decoupled" or not found:
        return found
    # Advantages that a step term gave are taken as they are.
    scored = np.array([one.score.scored and not group.advantages for group in groups for one in group.rollouts])
    joined = np.concatenate(found)
    joined[scored] = whiten(joined[scored])
    return np.split(joined, np.cumsum([len(values) for values in found])[:-1])


def group_outcome(group: Group, config: LearnerConfig) -> Outcome:
    """What a step does with a group.

    Returns:
        ``zero_variance``: all advantages are zero, and ``learner.drop_zero_variance`` leaves such groups out; answers
        that differ in the penalty for their length alone count as equal, as in DAPO. ``masked``: every rollout is left
        out, because it was not scored, or was truncated and ``learner.mask_truncated`` is set. Otherwise ``trained``.
    """
    if not any(rollout.score.scored for rollout in group.rollouts):
        return "masked"
    if config.drop_zero_variance and not group_advantages(group, config, penalised=False).any():
        return "zero_variance"
    return "trained" if any(carries_gradient(rollout, config) for rollout in group.rollouts) else "masked"


def carries_gradient(rollout: Rollout, config: LearnerConfig) -> bool:
    """Whether a step trains on a rollout of a group that it does not leave out."""
    return rollout.score.scored and not (config.mask_truncated and rollout.truncated)
