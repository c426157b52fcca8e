r"""What a mathematical answer ends with: its last box, or the formula or number that a text without a box ends with.

Nothing else of an answer is evaluated, so nothing else can make it wrong: its way to the result may be in bold print,
name 2024! or 7^{12345}, and have any length. And nothing else can cost anything: what asks for an astronomical number
is told here, before a worker takes it. The limits of the workers are for what is not told.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from common.numbers import find_numbers, number_of, plain_digits
from reward.terms.multiples import multiplied_before, multiplies, without_multiples

_BOX = re.compile(r"\\(?:boxed|fbox)\{")
_BOXES = 6  # math-verify reads so many that belong together, as $\boxed{1}$ and $\boxed{2}$
_BOX_DISTANCE = 70  # characters between two boxes that math-verify may take for the parts of one answer
_PERCENT_AFTER = re.compile(r"[\s$]*+\\?[%٪]")

# What math-verify may take for a formula where there is no box.
_DELIMITED = re.compile(r"\$[^$]++\$|\\[(\[](?:[^\\]|\\[^()\[\]])*+\\[)\]]")
_FORMULA = re.compile(_DELIMITED.pattern + r"|[\d(][\d\s.,+\-*×/^()÷{}]*+")
# A power of a power, a power of more than four digits, 200 digits in a row.
_TOWER = re.compile(
    r"(?:\^|\*\*)\s*+[{(]?\s*+[+-]?\d++\s*+[})]?\s*+(?:\^|\*\*)"
    r"|(?:\^|\*\*)\s*+(?:[{(]\s*+[+-]?(?:\d[\s,]*+){5}|[+-]?\d{5})|\d{201}"
)
_FACTORIAL = re.compile(r"\d{5}[\s})]*+!(?!=)|![\s})]*+!")  # of a large number, or of a factorial

# Emphasis in Markdown, HTML and LaTeX. Between two operands a star is a product or a power, and a low line an index.
_BEFORE, _AFTER = r"(?<![0-9A-Za-z)}\]\\])", r"(?![0-9A-Za-z({\[\\])"
_EMPHASIS = (
    *(
        re.compile(rf"{_BEFORE}(?<!{mark}){mark}{{1,3}}(?=\S)([^{mark}\n]*[^\s{mark}]){mark}{{1,3}}(?!{mark}){_AFTER}")
        for mark in (r"\*", "_", "`")
    ),
    re.compile(r"</?(?:b|strong|i|em|u|mark|code)>()", re.IGNORECASE),
    re.compile(
        r"\\(?:textbf|mathbf|boldsymbol|bm|textit|emph|underline|text|mathrm|mbox)\s*+"
        r"\{(?=\s*+[-+]?\s*+(?:\d|\\[dt]?frac|\\sqrt))((?:[^{}]|\{[^{}]*+\})*+)\}"
    ),
)  # fmt: skip

_LONGEST_NUMBER = 1000  # characters of a box that may hold one number and its unit
_LATEX_SPACE = re.compile(r"\\(?:[,;:! ]|quad|qquad|thinspace)|~")
_EXPONENT = r"(?:\s*+\^\s*+\{?-?\d\}?|[²³])?"  # of a unit
_LATIN, _GREEK = "a-zA-ZÀ-ÖØ-öø-ɏḀ-ỿ", "Ͱ-Ͽἀ-῿"
# Words in scripts whose letters are no symbols of mathematics, signs of currencies, and what LaTeX has as text.
_UNIT = re.compile(
    rf"\\(?:text|textrm|mathrm|mbox)(?![a-z])\s*+(?:\{{[^{{}}]*+\}})?{_EXPONENT}|[^\W\d_{_LATIN}{_GREEK}]+{_EXPONENT}"
    r"|°\s*+[CF]?(?![a-zA-Z])|[%°$€¥£₠-⃏]|\\[%$]|\^\s*+\{?\\circ\}?"
)
# Words in Latin or Greek letters, the first of three letters, with an accent, or of a unit of length, weight, speed or
# volume: 42 x, 42 xy and 3 sin x are products.
_WORDS = re.compile(
    rf"(?<=\s)(?!(?:arc)?(?:sin|cos|tan|cot|sec|csc|log|exp|lim|max|min|mod|gcd|lcm|det)\b)"
    rf"(?:[{_LATIN}{_GREEK}]{{3,}}+|[a-zA-Z]?[À-ÖØ-öø-ɏḀ-ỿ][{_LATIN}]?|km/h|m/s|[kcmd]?m|[km]g|m[lL])"
    rf"(?![{_LATIN}{_GREEK}])"
    rf"(?:[\s.,'’/-]++[{_LATIN}{_GREEK}]++)*+{_EXPONENT}[\s.]*$"
)


class Result(NamedTuple):
    """What is read of an answer.

    Attributes:
        text: what math-verify may see: the last box or boxes, or a text without formulas that nobody can evaluate.
        formula: the formula in it that is evaluated first: if this one is hostile, the answer is.
    """

    text: str
    formula: str


def result_of(text: str) -> Result:
    """What is read of an answer, without emphasis. Takes time in proportion to the length of the text.

    Formulas that ask for astronomical numbers are left out of a text without a box where another formula or number
    follows them. Nothing is read of a text that ends within a box: of 42 it may have the 4.
    """
    text = plain_digits(text)
    if ends_in_box(text):
        return Result("", "")
    if boxes := _last_boxes(text):
        boxes = _without_emphasis(boxes)
        return Result(boxes, boxes)
    text = _without_emphasis(text)
    formulas = [one for one in _FORMULA.finditer(text) if any(c.isalnum() for c in one[0])]
    kept, end = list[str](), 0
    for one in formulas[:-1]:
        if is_hostile(one[0]):
            kept += [text[end : one.start()], " "]
            end = one.end()
    return Result("".join([*kept, text[end:]]), formulas[-1][0] if formulas else "")


def is_hostile(formula: str) -> bool:
    """Whether a formula asks for an astronomical number or nests without end, which no honest result does."""
    formula = _without_emphasis(plain_digits(formula))
    if _TOWER.search(formula) or _FACTORIAL.search(formula) or formula.count("{") > 300:
        return True
    dense = "".join(formula.split())
    return "(" * 50 in dense or "{" * 30 in dense


def number_in_box(box: str, language: str) -> Fraction | None:
    """The number that a box consists of, unit left out, as a text in this language means it; None where it is none.

    Args:
        language: ISO code; ``""``: not known.
    """
    plain = _inside(box)
    return None if without_multiples(plain) != plain else _number_with_unit(plain, language)


def is_multiplied_box(box: str) -> bool:
    """Whether a box consists of a number and a word that multiplies it, with or without a unit: ``5 million km``."""
    plain = _inside(box)
    number = without_multiples(plain)
    return number != plain and _number_with_unit(number, "en") is not None


def ends_multiplied(text: str, language: str) -> bool:
    """Whether a word multiplies the number that a text without a box ends with.

    Where a formula stands before it, which is what math-verify reads of the text, it plays no part.
    """
    plain = plain_digits(text)
    numbers = find_numbers(plain, language)
    if not numbers:
        return False
    last, formulas = numbers[-1], list(_DELIMITED.finditer(plain))
    if formulas and not formulas[-1].start() <= last.start < formulas[-1].end():
        return False
    return multiplies(plain[last.end :], language) or multiplied_before(plain[: last.start])


def _inside(box: str) -> str:
    """What is read of a box as a number; "" of one that is too long to be one."""
    return "" if len(box) > _LONGEST_NUMBER else _LATEX_SPACE.sub(" ", plain_digits(_without_emphasis(box)))


def _number_with_unit(plain: str, language: str) -> Fraction | None:
    # Two spaces, which part numbers: \text{2 or }300 is not 2 300.
    return number_of(_WORDS.sub("", _UNIT.sub("  ", plain)), language)


def _last_boxes(text: str) -> str:
    r"""The last box that is not empty, with those before it that math-verify may take for parts of the same answer.

    A percent sign behind the last one is put into it. ``""``: there is none.
    """
    boxes = list(_BOX.finditer(text))
    while boxes and not text[boxes[-1].end() : closing_brace(text, boxes[-1].end())].strip():
        boxes.pop()
    if not boxes:
        return ""
    first, end = boxes[-1].start(), closing_brace(text, boxes[-1].end())
    for box in boxes[-2 : -_BOXES - 1 : -1]:
        closing = closing_brace(text, box.end(), first)
        if closing == first or first - closing > _BOX_DISTANCE or is_hostile(text[closing:first]):
            break
        first = box.start()
    percent = r"\%" if _PERCENT_AFTER.match(text, end + 1) else ""
    return f"{text[first:end]}{percent}}}"


def ends_in_box(text: str) -> bool:
    """Whether a text ends within its last box, because it was cut off or forgot a brace."""
    boxes = list(_BOX.finditer(text))
    return bool(boxes) and closing_brace(text, boxes[-1].end()) == len(text)


def closing_brace(text: str, begin: int, end: int | None = None) -> int:
    """Where the brace closes that was opened before ``begin``; ``end``, or that of the text, where it does not."""
    end, depth = len(text) if end is None else end, 1
    for brace in re.compile(r"[{}]").finditer(text, begin, end):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    return end


def _without_emphasis(text: str) -> str:
    for mark in _EMPHASIS:
        text = mark.sub(r"\1", text)
    return text
