"""Numbers in texts: digits of all scripts, grouping and decimal conventions, signs, percent, fractions, LaTeX.

Which of point and comma is the decimal sign depends on the language; CLDR, through babel, knows it for each. Where the
language is not known, or its convention does not fit the digits, the form of the number decides.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from babel import Locale, UnknownLocaleError

from common.text import normalise

_SPACES = " \u00a0\u2009\u202f"
_APOSTROPHES = "'’"
_MINUS = "-−‐‑–﹣"
_PERCENT = "%٪"
_GROUP = rf"[.,،٬٫{_SPACES}{_APOSTROPHES}·]"
_NUMBER = re.compile(rf"\d+(?:{_GROUP}\d+)*")
_LATEX_SIGN = re.compile(r"\{([.,])\}")  # 18{,}000
_LATEX_SPACE = re.compile(r"(?<=\d)(?:\\[,;:! ]|~|\\thinspace)(?=\d)")  # 18\,000


@dataclass(frozen=True)
class Number:
    """A number in a text.

    Attributes:
        value: exact.
        start: where it begins in the text as :func:`plain_digits` gives it, sign included.
        end: where it ends there, percent sign not included.
        percent: whether it is given in percent; the value is the one that is written.
    """

    value: Fraction
    start: int
    end: int
    percent: bool = False


def plain_digits(text: str) -> str:
    """The text in one form (:func:`common.text.normalise`), with ASCII digits and without LaTeX between digits."""
    text = normalise(text)
    if not text.isascii():
        text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    return _LATEX_SPACE.sub("", _LATEX_SIGN.sub(r"\1", text)) if "{" in text or "\\" in text or "~" in text else text


def find_numbers(text: str, language: str = "") -> list[Number]:
    """The numbers of a text, in order.

    Args:
        language: ISO code of the language that the text is in, which decides what 1.234 means; ``""``: not known, and
            such numbers are in thousands.
    """
    plain = plain_digits(text)
    return [
        number for match in _NUMBER.finditer(plain) for number in _read(plain, match.start(), match.end(), language)
    ]


def last_number(text: str, language: str = "") -> Fraction | None:
    """The last number of a text; None where it has none."""
    numbers = find_numbers(text, language)
    return numbers[-1].value if numbers else None


def number_of(text: str, language: str = "") -> Fraction | None:
    """The number that a text consists of; None where it is anything else."""
    plain = plain_digits(text).strip().strip("$").strip()
    numbers = find_numbers(plain, language)
    if len(numbers) != 1:
        return None
    rest = plain[: numbers[0].start] + plain[numbers[0].end :]
    return None if re.search(r"\w|\\", rest) else numbers[0].value


@cache
def _signs(language: str) -> tuple[str, ...]:
    """The decimal signs and the grouping signs of a language, as :func:`plain_digits` leaves them."""
    try:
        locale = Locale.parse(language) if language else None
    except (UnknownLocaleError, ValueError):
        locale = None
    if locale is None:
        return "", ""
    systems = [locale.number_symbols.get(name) for name in (locale.default_numbering_system, "latn")]
    known = [symbols for symbols in systems if symbols]
    return tuple("".join(normalise(one.get(kind) or "") for one in known) for kind in ("decimal", "group"))


def _read(plain: str, start: int, end: int, language: str) -> list[Number]:
    """The numbers of a run of digits and signs between them: one, or several where the signs only list them."""
    run = plain[start:end]
    digits, signs = re.split(_GROUP, run), re.findall(_GROUP, run)
    value = _value(digits, signs, language)
    if value is None:  # a list such as 1,2,3, or numbers with spaces between them
        for cut in range(len(signs) - 1, -1, -1):  # the longest beginning that is a number
            head = _value(digits[: cut + 1], signs[:cut], language)
            if head is not None:
                middle = start + sum(map(len, digits[: cut + 1])) + cut
                first = _finish(plain, head, start, middle)
                return [first, *_read(plain, middle + 1, end, language)]
    assert value is not None
    return [_finish(plain, value, start, end)]


def _finish(plain: str, value: Fraction, start: int, end: int) -> Number:
    """The number with the sign, denominator and percent sign around it."""
    prefix = plain[:start].rstrip(_SPACES)
    percent_before = prefix[-1:] in tuple(_PERCENT)
    if percent_before and prefix[-2:-1] in tuple(_MINUS):  # -%25 in Turkish
        start = len(prefix) - 1
    if start and plain[start - 1] in _MINUS:
        before = plain[start - 2] if start > 1 else " "
        # A hyphen after a digit, a cased letter or another hyphen joins or lists; anywhere else it is a sign.
        if not (before.isdecimal() or before.upper() != before.lower() or before in _MINUS or before == ")"):
            value, start = -value, start - 1
    after = plain[end:].lstrip(_SPACES)[:1]
    return Number(value, start, end, percent_before or (bool(after) and after in _PERCENT))


def _value(digits: list[str], signs: list[str], language: str) -> Fraction | None:
    """The value of groups of digits with signs between them; None where they are no single number."""
    if not signs:
        return Fraction(digits[0])
    decimal, group = _signs(language)
    # All signs but perhaps the last one must be the same, and group the digits.
    if len(set(signs)) == 1 and _are_groups(digits) and (len(signs) > 1 or _groups(signs[0], decimal, group)):
        return Fraction("".join(digits))
    if signs[-1] in _SPACES + _APOSTROPHES + "،٬·" or (len(signs) > 1 and signs[-1] in signs[:-1]):
        return None
    if signs[:-1] and not (len(set(signs[:-1])) == 1 and _are_groups(digits[:-1])):
        return None
    if not signs[:-1] and signs[-1] == "," and decimal and "," not in decimal:
        return None  # 1,2 lists two numbers in a language whose decimal sign is the point
    return Fraction(f"{''.join(digits[:-1])}.{digits[-1]}")


def _are_groups(digits: list[str]) -> bool:
    """Whether digits are grouped: 1 234 567, or 12 34 567 as in India."""
    first, *middle, last = digits
    threes = len(first) <= 3 and all(len(one) == 3 for one in middle)
    indian = len(first) <= 2 and all(len(one) == 2 for one in middle)
    return first[0] != "0" and len(last) == 3 and (threes or indian)


def _groups(sign: str, decimal: str, group: str) -> bool:
    """Whether a single sign before three digits groups them, and is no decimal sign."""
    if sign in "٫":
        return False
    if sign in "،٬·" + _APOSTROPHES:
        return True
    if sign in _SPACES:
        return not group or sign != " " or any(one in _SPACES for one in group)
    return sign not in decimal
