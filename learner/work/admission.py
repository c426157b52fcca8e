"""What a group must be to be trained. What cannot be is refused, what is too long is cut; the ledger says so."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from common.languages import POLICY_CHOOSES
from common.wire import Rollout, Work


@dataclass(frozen=True)
class Limits:
    vocabulary: float = math.inf  # ids are below this
    tokens: float = math.inf  # most in a sequence, prompt included: those of a micro-batch


UNLIMITED = Limits()


def problem(work: Work, rollouts: list[Rollout], limits: Limits) -> str:
    """Why the answers to a piece of work cannot be trained on; empty when they can."""
    pairs = zip(work.languages, rollouts, strict=False)
    if len(rollouts) != len(work.languages) or any(
        asked not in (POLICY_CHOOSES, rollout.language) for asked, rollout in pairs
    ):
        return "the rollouts are not in the languages asked for"
    return "" if _fine(rollouts, limits) else _fault(rollouts, limits)


def _fine(rollouts: list[Rollout], limits: Limits) -> bool:
    """All at once, as this runs for every group; where it is not sure, ``_fault`` looks closely."""
    prompts = [rollout.prompt_ids for rollout in rollouts]
    responses = [rollout.response_ids for rollout in rollouts]
    logprobs = [rollout.logprobs for rollout in rollouts]
    lengths, room = list(map(len, responses)), list(map(len, prompts))
    scores = [rollout.score for rollout in rollouts]
    if not (
        all(lengths)
        and lengths == list(map(len, logprobs)) == [len(rollout.versions) for rollout in rollouts]
        and 0 < min(room) <= max(room) < limits.tokens
        and math.isfinite(sum(score.reward + score.quality for score in scores))
    ):
        return False
    ids, numbers = np.concatenate(prompts + responses), np.concatenate(logprobs)
    # A negative id is a large unsigned one; a sum that is finite has no summand that is not.
    return ids.view(np.uint32).max() < limits.vocabulary and math.isfinite(numbers.sum())


def _fault(rollouts: list[Rollout], limits: Limits) -> str:
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


def cut(rollouts: list[Rollout], limits: Limits) -> tuple[list[Rollout], str]:
    """Responses that fit, marked as truncated where they were longer, and a note of how many were: empty for none.

    The beginning of an answer is worth training; to drop long answers would favour languages that need few tokens.
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
