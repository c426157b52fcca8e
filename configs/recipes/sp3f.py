"""The reward of SP3F (arXiv 2601.18722): a judge who sees an English solution compares the answers in pairs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence

from reward.terms.custom import Group, Part, Parts
from reward.terms.math import last_box
from reward.terms.tools import Tools, has_letters

_LEAST_SHARE = 0.7  # of the answer in its language

COMPARISON = """Question:
{question}

A correct solution:
{solution}

Answer A:
{first}

Answer B:
{second}

Both answers are to the same question, perhaps in another language. Which one reasons better and is right? Explain
shortly, and end with a line that has the letter A or B and nothing else."""

Results = Sequence[Sequence[bool | None]]  # [K][K - 1]: whether an answer beat each other one; None: nobody said


async def score(group: Group, tools: Tools) -> Parts:
    """``acc``, ``box``, ``lc`` and ``wins``, each in [0, 1].

    ``wins`` is the share of the comparisons with the other answers that an answer wins, always shown as A. Comparisons
    that failed are left out; an answer of which all failed cannot be scored. One that is alone, as in evaluations, wins
    nothing. ``lc`` is of the final answer; of one without a word, as a bare number or a box, it is that of the thought
    before it, and 0 where there is none.
    """
    return await _score(group, tools, _share_of_those_made)


async def score_as_published(group: Group, tools: Tools) -> Parts:
    """As the published code has it: a comparison that failed is a loss of A."""
    return await _score(group, tools, _share_of_all)


def _share_of_those_made(results: Sequence[bool | None]) -> float | None:
    if not results:  # there is no other answer
        return 0.0
    made = [one for one in results if one is not None]
    return sum(made) / len(made) if made else None


def _share_of_all(results: Sequence[bool | None]) -> float:
    return sum(map(bool, results)) / max(1, len(results))


async def _score(group: Group, tools: Tools, share_of: Callable[[Sequence[bool | None]], float | None]) -> Parts:
    answers = group.answers
    given = [(one.final, group.accepted, one.detected or one.asked) for one in answers]
    right, results = await asyncio.gather(tools.verify_all(given), compare(group, tools))
    judged = [one.thinking if one.final and not has_letters(one.final, one.asked) else one.final for one in answers]
    shares = tools.language_shares(judged, [one.asked for one in answers])
    parts: list[dict[str, Part] | None] = []
    for one, acc, share, made in zip(answers, right, shares, results, strict=True):
        wins = share_of(made)
        boxed = float(last_box(one.text) is not None)
        lc = float(share >= _LEAST_SHARE)
        parts.append(None if wins is None else {"acc": acc, "box": boxed, "lc": lc, "wins": wins})
    return parts


async def compare(group: Group, tools: Tools) -> Results:
    """K (K - 1) comparisons, all at a time as far as ``reward.judge_calls`` lets them."""
    question = group.extra.get("english_question", "").strip() or group.messages[-1].content
    solution = group.extra.get("english_solution", "").strip() or group.reference

    async def wins(first: str, second: str) -> bool | None:
        asked = COMPARISON.format(question=question, solution=solution, first=first, second=second)
        return await tools.judge([{"role": "user", "content": asked}], read_first_wins)

    async def of(k: int) -> list[bool | None]:
        texts = [one.text for one in group.answers]
        return list(await asyncio.gather(*(wins(texts[k], text) for n, text in enumerate(texts) if n != k)))

    return await asyncio.gather(*map(of, range(len(group.answers))))


def read_first_wins(said: str) -> bool:
    """Whether the last line is A, and not B; with marks around it, as ``**A**``, but with no other word.

    Raises:
        ValueError: it is neither. A letter in a sentence decides nothing: "B makes a mistake" is for A.
    """
    last = said.strip().rpartition("\n")[2]
    found = re.fullmatch(r"[\W_]*([AB])[\W_]*", last)
    if found is None:
        raise ValueError("the last line must be the letter A or B, and nothing else")
    return found[1] == "A"
