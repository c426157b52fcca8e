"""The rules for the answers of a group that comes back from an actor.

Answers that break a rule are refused, with a reason. Answers that are too long are cut, and the ledger says so. Whether
a group may be *leased* is another question, which ``learner/work/scheduler.py`` decides before anything is generated.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.languages import POLICY_CHOOSES
from common.wire import Rollout, Work
from common.wire.base import FLOAT32, INT32

_MOST_TERMS, _LONGEST_NAME = 100, 200  # of the reward; letters in the name of a term
_SHOWN = 40  # letters of a name that is refused
_ROUNDING = 1e-3  # nats by which rounding may bring the logarithm of a probability above 0


@dataclass(frozen=True)
class Limits:
    """What the learner can train on; by default everything."""

    vocabulary: float = math.inf  # token ids must be below this
    tokens: float = math.inf  # most tokens in a sequence, prompt and response together: those of a micro-batch
    lag: float = math.inf  # the staleness bound: most policy updates between a token and the step that trains on it
    languages: Collection[str] = ()  # that the policy may choose; without any, it may choose all


UNLIMITED = Limits()


def find_problem(work: Work, rollouts: list[Rollout], limits: Limits, newest_version: int) -> str:
    """Why the answers to ``work`` cannot be trained on, in one line; empty if they can.

    Every number that training, router or report will use is checked here, and nowhere later.

    Args:
        newest_version: the newest policy version that an engine may have. The next step starts from it.
    """
    languages = [rollout.language for rollout in rollouts]
    if languages != work.languages and (
        len(languages) != len(work.languages)
        or any(asked not in (POLICY_CHOOSES, given) for asked, given in zip(work.languages, languages, strict=True))
    ):
        return "the rollouts are not in the languages asked for"
    if problem := _find_strange_name(work, rollouts, limits):
        return problem
    oldest = oldest_allowed(work, limits, newest_version)
    if _are_valid(rollouts, limits, oldest, newest_version):
        return ""
    return _describe_problem(rollouts, limits, oldest, newest_version)


def _find_strange_name(work: Work, rollouts: list[Rollout], limits: Limits) -> str:
    """The problem with a name that an actor gives, of a language or of a term, which becomes one of a metric.

    Empty if there is none.
    """
    for number, (asked, rollout) in enumerate(zip(work.languages, rollouts, strict=True), start=1):
        language, terms = rollout.language, rollout.score.terms
        if asked == POLICY_CHOOSES and limits.languages and language and language not in limits.languages:
            return f"answer {number}: the policy cannot have chosen {language[:_SHOWN]!r}: not in run.languages"
        if not language and rollout.score.compliant:
            return f"answer {number}: it names no language, and is said to be in the one that it names"
        if terms and (len(terms) > _MOST_TERMS or max(map(len, terms)) > _LONGEST_NAME):
            return (
                f"answer {number}: {len(terms)} terms of the reward, or one with a name of over {_LONGEST_NAME} letters"
            )
    return ""


def oldest_allowed(work: Work, limits: Limits, newest_version: int) -> int:
    """The oldest policy version that a token of the answers to ``work`` may be of.

    An engine gets a lease only when it has the version named in the lease, so no token is older than that. The next
    step trains at ``newest_version``, so a token's lag will be at least ``newest_version`` minus its version.
    """
    if newest_version - work.policy_version <= limits.lag:
        return work.policy_version
    return newest_version - int(limits.lag)


def is_too_old(work: Work, rollouts: list[Rollout], limits: Limits, newest_version: int) -> bool:
    """Whether the next step would train on a token of these valid answers with a larger lag than ``limits.lag``."""
    if newest_version - work.policy_version <= limits.lag:  # no token is older than its lease
        return False
    return newest_version - min(int(rollout.versions.min()) for rollout in rollouts) > limits.lag


def _are_valid(rollouts: list[Rollout], limits: Limits, oldest: int, newest: int) -> bool:
    """Checks all answers at once, because this runs for every group.

    It may be False for valid answers, if a sum of finite numbers overflows; ``_describe_problem`` then finds nothing.
    """
    prompts, responses = [rollout.prompt_ids for rollout in rollouts], [rollout.response_ids for rollout in rollouts]
    logprobs, versions = [rollout.logprobs for rollout in rollouts], [rollout.versions for rollout in rollouts]
    lengths, prompt_lengths = list(map(len, responses)), list(map(len, prompts))
    numbers = 0.0
    for rollout, length in zip(rollouts, lengths, strict=True):
        score = rollout.score
        numbers += score.reward + score.quality + score.similarity + score.drift
        if score.terms:
            numbers += sum(score.terms.values())
        if not length >= rollout.header >= 0:
            return False
    if not (
        list(map(len, logprobs)) == list(map(len, versions)) == lengths
        and all(lengths)
        and 0 < min(prompt_lengths) <= max(prompt_lengths) < limits.tokens
        # A sum is finite only if every summand is.
        and math.isfinite(numbers)
    ):
        return False
    # One copy of all arrays, each of four bytes an element. Joining bytes takes half as long as np.concatenate, and the
    # reductions of ufuncs less than the methods of arrays.
    arrays: list[Any] = [*prompts, *responses, *logprobs, *versions]  # buffers, which numpy's types do not say
    joined = b"".join(arrays)
    tokens = sum(lengths)
    all_ids = np.frombuffer(joined, np.uint32, sum(prompt_lengths) + tokens)
    all_logprobs = np.frombuffer(joined, FLOAT32, tokens, all_ids.nbytes)
    all_versions = np.frombuffer(joined, INT32, tokens, all_ids.nbytes + all_logprobs.nbytes)
    smallest, largest = np.minimum.reduce, np.maximum.reduce
    return bool(
        largest(all_ids) < limits.vocabulary  # read as unsigned, a negative id is a large one
        and largest(all_logprobs) <= _ROUNDING  # False, too, if one is not a number
        and smallest(all_logprobs) > -math.inf
        and smallest(all_versions) >= oldest
        and largest(all_versions) <= newest
    )


def _describe_problem(rollouts: list[Rollout], limits: Limits, oldest: int, newest: int) -> str:
    """Checks one answer after the other, and describes the first problem; empty if there is none."""
    for number, rollout in enumerate(rollouts, start=1):
        length, where = len(rollout.response_ids), f"answer {number} ({rollout.language})"
        if not length or len(rollout.logprobs) != length or len(rollout.versions) != length:
            return (
                f"{where}: {length} tokens, {len(rollout.logprobs)} log-probabilities, {len(rollout.versions)} versions"
            )
        if not 0 <= rollout.header <= length:
            return f"{where}: a header of {rollout.header} tokens in a response of {length}"
        if not 0 < len(rollout.prompt_ids) < limits.tokens:
            return f"{where}: {len(rollout.prompt_ids)} prompt tokens, learner.microbatch_tokens = {limits.tokens}"
        for ids in (rollout.prompt_ids, rollout.response_ids):
            if ids.min() < 0 or ids.max() >= limits.vocabulary:
                return f"{where}: token {ids.min() if ids.min() < 0 else ids.max()}, vocabulary {limits.vocabulary}"
        score = rollout.score
        if not np.isfinite([score.reward, score.quality]).all():
            return f"{where}: reward {score.reward}, quality {score.quality}"
        for name, value in {"similarity": score.similarity, "drift": score.drift, **score.terms}.items():
            if not math.isfinite(value):
                return f"{where}: {name} {value}"
        if not np.isfinite(rollout.logprobs).all():
            return f"{where}: a log-probability is not finite"
        if rollout.logprobs.max() > _ROUNDING:
            return f"{where}: a log-probability of {rollout.logprobs.max():g}, which is above 0"
        if rollout.versions.min() < oldest or rollout.versions.max() > newest:
            low, high = int(rollout.versions.min()), int(rollout.versions.max())
            return (
                f"{where}: tokens of the policy versions {low} to {high}; those that the engine may have had since the "
                f"lease, within the staleness bound of {limits.lag}, are {oldest} to {newest}"
            )
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
            header = min(rollout.header, int(room))
            rollout = rollout.model_copy(update={**parts, "header": header, "truncated": True})
        result.append(rollout)
    number = sum(new is not old for new, old in zip(result, rollouts, strict=True))
    return (
        result,
        f"{number} of {len(result)} answers cut to learner.microbatch_tokens = {limits.tokens}" if number else "",
    )
