"""What the router learns from the groups of a step."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from learner.groups import Group
from router import Context, Observation


def router_observations(batch: Sequence[Group], languages: Collection[str], *, gated: bool) -> list[Observation]:
    """What the router learns from a step, one observation for each group.

    It holds every answer in one of the router's ``languages`` that could be scored, whether the router or the policy
    chose it, with what it earns: its quality if it is compliant and 0 if not, and without the gate its quality in
    whatever language it is. The rewards of stages and step terms play no part.

    Args:
        languages: of the router.
        gated: ``reward.gated``, as ``RewardConfig.is_gated`` has it. Without the gate compliance says nothing of what
            a language earns, so every answer counts as compliant.
    """
    found = []
    for group in batch:
        question = group.work.question
        known = [one for one in group.rollouts if one.language in languages and one.score.scored]
        compliant = tuple(rollout.score.compliant or not gated for rollout in known)
        rewards = tuple(one.score.quality * earns for one, earns in zip(known, compliant, strict=True))
        context = Context.of(question.language, question.topics, question.regions)
        found.append(Observation(context, tuple(rollout.language for rollout in known), rewards, compliant))
    return found
