"""Numbers in texts: digits of all scripts, grouping and decimal conventions, signs, percent, fractions, LaTeX.

Which of point and comma is the decimal sign depends on the language; CLDR, through babel, knows it for each. Where the
language is not known, or its convention does not fit the digits, the form of the number decides.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import NamedTuple

from babel import Locale, UnknownLocaleError

from common.text import normalise

_SPACES = " \u00a0\u2009\u202f"
_APOSTROPHES = "'’"
_MINUS = "-−‐‑–﹣"
_MINUS_SET = frozenset(_MINUS)
_PERCENT = "%٪"
_CHANGES_VALUE = re.compile(r"[\w\\√∛∜!<>≤≥≠±∓∞]")  # beside a number
_GROUP = rf"[.,،٬٫{_SPACES}{_APOSTROPHES}·]"
_NUMBER = re.compile(rf"\d+(?:{_GROUP}\d+)*")
_LATEX_SIGN = re.compile(r"\{([.,])\}")  # 18{,}000
_LATEX_SPACE = re.compile(r"(?<=\d)(?:\\[,;:! ]|\\thinspace)(?=\d)")  # 18\,000; a tilde is that of a range, 10~20
_VULGAR = {  # ½ -> ("1", "2")
    chr(code): tuple(parts)
    for code in (*range(0xBC, 0xBF), *range(0x2150, 0x218A))
    if len(parts := unicodedata.normalize("NFKC", chr(code)).split("\u2044")) == 2 and all(parts)
}
# 3½ and 3 ½ are mixed numbers; in 2024 ½ the year is none, and in 1.5½ neither.
_MIXED = re.compile(rf"(?:(?<![\d.,/])(\d{{1,3}})[{_SPACES}]?|(?<![\d.,/])(\d+))?([{''.join(_VULGAR)}])")
_FRACTION_SIGNS = str.maketrans("\u2044\u2215", "//")
_MOST_DIGITS = 300  # with more a run of digits is no number: no result has so many, and long integers are slow


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
    """The text in one form (:func:`common.text.normalise`), with ASCII digits and without LaTeX between digits.

    Vulgar fractions are written with a slash, ½ as 1/2 and 3½ as 7/2.
    """
    text = normalise(text)
    if not text.isascii():
        text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text).translate(_FRACTION_SIGNS)
        text = _MIXED.sub(_improper, text)
    return _LATEX_SPACE.sub("", _LATEX_SIGN.sub(r"\1", text)) if "{" in text or "\\" in text else text


def _improper(match: re.Match[str]) -> str:
    over, under = _VULGAR[match[3]]
    whole = match[1] or match[2] or "0"
    if len(whole) > _MOST_DIGITS or (whole == "0" and match.string[match.start() - 1 : match.start()].isdigit()):
        return f"{match[0][:-1]} {over}/{under}"
    return f"{int(whole) * int(under) + int(over)}/{under}"


def find_numbers(text: str, language: str = "") -> list[Number]:
    """The numbers of a text, in order. Takes time in proportion to the length of the text, whatever it is.

    What would be a number of more than 300 digits is none. Digits with the same sign between three groups or more that
    do not group them, as in dates and versions, are whole numbers: 5.10.2024 is 5, 10 and 2024.

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
    """The number that a text consists of; None where it is anything else, as the root, factorial or bound √2, 3!, >5.

    Marks and signs that change no value may stand around it: **42**, 42 %, 42 €, (42).
    """
    plain = plain_digits(text).strip().strip("$").strip()
    numbers = find_numbers(plain, language)
    if len(numbers) != 1:
        return None
    before, after = plain[: numbers[0].start], plain[numbers[0].end :]
    return None if _CHANGES_VALUE.search(f"{before} {after}") or not _MINUS_SET.isdisjoint(before) else numbers[0].value


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


def _read(plain: str, start: int, end: int, language: str) -> Iterator[Number]:
    """The numbers of a run of digits and signs between them: one, or several where the signs only list them.

    As 1,2,3 and 5.10.2024, or numbers with spaces between them. Each is the longest beginning, of what is left, that is
    a number.
    """
    run = plain[start:end]
    digits, signs = re.split(_GROUP, run), re.findall(_GROUP, run)
    grouped = _Grouped.of(digits, signs)
    first = 0
    while first < len(digits):
        last, has_fraction = _longest(digits, signs, grouped, first, language)
        joined = "".join(digits[first : last + 1])
        stop = start + len(joined) + last - first
        if len(joined) <= _MOST_DIGITS:
            value = Fraction(int(joined), 10 ** len(digits[last])) if has_fraction else Fraction(int(joined))
            yield _finish(plain, value, start, stop)
        start, first = stop + 1, last + 1


class _Grouped(NamedTuple):
    """How far groups of digits reach from each group of a run on; all lists are as long as the run has groups.

    Attributes:
        signs: how many signs in a row, from the one after the group on, are the same.
        threes: how many groups in a row, after the group, have three digits.
        twos: the same for two digits.
    """

    signs: list[int]
    threes: list[int]
    twos: list[int]

    @classmethod
    def of(cls, digits: list[str], signs: list[str]) -> _Grouped:
        found = cls(*([0] * len(digits) for _ in range(3)))
        for n in range(len(signs) - 1, -1, -1):
            found.signs[n] = found.signs[n + 1] + 1 if signs[n : n + 1] == signs[n + 1 : n + 2] else 1
            found.threes[n] = found.threes[n + 1] + 1 if len(digits[n + 1]) == 3 else 0
            found.twos[n] = found.twos[n + 1] + 1 if len(digits[n + 1]) == 2 else 0
        return found


def _longest(digits: list[str], signs: list[str], grouped: _Grouped, first: int, language: str) -> tuple[int, bool]:
    """The last group of the longest number that begins with the group ``first``, and whether it is its fraction."""
    if first == len(signs):
        return first, False
    decimal, group = _signs(language)
    alike = grouped.signs[first]
    # The groups end after `threes` of three digits, or as in India after one of three digits that follows those of two.
    threes = min(alike, grouped.threes[first]) if len(digits[first]) <= 3 else 0
    twos = grouped.twos[first] if len(digits[first]) <= 2 else 0
    indian = twos + 1 if 0 < twos < alike and len(digits[first + twos + 1]) == 3 else 0
    groups = max(threes, indian) if digits[first][0] != "0" else 0
    # All signs before that of the fraction must be the same, and group the digits.
    after = first + alike
    if alike in (threes, indian) and groups and _is_decimal(signs, after):
        return after + 1, True
    if groups > 1 or (groups and _groups(signs[first], decimal, group)):
        return first + groups, False
    # 1,2 lists two numbers in a language whose decimal sign is the point.
    if _is_decimal(signs, first) and not (signs[first] == "," and decimal and "," not in decimal):
        return first + 1, True
    return first, False


def _is_decimal(signs: list[str], place: int) -> bool:
    """Whether there is such a sign, and it may be a decimal sign: one that is repeated, as in a date, is none."""
    sign = signs[place : place + 1]
    if not sign or sign[0] in _SPACES + _APOSTROPHES + "،٬·":
        return False
    return sign not in (signs[max(0, place - 1) : place], signs[place + 1 : place + 2])


def _finish(plain: str, value: Fraction, start: int, end: int) -> Number:
    """The number with the sign, denominator and percent sign around it."""
    before, after = start - 1, end
    while before >= 0 and plain[before] in _SPACES:
        before -= 1
    percent_before = before >= 0 and plain[before] in _PERCENT
    if percent_before and before and plain[before - 1] in _MINUS:  # -%25 in Turkish
        start = before
    if start and plain[start - 1] in _MINUS:
        left = plain[start - 2] if start > 1 else " "
        # A hyphen after a digit, a cased letter or another hyphen joins or lists; anywhere else it is a sign.
        if not (left.isdecimal() or left.upper() != left.lower() or left in _MINUS or left == ")"):
            value, start = -value, start - 1
    while after < len(plain) and plain[after] in _SPACES:
        after += 1
    return Number(value, start, end, percent_before or plain[after : after + 1] in tuple(_PERCENT))


def _groups(sign: str, decimal: str, group: str) -> bool:
    """Whether a single sign before three digits groups them, and is no decimal sign."""
    if sign in "٫":
        return False
    if sign in "،٬·" + _APOSTROPHES:
        return True
    if sign in _SPACES:
        return not group or sign != " " or any(one in _SPACES for one in group)
    return sign not in decimal
