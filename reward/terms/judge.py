"""The term "judge": a grade that a model behind an OpenAI-compatible endpoint gives to an answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from string import Formatter

from common.config import ConfigError, RewardConfig
from common.endpoint import Conversation, Failure, read_grade
from common.languages import display_name
from common.wire import Chat
from reward.terms.inputs import TermFunction, TermInput
from reward.terms.tools import Tools

_FIELDS = {"question", "reference", "answer", "language"}


def check_judge(config: RewardConfig) -> None:
    """Returns if the term "judge" has what it needs.

    Raises:
        ConfigError: there are no judges, or the prompt has a single brace, or names a field that is unknown.
    """
    if not config.judges:
        raise ConfigError('the term "judge" of reward.terms needs reward.judges = ["MODEL@URL"]')
    braces = "; where a brace is to stand in the prompt, as of JSON, write {{ and }} for { and }"
    try:
        unknown = {name for _, name, _, _ in Formatter().parse(config.judge_prompt) if name is not None} - _FIELDS
        if not unknown:
            config.judge_prompt.format(**dict.fromkeys(_FIELDS, ""))
    except (ValueError, LookupError) as error:
        raise ConfigError(f"reward.judge_prompt cannot be filled in: {error}{braces}") from None
    if unknown:
        raise ConfigError(f"reward.judge_prompt names {sorted(unknown)}; it may name {sorted(_FIELDS)}{braces}")


def judge_request(prompt: str, messages: Sequence[Chat], reference: str, answer: str, language: str) -> Conversation:
    """What a judge is asked about an answer.

    Args:
        prompt: ``reward.judge_prompt``.
        messages: the question.
        language: the code of the language asked for; ``""`` where it is not known.
    """
    asked = prompt.format(
        question="\n\n".join(turn.content for turn in messages if turn.role != "system"),
        reference=reference,
        answer=answer,
        language=display_name(language) if language else "any language",
    )
    return [{"role": "user", "content": asked}]


def make_judge(tools: Tools) -> TermFunction:
    """A function that has answers graded by ``reward.judges``: a grade as a share of ``reward.judge_scale``.

    An answer that no endpoint grades in time has the value None. One that an endpoint refuses, as where it is too long
    for the judge, or to which it gives no grade however often it is asked, has the value nan: it would have none the
    next time, too.

    Raises:
        ConfigError: as of :func:`check_judge`.
    """
    check_judge(tools.config)
    prompt, (least, most) = tools.config.judge_prompt, tools.config.judge_scale

    async def grade(given: TermInput) -> float | None:
        asked = judge_request(prompt, given.request.messages, given.accepted[0], given.text, given.answer.asked)
        read = partial(read_grade, least=least, most=most)
        found = await tools.judge_or_failure(asked, read)
        if isinstance(found, Failure):
            return math.nan if found.lasting else None
        return (found - least) / (most - least)

    async def values(given: Sequence[TermInput]) -> list[float | None]:
        return list(await asyncio.gather(*map(grade, given)))

    return values
