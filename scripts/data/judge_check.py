"""Asks the judges of a configuration about answers that are right, before a run begins whose rewards they make."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from common.config import Config, RewardConfig
from common.endpoint import Conversation, Endpoints, Failure, read_grade
from common.process import FatalError
from common.wire import Question
from reward.terms.judge import judge_request
from reward.terms.quality import choose_weights

_ASKED = 3  # of the shortest questions: one that a judge refuses may be at fault itself


def ask_judges_first(config: Config, questions: Sequence[Question]) -> list[str]:
    """Asks each of ``reward.judges`` for a few grades; blocks for at most ``reward.judge_timeout_s``.

    The term "judge" is asked for the grades of reference answers, as a run asks it. What a reward function asks is not
    known, so that a judge of one only has to answer.

    Args:
        questions: those of the run.

    Returns:
        A line for each judge that cannot be reached, which may be different when the run begins.

    Raises:
        FatalError: a judge is there, and refuses all that it is asked or gives no answer that can be used: no answer of
            the run would ever be scored.
    """
    reward = config.reward
    asked, read = _requests(reward, questions)
    if not asked:
        return []
    warnings = []
    for name, found in zip(reward.judges, asyncio.run(_ask(reward, asked, read)), strict=True):
        failures = [one for one in found if isinstance(one, Failure)]
        if len(failures) < len(found):
            continue
        if all(one.lasting for one in failures):
            raise FatalError(f"the judge {name} can grade no answer: {failures[0]}. {_cure(failures[0], reward)}")
        reason = next(one for one in failures if not one.lasting)
        warnings.append(f"the judge {name} cannot be asked: {reason}. Answers wait for it when the run begins")
    return warnings


def _requests(
    reward: RewardConfig, questions: Sequence[Question]
) -> tuple[list[Conversation], Callable[[str], object]]:
    """What each judge is asked, and how its answers are read; nothing where no reward asks a judge."""
    if not reward.judges:
        return [], str
    if reward.function:
        return [[{"role": "user", "content": "Reply with the number 5 and nothing else."}]], _something
    graded = [one for one in questions if "judge" in choose_weights(reward.terms, one.topics)]
    right = [(one, (one.accepted or [one.reference])[0]) for one in graded]
    requests = [judge_request(reward.judge_prompt, one.messages, gold, gold, one.language) for one, gold in right]
    least, most = reward.judge_scale
    shortest = sorted(requests, key=lambda talk: len(talk[0]["content"]))[:_ASKED]
    return shortest, partial(read_grade, least=least, most=most)


async def _ask(
    reward: RewardConfig, asked: Sequence[Conversation], read: Callable[[str], object]
) -> list[list[object | Failure]]:
    """For each of the judges what it said to each of the requests."""

    async def one_judge(name: str) -> list[object | Failure]:
        timeout_s = reward.judge_timeout_s
        judge = Endpoints([name], timeout_s=timeout_s, deadline_s=timeout_s, attempts=1, sampling=reward.judge_sampling)
        try:
            return list(await asyncio.gather(*(judge.ask(talk, read) for talk in asked)))
        finally:
            await judge.close()

    return list(await asyncio.gather(*map(one_judge, reward.judges)))


def _something(said: str) -> str:
    if not said:
        raise ValueError("it is empty")
    return said


def _cure(failure: Failure, reward: RewardConfig) -> str:
    if failure.kind == "refused":
        return (
            "Every request has the fields of reward.judge_sampling: leave out what the server does not take, or name "
            "another model in reward.judges"
        )
    prompt = "" if reward.function else "say more clearly in reward.judge_prompt what it is to reply, or "
    return (
        "Of a judge that thinks, thinking is switched off by reward.judge_sampling = {chat_template_kwargs = "
        f"{{enable_thinking = false}}}} on servers that take it; otherwise {prompt}name another model in reward.judges"
    )
