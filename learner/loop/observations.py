"""What the router learns from the groups of a step."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from learner.groups import Group
from router import Context, Observation


def router_observations(batch: Sequence[Group], languages: Collection[str]) -> list[Observation]:
    """What the router learns from a step, one observation for each group.

    It holds every answer in one of the router's ``languages`` that could be scored, whether the router or the policy
    chose it, with its quality if it is compliant and 0 if not. The rewards of stages and step terms play no part.
    """
    found = []
    for group in batch:
        question = group.work.question
        known = [one for one in group.rollouts if one.language in languages and one.score.scored]
        kept = tuple(rollout.score.compliant for rollout in known)
        rewards = tuple(rollout.score.quality * rollout.score.compliant for rollout in known)
        context = Context.of(question.language, question.topics, question.regions)
        found.append(Observation(context, tuple(rollout.language for rollout in known), rewards, kept))
    return found
