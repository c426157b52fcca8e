"""Numbers are read as they are written anywhere."""

from __future__ import annotations

import random
import re
import time
from fractions import Fraction

import pytest
from babel import Locale, UnknownLocaleError
from babel.numbers import UnsupportedNumberingSystemError, format_decimal, format_percent
from hypothesis import given
from hypothesis import strategies as st

from common import numbers
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
        ("5.10.2024", "de", 2024), ("1,5 2,5", "de", 2.5), ("1.5,2.5", "en", 2.5), ("1.234.5,6", "de", 5.6),
        ("10~20", "", 20), ("答案是3～5", "zh", 5), ("3〜5", "ja", 5), ("100~200", "ko", 200), ("1~-2", "", -2),
    ],
)  # fmt: skip
def test_the_last_number_is_read(text: str, language: str, value: float) -> None:
    found = last_number(text, language)
    assert found is not None and float(found) == pytest.approx(value)


@pytest.mark.parametrize("language", ["", "en", "de", "ar"])
@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("5.10.2024", [5, 10, 2024]), ("05.01.2024", [5, 1, 2024]), ("Python 3.10.2", [3, 10, 2]),
        ("192.168.1.1", None), ("am 5.10.2024 um 12.30", [5, 10, 2024, 12.3]), ("5,10,2024", [5, 10, 2024]),
        ("12:30:05", [12, 30, 5]), ("2024-10-05", [2024, 10, 5]), ("1.234.567", [1234567]),
    ],
)  # fmt: skip
def test_dates_and_versions_are_lists_of_whole_numbers(text: str, values: list[float] | None, language: str) -> None:
    found = [float(one.value) for one in find_numbers(text, language)]
    assert found == values or (values is None and found[-1] == 1)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("½", "1/2"), ("3½", "7/2"), ("-3½", "-7/2"), ("2 ½ cups", "5/2 cups"), ("⅓ or ⅞", "1/3 or 7/8"),
        ("in 2024 ½", "in 2024 1/2"), ("1.5½", "1.5 1/2"), ("1⁄2", "1/2"), ("1234½", "2469/2"), ("٣½", "7/2"),
        ("7" * 301 + "½", "7" * 301 + " 1/2"), ("⅟", "⅟"),
    ],
)  # fmt: skip
def test_vulgar_fractions_are_written_with_a_slash(text: str, plain: str) -> None:
    assert numbers.plain_digits(text) == plain == numbers.plain_digits(plain)


def test_a_text_without_a_number_has_none() -> None:
    assert last_number("none") is None and last_number("") is None
    assert number_of("42 apples") is None and number_of("$٤٢$") == 42 and number_of(r"\frac{1}{2}") is None


@pytest.mark.parametrize("text", ["√2", "∛8", "3!", ">5", "≤ 5", "±5", "- 5", "-(5)", "5²", "1/2", "10~20"])
def test_what_changes_the_value_of_a_number_makes_it_no_number(text: str) -> None:
    assert number_of(text) is None


@pytest.mark.parametrize("text", ["**42**", "42 €", "(42)", "$42$", "42.", "≈ 42", "42 %", "= 42", "42°"])
def test_marks_around_a_number_change_nothing(text: str) -> None:
    assert number_of(text) == 42


@pytest.mark.parametrize(
    "text",
    [
        "0 " * 50_000, "1," * 50_000, "1.1" * 30_000, "1 000 " * 16_000, "1,22," * 20_000, "7" * 100_000,
        "0." + "3" * 100_000, " " * 100_000 + "1", ("1" + " " * 999) * 100, "%1 " * 33_000, "-%1" * 33_000,
        "٤٢، " * 25_000, "1{,}" * 25_000, "1\\," * 33_000, "1'" * 50_000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("language", ["", "en", "de"])
def test_no_text_takes_long(text: str, language: str) -> None:
    began = time.process_time()
    last_number(text, language)
    assert time.process_time() - began < 10, "in linear time it is less than one second"


def test_what_has_more_than_three_hundred_digits_is_no_number() -> None:
    longest = "7" * 300
    assert last_number(longest) == int(longest) and last_number("1 und " + "7" * 301) == 1
    assert last_number("5; 0." + "3" * 5000) == 5 and last_number("0." + "3" * 299) == Fraction(int("3" * 299), 10**299)
    assert last_number("1,234" * 2000) is not None


LANGUAGES = ["", "en", "de", "fr", "ar", "hi", "no such language"]


@given(st.text(max_size=200), st.sampled_from(LANGUAGES))
def test_no_text_is_an_error(text: str, language: str) -> None:
    for number in find_numbers(text, language):
        assert 0 <= number.start < number.end <= len(numbers.plain_digits(text))
    last_number(text, language), number_of(text, language)


def value_of(digits: list[str], signs: list[str], beside: tuple[str, str], language: str) -> Fraction | None:
    """The value of groups of digits with signs between them, by the definition; None where they are no one number.

    ``beside`` has the signs before and after the groups, "" where the run begins or ends: a sign that is repeated, as
    in a date, is no decimal sign.
    """
    decimal, group = numbers._signs(language)

    def grouped(some: list[str]) -> bool:
        first, *middle, last = map(len, some)
        threes, indian = first <= 3 and {*middle} <= {3}, first <= 2 and {*middle} <= {2}
        return some[0][0] != "0" and last == 3 and (threes or indian)

    whole, places = int("".join(digits)), len(digits[-1])
    if not signs:
        return Fraction(whole)
    if len({*signs}) == 1 and grouped(digits) and (len(signs) > 1 or numbers._groups(signs[0], decimal, group)):
        return Fraction(whole)
    *others, last = signs
    if (
        last in others
        or last == beside[1]
        or (not others and last == beside[0])
        or last in " \u00a0\u2009\u202f'’،٬·"
        or (others and not (len({*others}) == 1 and grouped(digits[:-1])))
    ):
        return None
    if not others and last == "," and decimal and "," not in decimal:
        return None
    return Fraction(whole, 10**places)


def read_slowly(text: str, language: str) -> list[tuple[int, int, Fraction]]:
    """Begin, end and value of each number without its sign: the longest beginning of what is left that is one."""
    found = []
    for run in re.finditer(rf"\d+(?:{numbers._GROUP}\d+)*", text):
        start, digits, signs = run.start(), re.split(numbers._GROUP, run[0]), re.findall(numbers._GROUP, run[0])
        before = ""
        while digits:
            values = [
                value_of(digits[:n], signs[: n - 1], (before, "".join(signs[n - 1 : n])), language)
                for n in range(1, len(digits) + 1)
            ]
            count, value = next((n + 1, values[n]) for n in reversed(range(len(values))) if values[n] is not None)
            end = start + sum(map(len, digits[:count])) + count - 1
            assert value is not None
            found.append((start, end, value))
            before = "".join(signs[count - 1 : count])
            start, digits, signs = end + 1, digits[count:], signs[count:]
    return found


PIECES = ["0", "1", "22", "12", "333", "123", "4444", ",", ".", " ", "\u202f", "'", "،", "٬", "٫", "·", "x", "-", "%"]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.sampled_from(LANGUAGES))
def test_numbers_are_read_as_the_definition_has_them(text: str, language: str) -> None:
    found = find_numbers(text, language)
    begins = [text.index(re.findall(r"\d", text[one.start :])[0], one.start) for one in found]
    assert [(begin, one.end, abs(one.value)) for begin, one in zip(begins, found, strict=True)] == read_slowly(
        text, language
    )


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
