"""Cross-lingual self-consistency (after arXiv 2606.01464): a reward without reference answers.

The paper's code is not public and its formula was not readable; this one is ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from reward.terms.custom import Group, Parts
from reward.terms.math import last_box
from reward.terms.tools import Tools


async def score(group: Group, tools: Tools) -> Parts:
    """``agreement`` of each answer: the mean over languages of the share of their answers that agree with it.

    The answer itself is left out, and so are languages of which no other answer is left; every language counts alike,
    however many answers it has. Two answers agree where math-verify finds their boxes equal. An answer without a box
    agrees with none. Where no two agree all values are 0, and the question teaches nothing.
    """
    classes = await equal_boxes([last_box(one.text) for one in group.answers], tools)
    return [{"agreement": value} for value in agreement(classes, [one.asked for one in group.answers])]


async def equal_boxes(boxes: Sequence[str | None], tools: Tools) -> list[int]:
    """A number for each box that equal ones share; -1 for None."""
    distinct = list(dict.fromkeys(box.strip() for box in boxes if box is not None and box.strip()))
    number_of: dict[str, int] = {}
    first_of_class: list[str] = []
    for box in distinct:
        asked = [(f"\\boxed{{{box}}}", [one], "") for one in first_of_class]
        equal = await tools.verify_all(asked)
        number_of[box] = equal.index(1) if 1 in equal else len(first_of_class)
        if number_of[box] == len(first_of_class):
            first_of_class.append(box)
    return [-1 if box is None else number_of.get(box.strip(), -1) for box in boxes]


def agreement(classes: Sequence[int], languages: Sequence[str]) -> list[float]:
    """The values of :func:`score` for answers of these classes (-1: of none) and languages."""
    values = []
    for k, mine in enumerate(classes):
        same = defaultdict[str, list[bool]](list)
        for other, theirs in enumerate(classes):
            if other != k:
                same[languages[other]].append(mine >= 0 and theirs == mine)
        shares = [sum(found) / len(found) for found in same.values()]
        values.append(sum(shares) / len(shares) if shares else 0.0)
    return values
