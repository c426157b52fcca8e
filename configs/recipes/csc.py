"""Cross-lingual self-consistency (after arXiv 2606.01464): a reward without reference answers.

The paper's code is not public and its formula was not readable; this one is ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from reward.terms.custom import Group, Parts
from reward.terms.math import last_box, reading_cost
from reward.terms.results import is_hostile, number_in_box
from reward.terms.tools import Tools


async def score(group: Group, tools: Tools) -> Parts:
    """``agreement`` of each answer: the mean over languages of the share of their answers that agree with it.

    The answer itself is left out, and so are languages of which no other answer is left; every language counts alike,
    however many answers it has. Two answers agree where their boxes are the same number, each read in its answer's
    language, or where math-verify finds them equal. An answer without a box agrees with none, nor does one whose box
    asks for astronomical numbers. Where no two agree all values are 0, and the question teaches nothing. An answer
    whose box could not be compared is not scored, and left out for the others.
    """
    boxes = [last_box(one.text) for one in group.answers]
    classes = await equal_boxes(boxes, [one.detected or one.asked for one in group.answers], tools)
    values = agreement(classes, [one.asked for one in group.answers])
    return [None if value is None else {"agreement": value} for value in values]


async def equal_boxes(boxes: Sequence[str | None], languages: Sequence[str], tools: Tools) -> list[int | None]:
    """A number for each box that equal ones share, -1 for no box; None where the verifier did not get to compare it.

    Which of them share one does not depend on the order of the boxes.

    Args:
        languages: code of the language that each box is in, which decides what 1.234 means.
    """
    read = [_read(box, language) for box, language in zip(boxes, languages, strict=True)]
    numbers = {form for form, is_number in read if is_number}
    class_of: dict[str, int | None] = {"": -1}
    first_of_class: list[str] = []
    # Always in this order, whatever that of the answers is: what looks cheap to read is what others are compared with.
    for form in sorted({form for form, _ in read} - {""}, key=lambda form: (reading_cost(form), form)):
        others = [one for one in first_of_class if not {one, form} <= numbers]  # numbers differ if they look different
        equal = await tools.verify_all([(f"\\boxed{{{form}}}", [one], "en") for one in others])
        if 1 in equal:
            class_of[form] = class_of[others[equal.index(1)]]
        elif None in equal:
            class_of[form] = None
        else:
            class_of[form] = len(first_of_class)
            first_of_class.append(form)
    return [class_of[form] for form, _ in read]


def _read(box: str | None, language: str) -> tuple[str, bool]:
    """What a box says in a form that means the same in every language, and whether it is a number; "" for nothing."""
    if box is None or is_hostile(box):
        return "", False
    number = number_in_box(box, language)
    if number is None:
        return box.strip(), False
    whole = str(number.numerator)
    return (whole if number.denominator == 1 else f"\\frac{{{whole}}}{{{number.denominator}}}"), True


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
