"""The term "judge": a grade that a model behind an OpenAI-compatible endpoint gives to an answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from string import Formatter

from common.config import ConfigError, RewardConfig
from common.endpoint import Failure, read_grade
from common.languages import english_name
from reward.terms.inputs import TermFunction, TermInput
from reward.terms.tools import Tools

_FIELDS = {"question", "reference", "answer", "language"}


def check_judge(config: RewardConfig) -> None:
    """Returns if the term "judge" has what it needs.

    Raises:
        ConfigError: there are no judges, or the prompt names a field that is unknown.
    """
    if not config.judges:
        raise ConfigError('the term "judge" of reward.terms needs reward.judges = ["MODEL@URL"]')
    if unknown := {name for _, name, _, _ in Formatter().parse(config.judge_prompt) if name is not None} - _FIELDS:
        raise ConfigError(f"reward.judge_prompt names {sorted(unknown)}; it may name {sorted(_FIELDS)}")


def make_judge(tools: Tools) -> TermFunction:
    """A function that has answers graded by ``reward.judges``: a grade as a share of ``reward.judge_scale``.

    An answer that no endpoint grades in time has the value None. One that an endpoint refuses, as where it is too long
    for the judge, or to which it gives no grade however often it is asked, has the value nan: it would have none the
    next time, too.

    Raises:
        ConfigError: there are no judges, or the prompt names a field that is unknown.
    """
    check_judge(tools.config)
    prompt, (least, most) = tools.config.judge_prompt, tools.config.judge_scale

    async def grade(given: TermInput) -> float | None:
        question = "\n\n".join(turn.content for turn in given.request.messages if turn.role != "system")
        asked = prompt.format(
            question=question,
            reference=given.accepted[0],
            answer=given.text,
            language=english_name(given.answer.asked).capitalize() if given.answer.asked else "any language",
        )
        read = partial(read_grade, least=least, most=most)
        found = await tools.judge_or_failure([{"role": "user", "content": asked}], read)
        if isinstance(found, Failure):
            return math.nan if found.lasting else None
        return (found - least) / (most - least)

    async def values(given: Sequence[TermInput]) -> list[float | None]:
        return list(await asyncio.gather(*map(grade, given)))

    return values
