"""The rules for the answers of a group that comes back from an actor.

Answers that break a rule are refused, with a reason. Answers that are too long are cut, and the ledger says so. Whether
a group may be *leased* is another question, which ``learner/work/scheduler.py`` decides before anything is generated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from common.languages import POLICY_CHOOSES
from common.wire import Rollout, Work


@dataclass(frozen=True)
class Limits:
    """What the learner can train on; by default everything."""

    vocabulary: float = math.inf  # token ids must be below this
    tokens: float = math.inf  # most tokens in a sequence, prompt and response together: those of a micro-batch


UNLIMITED = Limits()


def find_problem(work: Work, rollouts: list[Rollout], limits: Limits) -> str:
    """Why the answers to ``work`` cannot be trained on, in one line; empty if they can."""
    pairs = zip(work.languages, rollouts, strict=False)
    if len(rollouts) != len(work.languages) or any(
        asked not in (POLICY_CHOOSES, rollout.language) for asked, rollout in pairs
    ):
        return "the rollouts are not in the languages asked for"
    return "" if _are_valid(rollouts, limits) else _describe_problem(rollouts, limits)


def _are_valid(rollouts: list[Rollout], limits: Limits) -> bool:
    """Checks all answers at once, because this runs for every group.

    It may be False for valid answers, if a sum of finite numbers overflows; ``_describe_problem`` then finds nothing.
    """
    prompts = [rollout.prompt_ids for rollout in rollouts]
    responses = [rollout.response_ids for rollout in rollouts]
    logprobs = [rollout.logprobs for rollout in rollouts]
    lengths, prompt_lengths = list(map(len, responses)), list(map(len, prompts))
    scores = [rollout.score for rollout in rollouts]
    if not (
        all(lengths)
        and lengths == list(map(len, logprobs)) == [len(rollout.versions) for rollout in rollouts]
        and 0 < min(prompt_lengths) <= max(prompt_lengths) < limits.tokens
        and math.isfinite(sum(score.reward + score.quality for score in scores))
    ):
        return False
    ids, numbers = np.concatenate(prompts + responses), np.concatenate(logprobs)
    # Read as unsigned, a negative id is a large one. A sum is finite only if every summand is.
    return ids.view(np.uint32).max() < limits.vocabulary and math.isfinite(numbers.sum())


def _describe_problem(rollouts: list[Rollout], limits: Limits) -> str:
    """Checks one answer after the other, and describes the first problem; empty if there is none."""
    for number, rollout in enumerate(rollouts, start=1):
        length, where = len(rollout.response_ids), f"answer {number} ({rollout.language})"
        if not length or len(rollout.logprobs) != length or len(rollout.versions) != length:
            return (
                f"{where}: {length} tokens, {len(rollout.logprobs)} log-probabilities, {len(rollout.versions)} versions"
            )
        if not 0 < len(rollout.prompt_ids) < limits.tokens:
            return f"{where}: {len(rollout.prompt_ids)} prompt tokens, learner.microbatch_tokens = {limits.tokens}"
        for ids in (rollout.prompt_ids, rollout.response_ids):
            if ids.min() < 0 or ids.max() >= limits.vocabulary:
                return f"{where}: token {ids.min() if ids.min() < 0 else ids.max()}, vocabulary {limits.vocabulary}"
        if not np.isfinite([rollout.score.reward, rollout.score.quality]).all():
            return f"{where}: reward {rollout.score.reward}, quality {rollout.score.quality}"
        if not np.isfinite(rollout.logprobs).all():
            return f"{where}: a log-probability is not finite"
    return ""


def cut_to_fit(rollouts: list[Rollout], limits: Limits) -> tuple[list[Rollout], str]:
    """Cuts responses to the tokens that their prompts leave of ``limits.tokens``, and marks those as truncated.

    The beginning of a long answer is still worth training on. If long answers were dropped instead, languages that need
    few tokens would be favoured.

    Args:
        rollouts: valid ones, so that every prompt is shorter than ``limits.tokens``.

    Returns: the rollouts, unchanged where they fit, and a note for the ledger of how many were cut, empty if none was.
    """
    result = []
    for rollout in rollouts:
        room = limits.tokens - len(rollout.prompt_ids)
        if len(rollout.response_ids) > room:
            parts = {name: getattr(rollout, name)[: int(room)] for name in ("response_ids", "logprobs", "versions")}
            rollout = rollout.model_copy(update={**parts, "truncated": True})
        result.append(rollout)
    number = sum(new is not old for new, old in zip(result, rollouts, strict=True))
    return (
        result,
        f"{number} of {len(result)} answers cut to learner.microbatch_tokens = {limits.tokens}" if number else "",
    )
