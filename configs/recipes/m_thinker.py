"""Rewards of M-Thinker (arXiv 2510.07300) and of its baselines SLC-RL and strict LC.

The recipes take the gate of this project for a part's language and math-verify for its answer. The classes whose names
end in ``AsPublished`` take what the published code has: langdetect (``pip install "lrpo[detectors]"``), under which any
text of at most 15 characters is in every language, answers compared as texts, and 0 for a judgement that failed.

Every answer has a part ``accuracy`` beside those of the reward: whether it is right, whatever its language, format and
length. Its weight is 0. Charts, evaluations and pass rates read it, because ``acc`` is 0 for right answers that earn
nothing. An answer that the verifier did not get to is not scored, whatever it would earn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from common.diagnostics import DetectAll, consistent_polymath
from common.languages import english_name
from reward.detectors import Langdetect
from reward.terms.custom import Group, GroupAnswer, Part, Parts
from reward.terms.published import boxed_equals
from reward.terms.tools import Tools

LEAST_CHARACTERS = 1000  # of an answer that SLC-RL rewards
_CLOSE = "</think>"

ALIGNMENT = """Below are a question, a thought about it in English, and a thought about it in {language}.

Question:
{question}

English thought:
{english}

Thought in {language}:
{thought}

List the key intermediate results of the English thought: variables, equations, values and the final answer. Count how
many of them the thought in {language} contains, too. Reply with that count divided by the number of key results, as
one number between 0 and 1, and nothing else."""


class Measured(NamedTuple):
    """What the three rewards know of an answer."""

    is_whole: bool  # it has exactly one </think>
    is_consistent: bool  # thought and final answer are both in the question's language
    is_right: bool | None  # None where the verifier did not get to it


async def measure(group: Group, tools: Tools) -> list[Measured]:
    """By the gate, which judges thought and final answer each by itself (``reward.gate_span = "all"``)."""
    right = await tools.verify_all([(one.final, group.accepted, one.detected or one.asked) for one in group.answers])
    pairs = zip(group.answers, right, strict=True)
    return [
        Measured(one.text.count(_CLOSE) == 1, one.compliant, None if value is None else value == 1)
        for one, value in pairs
    ]


def measure_as_published(group: Group, detect: DetectAll) -> list[Measured]:
    found = []
    for one in group.answers:
        thought, _, final = one.text.partition(_CLOSE)
        spoken = (thought.removeprefix("<think>"), final)
        kept = all(consistent_polymath(part, group.language, detect, stripped=True) for part in spoken)
        found.append(Measured(one.text.count(_CLOSE) == 1, kept, boxed_equals(one.text, group.accepted)))
    return found


def slc_parts(answers: Sequence[GroupAnswer], measured: Sequence[Measured], least: int = LEAST_CHARACTERS) -> Parts:
    """r = 0.9 acc + 0.1 lc; both are 0 unless the answer is whole and has more than ``least`` characters."""
    counted = [m.is_whole and len(one.text) > least for one, m in zip(answers, measured, strict=True)]
    return [{**accuracy(m, ok), "lc": float(ok and m.is_consistent)} for ok, m in zip(counted, measured, strict=True)]


def strict_parts(measured: Sequence[Measured]) -> list[dict[str, Part]]:
    """r = lc + acc: -1 where format or language fails, else 1 or 0 by the answer."""
    kept = [m.is_whole and m.is_consistent for m in measured]
    return [{"lc": float(ok) - 1, **accuracy(m, ok)} for ok, m in zip(kept, measured, strict=True)]


def accuracy(measured: Measured, counted: bool) -> dict[str, Part]:
    """``accuracy``: whether an answer is right; ``acc``: the same, as far as it counts. None where nobody knows."""
    right = None if measured.is_right is None else float(measured.is_right)
    return {"accuracy": right, "acc": right if counted else 0.0}


async def cta_parts(group: Group, strict: Sequence[dict[str, Part]], tools: Tools, failed: float | None) -> Parts:
    """Adds the cross-lingual thinking alignment r_cta in [0, 1] of the right answers.

    Args:
        failed: what a judgement that failed is worth; None masks its answer.
    """
    english = group.extra.get("english_thought", "").strip()
    question = group.extra.get("english_question", "").strip() or group.messages[-1].content

    async def whole(one: GroupAnswer, parts: dict[str, Part]) -> dict[str, Part]:
        if not parts["acc"] or not english:
            return {**parts, "cta": 0.0}
        language = english_name(group.language).capitalize()
        asked = ALIGNMENT.format(language=language, question=question, english=english, thought=one.thinking)
        share = await tools.judge([{"role": "user", "content": asked}], read_share)
        return {**parts, "cta": failed if share is None else share}

    return await asyncio.gather(*map(whole, group.answers, strict))


def read_share(said: str) -> float:
    share = float(said.strip())
    if not 0 <= share <= 1:
        raise ValueError("the number must be between 0 and 1")
    return share


async def slc_rl(group: Group, tools: Tools) -> Parts:
    return slc_parts(group.answers, await measure(group, tools))


async def slc_rl_of_any_length(group: Group, tools: Tools) -> Parts:
    """For models whose answers are short."""
    return slc_parts(group.answers, await measure(group, tools), least=0)


async def strict_lc(group: Group, tools: Tools) -> Parts:
    return strict_parts(await measure(group, tools))


async def m_thinker(group: Group, tools: Tools) -> Parts:
    """r = r_lc + r_acc + r_cta, which is -1, 0 or in [1, 2]."""
    return await cta_parts(group, strict_parts(await measure(group, tools)), tools, failed=None)


class SlcRlAsPublished:
    def __init__(self) -> None:
        self._detect = Langdetect().languages

    async def __call__(self, group: Group, tools: Tools) -> Parts:
        return slc_parts(group.answers, measure_as_published(group, self._detect))


class StrictLcAsPublished:
    def __init__(self) -> None:
        self._detect = Langdetect().languages

    async def __call__(self, group: Group, tools: Tools) -> Parts:
        return strict_parts(measure_as_published(group, self._detect))


class MThinkerAsPublished:
    def __init__(self) -> None:
        self._detect = Langdetect().languages

    async def __call__(self, group: Group, tools: Tools) -> Parts:
        return await cta_parts(group, strict_parts(measure_as_published(group, self._detect)), tools, failed=0.0)
