"""The reward of AdaMame (arXiv 2606.15080), as far as it knows one question; adamame_step.py does what needs the step.

The language of an answer is that of its first 500 characters, thought included and of formulas only the words. It is
one of the run's, of the question's or English, as the published detector knows AdaMame's languages alone: what lid.176
takes for a language that nobody asked for, as Galician for Portuguese, would be rare in every group.
"""

from __future__ import annotations

from collections import Counter

from reward.terms.custom import Group, Parts
from reward.terms.tools import Tools

_FIRST = 500  # characters


async def score(group: Group, tools: Tools) -> Parts:
    """``acc``; ``match``: the answer is in the question's language; ``same``: how many of the K are in its language.

    Whether it is in the question's language is told as the gate does. An answer without a language, as a bare number or
    one of odd characters, matches none and counts as if it were in everybody's (``same`` = K), so that it never earns
    as a rare one.
    """
    texts = [one.text[:_FIRST] for one in group.answers]
    kept = tools.in_language(texts, [group.language] * len(texts))
    spoken = _spoken(group, tools, texts)
    spoken = [group.language if code and ok else code for code, ok in zip(spoken, kept, strict=True)]
    match = [bool(code) and ok for code, ok in zip(spoken, kept, strict=True)]
    right = await tools.verify_all([(one.final, group.accepted, one.detected or one.asked) for one in group.answers])
    return _parts(spoken, match, right, unknown=len(group.answers))


async def score_as_published(group: Group, tools: Tools) -> Parts:
    """As the published code has it: texts without a language count as one more language, and as a rare one at that.

    The verifier reads prompt and response together, so a box in the question counts where the answer has none.
    """
    spoken = _spoken(group, tools, [one.text[:_FIRST] for one in group.answers])
    match = [code == group.language for code in spoken]
    question = "\n".join(turn.content for turn in group.messages)
    texts = [f"{question}\n{one.text}" for one in group.answers]
    right = await tools.verify_all([(text, group.accepted, group.language) for text in texts])
    return _parts(spoken, match, right, unknown=0)


def _spoken(group: Group, tools: Tools, texts: list[str]) -> list[str]:
    return tools.languages(texts, among=[group.language, *sorted(tools.run_languages), "en"])


def _parts(spoken: list[str], match: list[bool], right: list[float | None], unknown: int) -> Parts:
    counts = Counter(spoken)
    return [
        {
            "acc": value,
            "match": float(kept),
            "same": float(counts[language] if language or not unknown else unknown),
        }
        for language, kept, value in zip(spoken, match, right, strict=True)
    ]
