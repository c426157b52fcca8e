"""A reward that a small model can earn in part: to copy a word, and to say nothing else."""

from __future__ import annotations

from reward.terms.custom import Group, Parts
from reward.terms.tools import Tools


def score(group: Group, tools: Tools) -> Parts:
    """The parts ``copied``, 1 where the word is in the answer, and ``alone``, the share of it that the word is then."""
    word = group.accepted[0].casefold()
    parts = list[dict[str, float]]()
    for answer in group.answers:
        said = answer.final.strip(" .\n\"'").casefold()
        copied = word in said
        parts.append({"copied": float(copied), "alone": len(word) / len(said) if copied else 0.0})
    return parts
