"""The reward of PB-RLSVR (arXiv 2509.25543): an answer in any language is compared with an English reference.

The paper's code is not public. It scores the final answer by COMET, in whose place a judge grades the translation.
"""

from __future__ import annotations

import asyncio
import math

from reward.terms.custom import Group, GroupAnswer, Parts
from reward.terms.missing import NEVER
from reward.terms.tools import Tools

_MOST = 100

TRANSLATION = """English text:
{english}

Text in another language:
{text}

How well does the second text say what the first one says, as a translation of it would? Reply with one whole number
from 0 (nothing of it) to 100 (all of it and nothing else), and nothing else."""


async def score(group: Group, tools: Tools) -> Parts:
    """``answer``: the judge's grade of the final answer; ``reasoning``: max(0, cosine) of the thought; both in [0, 1].

    An answer without a thought is compared as a whole, and one whose embedding is no number can never be scored. The
    row needs the columns ``english_answer`` and ``english_reasoning``.
    """
    english, reasoning = (column(group, name) for name in ("english_answer", "english_reasoning"))
    thoughts = [one.thinking or one.final for one in group.answers]
    (reference,), vectors = await asyncio.gather(tools.embed([reasoning], keep=True), tools.embed(thoughts))

    async def grade(one: GroupAnswer) -> float | None:
        if not one.final:
            return 0.0
        asked = TRANSLATION.format(english=english, text=one.final)
        return await tools.judge([{"role": "user", "content": asked}], read_grade)

    grades = await asyncio.gather(*map(grade, group.answers))
    cosines = [float(vector @ reference) for vector in vectors]
    near = [NEVER if math.isnan(cosine) else max(0.0, cosine) for cosine in cosines]
    return [{"answer": grade, "reasoning": similarity} for grade, similarity in zip(grades, near, strict=True)]


def column(group: Group, name: str) -> str:
    text = group.extra.get(name, "").strip()
    if not text:
        raise ValueError(f"its row has no {name!r}; name its column in data.columns")
    return text


def read_grade(said: str) -> float:
    grade = float(said.strip())
    if not 0 <= grade <= _MOST:
        raise ValueError(f"the grade must be from 0 to {_MOST}")
    return grade / _MOST
