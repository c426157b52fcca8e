"""The reward of AdaMame (arXiv 2606.15080), as far as it knows one question; adamame_step.py does what needs the step.

The language of an answer is that of its first 500 characters, thought included and formulas not removed.
"""

from __future__ import annotations

from collections import Counter

from reward.terms.custom import Group, Parts
from reward.terms.tools import Tools

_FIRST = 500  # characters


async def score(group: Group, tools: Tools) -> Parts:
    """``acc``; ``match``: the answer is in the question's language; ``same``: how many of the K are in its language.

    An answer without a language, as one of odd characters, counts as if it were in everybody's (``same`` = K), so that
    it never earns as a rare one.
    """
    spoken = tools.languages([one.text[:_FIRST] for one in group.answers])
    right = await tools.verify_all([(one.final, group.accepted, one.detected or one.asked) for one in group.answers])
    return _parts(group, spoken, right, unknown=len(group.answers))


async def score_as_published(group: Group, tools: Tools) -> Parts:
    """As the published code has it: texts without a language count as one more language, and as a rare one at that.

    The verifier reads prompt and response together, so a box in the question counts where the answer has none.
    """
    spoken = tools.languages([one.text[:_FIRST] for one in group.answers])
    question = "\n".join(turn.content for turn in group.messages)
    texts = [f"{question}\n{one.text}" for one in group.answers]
    right = await tools.verify_all([(text, group.accepted, group.language) for text in texts])
    return _parts(group, spoken, right, unknown=0)


def _parts(group: Group, spoken: list[str], right: list[float | None], unknown: int) -> Parts:
    counts = Counter(spoken)
    return [
        {
            "acc": value,
            "match": float(language == group.language),
            "same": float(counts[language] if language or not unknown else unknown),
        }
        for language, value in zip(spoken, right, strict=True)
    ]
