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
    agrees with none. Where no two agree all values are 0, and the question teaches nothing. An answer whose box could
    not be compared is not scored, and left out for the others.
    """
    classes = await equal_boxes([last_box(one.text) for one in group.answers], tools)
    values = agreement(classes, [one.asked for one in group.answers])
    return [None if value is None else {"agreement": value} for value in values]


async def equal_boxes(boxes: Sequence[str | None], tools: Tools) -> list[int | None]:
    """A number for each box that equal ones share, -1 for no box; None where the verifier did not get to compare it."""
    distinct = list(dict.fromkeys(box.strip() for box in boxes if box is not None and box.strip()))
    number_of: dict[str, int | None] = {}
    first_of_class: list[str] = []
    for box in distinct:
        asked = [(f"\\boxed{{{box}}}", [one], "") for one in first_of_class]
        equal = await tools.verify_all(asked)
        if 1 in equal:
            number_of[box] = equal.index(1)
        elif None in equal:
            number_of[box] = None
        else:
            number_of[box] = len(first_of_class)
            first_of_class.append(box)
    return [-1 if box is None else number_of.get(box.strip(), -1) for box in boxes]


def agreement(classes: Sequence[int | None], languages: Sequence[str]) -> list[float | None]:
    """The values of :func:`score` for answers of these classes (-1: of none; None: not known) and languages."""
    values: list[float | None] = []
    for k, mine in enumerate(classes):
        if mine is None:
            values.append(None)
            continue
        same = defaultdict[str, list[bool]](list)
        for other, theirs in enumerate(classes):
            if other != k and theirs is not None:
                same[languages[other]].append(mine >= 0 and theirs == mine)
        shares = [sum(found) / len(found) for found in same.values()]
        values.append(sum(shares) / len(shares) if shares else 0.0)
    return values
