"""Numbers are read as they are written anywhere."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from babel import Locale, UnknownLocaleError
from babel.numbers import UnsupportedNumberingSystemError, format_decimal, format_percent
from hypothesis import given
from hypothesis import strategies as st

from common.numbers import find_numbers, last_number, number_of
from reward.gate import shipped_model
from reward.lid import LanguageModel

ZEROS = "0٠۰०০௦౦๐໐༠၀០０𝟎"


@pytest.mark.parametrize(
    ("text", "language", "value"),
    [
        ("1,00,000", "", 100_000), ("18{,}000", "", 18_000), ("٤٢،٠٠٠", "", 42_000), (r"18\,000", "", 18_000),
        ("$1,000.00", "", 1000), ("1.234,5", "", 1234.5), ("1.234", "de", 1234), ("1.234", "en", 1.234),
        ("1,234", "de", 1.234), ("1,234", "en", 1234), ("3.14", "de", 3.14), ("0.125", "", 0.125), ("−3", "", -3),
        ("答案是４２。", "zh", 42), ("คำตอบคือ42", "th", 42), ("৪২", "bn", 42), ("1’234’567", "", 1_234_567),
        ("4-5", "", 5), ("x-5", "", 5), ("温度-5", "zh", -5), ("1,2", "en", 2), ("1,2", "de", 1.2),
        ("1 234", "fr", 1234), ("1 234", "en", 234), ("in 2014 300", "", 300), ("1,2,3", "", 3), ("٣٫٥", "ar", 3.5),
        ("-1.234.567,89", "pt", -1234567.89), ("1\u202f234,5", "fr", 1234.5),
    ],
)  # fmt: skip
def test_the_last_number_is_read(text: str, language: str, value: float) -> None:
    found = last_number(text, language)
    assert found is not None and float(found) == pytest.approx(value)


def test_a_text_without_a_number_has_none() -> None:
    assert last_number("none") is None and last_number("") is None
    assert number_of("42 apples") is None and number_of("$٤٢$") == 42 and number_of(r"\frac{1}{2}") is None


def test_percent_is_seen_on_either_side() -> None:
    assert [one.percent for one in find_numbers("25 %, %25, ٢٥٪ and 25")] == [True, True, True, False]


@given(
    st.integers(-(10**9), 10**9), st.sampled_from([",", ".", " ", "\u00a0", "\u202f", "'", ""]), st.sampled_from(ZEROS)
)
def test_a_number_is_read_in_any_digits(number: int, separator: str, zero: str) -> None:
    written = f"{number:,}".replace(",", separator)
    digits = "".join(chr(ord(zero) + int(c)) if c.isdigit() else c for c in written)
    assert last_number(f"2 + 2 → {digits}.") == number


def locales() -> list[str]:
    """The languages of lid.176 that babel knows."""
    known = []
    for code in LanguageModel(shipped_model()).languages:
        try:
            Locale.parse(code)
            known.append(code)
        except (UnknownLocaleError, ValueError):
            continue
    return known


def read_table(codes: list[str], numbers: int, seed: int) -> dict[str, list[tuple[str, Fraction]]]:
    """By language: what was read wrongly, of numbers that babel wrote in each numbering system of the language."""
    draw = random.Random(seed)
    wrong: dict[str, list[tuple[str, Fraction]]] = {}
    for code in codes:
        systems = {"latn", "default", "native"}
        for _ in range(numbers):
            size = 10 ** draw.randint(0, 9)
            value = round(draw.uniform(-size, size), draw.choice([0, 0, 1, 2, 3]))
            exact = Fraction(str(value))
            percents = draw.randint(-500, 500)
            for system in systems:
                try:
                    written = format_decimal(value, locale=code, numbering_system=system)
                    percent = format_percent(percents / 100, locale=code, numbering_system=system)
                except UnsupportedNumberingSystemError:
                    continue
                if last_number(written, code) != exact:
                    wrong.setdefault(code, []).append((written, exact))
                found = find_numbers(percent, code)[-1]
                if (found.value, found.percent) != (Fraction(percents), True):
                    wrong.setdefault(code, []).append((percent, Fraction(percents)))
    return wrong


def test_numbers_of_some_locales_are_read(seed: int) -> None:
    codes = random.Random(seed).sample(locales(), 20)
    wrong = read_table(codes, 25, seed)
    assert sum(map(len, wrong.values())) <= 0.005 * 20 * 150, wrong


@pytest.mark.slow
def test_numbers_of_every_locale_are_read(seed: int) -> None:
    codes = locales()
    wrong = read_table(codes, 400, seed)
    assert not {code: some[:5] for code, some in wrong.items() if len(some) > 0.005 * 800}, len(codes)
