"""Stage rewards (ExpLang): the rewards of a step in which the policy itself chose the language of its answers.

In ExpLang (github.com/RiverGao/ExpLang, explained in docs/explang.md) a rollout begins with a header that names the
language the policy has chosen. A run goes through stages, the configuration's ``learner.stages``, each with its own
weights for correctness, language compliance, a well-formed header, diversity of the choices and success of the chosen
language. Diversity and success compare the rollouts of a whole step, so the learner computes these rewards when it
takes the step's batch; the reward service scores single answers.

A rollout is *free* if the policy chose its language, and *routed* if the prompt named one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from common.config import StageConfig
from common.diagnostics import is_right
from common.languages import POLICY_CHOOSES
from common.wire import Rollout
from learner.groups import Group

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def running_shares(chosen: Sequence[str], before: Mapping[str, float], ema: float) -> Mapping[str, float]:
    """The exponential moving average of each language's share of the choices.

    Args:
        chosen: languages chosen in this step. If there are none, the result is ``before``.
        before: the average until the step before; empty at first, when the result is the shares of this step.
        ema: weight of this step's shares against ``before``, in (0, 1].
    """
    if not chosen:
        return before
    new = {language: count / len(chosen) for language, count in Counter(chosen).items()}
    if not before:
        return new
    return {one: ema * new.get(one, 0.0) + (1 - ema) * before.get(one, 0.0) for one in {**before, **new}}


def diversity(chosen: Sequence[str], kept: Bools, before: Mapping[str, float], ema: float) -> Floats:
    """The diversity bonus d = p_min / p of each choice that the answer kept to, and 0 for the others.

    p is the running share of the chosen language among all choices, p_min the smallest one among the choices kept to.
    With ``ema`` = 1 this is (n / count), scaled so that the largest is 1.

    Args:
        chosen: [n] the languages chosen; "" where the answer named none, which never counts as kept to.
        kept: [n] bool, whether the answer is in the language chosen.
        before, ema: as in ``running_shares``.

    Returns:
        [n] float64.
    """
    shares = running_shares([one for one in chosen if one], before, ema)
    counted = [bool(good and one) for one, good in zip(chosen, kept, strict=True)]
    least = min((shares[one] for one, good in zip(chosen, counted, strict=True) if good), default=0.0)
    return np.array([least / shares[one] if good else 0.0 for one, good in zip(chosen, counted, strict=True)])


def success(languages: Sequence[str], right: Bools) -> Floats:
    """1 for each answer in whose language any of the answers is right, and 0 for the others.

    Args:
        languages: [n] of the answers; "" for an answer without a language, which is never successful.
        right: [n] bool, whether the answer is right.

    Returns:
        [n] float64.
    """
    won = {language for language, good in zip(languages, right, strict=True) if good and language}
    return np.array([float(language in won) for language in languages])


def stage_rewards(
    batch: list[Group], stage: StageConfig | None, before: Mapping[str, float]
) -> tuple[list[Group], Mapping[str, float]]:
    """The batch with the rewards of its stage. For each rollout k of a group, with F the group's free rollouts
    that could be scored:

        q_k = correctness · quality_k + compliance · compliant_k
        s_k = selection · well-formed_k + diversity · d_k + success · u_k
        r_k = q_k + (s_k if k ∈ F, else the mean of s over F, or 0 where F is empty)

    So q, which both kinds can earn, is compared among all rollouts of the group, and s among the free ones alone. A
    routed rollout gets the mean of s: it neither gains nor loses an advantage by having no header of its own.

    Args:
        batch: the groups of a step, as scored by the reward service.
        stage: the stage of the step; without one the batch is returned as it is.
        before: running shares of the languages chosen, until the step before.

    Returns:
        The batch with new rewards, and the running shares after this step.
    """
    if stage is None:
        return batch, before
    rollouts = [rollout for group in batch for rollout in group.rollouts]
    scores = [rollout.score for rollout in rollouts]
    free = np.array([asked == POLICY_CHOOSES for group in batch for asked in group.work.languages])
    named = np.array([rollout.language for rollout in rollouts])
    quality, kept = np.array([score.quality for score in scores]), np.array([score.compliant for score in scores])
    groups = np.split(np.arange(len(rollouts)), np.cumsum([len(group.rollouts) for group in batch])[:-1])
    scored = np.array([score.scored for score in scores], np.bool_)
    right = np.array([score.scored and is_right(score.quality, score.terms) for score in scores], np.bool_)
    compared_within = {"batch": [np.arange(len(rollouts))], "group": groups}
    d, u = np.zeros(len(rollouts)), np.zeros(len(rollouts))
    for members in compared_within[stage.diversity_over]:
        choosers = members[free[members]]
        d[choosers] = diversity(named[choosers].tolist(), kept[choosers], before, stage.diversity_ema)
    for members in compared_within[stage.success_over]:
        u[members] = success(named[members].tolist(), right[members]) * free[members]
    well_formed = np.array([score.terms.get("selection", 0.0) for score in scores])
    s = stage.selection * well_formed + stage.diversity * d + stage.success * u
    for members in groups:
        known = members[free[members] & scored[members]]
        s[members[~free[members]]] = s[known].mean() if len(known) else 0.0
    reward = stage.correctness * quality + stage.compliance * kept + s

    def with_reward(k: int) -> Rollout:
        added = {"diversity": float(d[k]), "success": float(u[k])} if free[k] else {}
        worth = float(reward[k]) if scores[k].scored else 0.0
        score = scores[k].model_copy(update={"reward": worth, "terms": scores[k].terms | added})
        return rollouts[k].model_copy(update={"score": score})

    after = running_shares([one for one in named[free].tolist() if one], before, stage.diversity_ema)
    pairs = zip(batch, groups, strict=True)
    return [group.model_copy(update={"rollouts": [*map(with_reward, members)]}) for group, members in pairs], after
