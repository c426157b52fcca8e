"""What a mathematical answer ends with: nothing on the way there makes it wrong, and nothing hostile is evaluated."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from babel import Locale
from hypothesis import given
from hypothesis import strategies as st

from reward.terms.math import MathVerifier, last_box
from reward.terms.results import ends_multiplied, is_hostile, number_in_box, result_of


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    pytest.importorskip("math_verify")
    found = MathVerifier(workers=1)
    yield found
    found.close()


RIGHT = [  # answer, gold, language
    # The way to the result has bold print, hostile formulas or any number of braces.
    (r"Die Lösung ist **42**. \boxed{42}", "42", "de"), ("**15000 Euro**", "15000", "de"),
    (r"Great!! \boxed{5}", "5", "en"), (r"The number of zeros of $2024!$ is \boxed{503}.", "503", "en"),
    ("Das Ergebnis ist 1024!", "1024", "de"), ("Il risultato è 42!!", "42", "it"),
    (r"$7^{12345} \equiv 3 \pmod{10}$, \boxed{3}", "3", ""), ("7^{12345} ≡ 3, also 3", "3", "de"),
    (r"Wegen $7^{12345} \equiv 3$ ist es **3**.", "3", "de"), (r"\[9^{9^{9^9}}\] endet auf $9$.", "9", "de"),
    (r"$\frac{1}{2}$ " * 400 + r"\boxed{7}", "7", ""), ("1 2 3 " * 100 + "503", "503", ""),
    ("1/7 = 0." + "142857" * 50 + r"…, \boxed{6}", "6", ""), (r"$x^2 10000$", "10000x^2", ""),
    ("**Schritt 1:** 6 * 7 = **42**\n\n**Antwort: 42**", "42", "de"), ("答案是**42**。", "42", "zh"),
    ("***42***", "42", ""), ("__42__", "42", ""), ("Die Antwort ist `42`.", "42", "de"), ("ist <b>42</b>.", "42", "de"),
    # Emphasis around a formula, or within a box.
    ("Die Antwort ist **1/2**.", r"\frac{1}{2}", "de"), ("Die Antwort ist *1/2*.", "1/2", "de"),
    ("Die Antwort ist `1/2`.", "1/2", "de"), ("**$x^2$**", "x^2", ""), (r"**Antwort: \boxed{x^2}**", "x^2", ""),
    (r"\boxed{**42**}", "42", ""), (r"\boxed{\textbf{42}}", "42", ""), (r"\boxed{\mathbf{\frac{1}{2}}}", "0.5", ""),
    (r"\boxed{\text{42}}", "42", ""),
    # What belongs to a box.
    (r"$\boxed{1}$ and $\boxed{2}$", r"\{1,2\}", "en"), (r"$\boxed{50}\%$", "50", ""), (r"$\boxed{50}$ %", "0.5", ""),
    (r"\boxed{5}. I have put it in \boxed{}.", "5", "en"), (r"\boxed{4}, no: \boxed{5}", "5", "en"),
    (r"\boxed{2024!}", "2024!", ""), (r"\boxed{3!}", "6", ""), (r"\boxed{3π}", r"3\pi", ""), (r"\boxed{- 5}", "-5", ""),
    (r"\boxed{-5}", "- 5", ""), (r"\boxed{x = 42}", "42", ""),
    # Units, in any script.
    (r"\boxed{42 manzanas}", "42", "es"), (r"\boxed{42 Äpfel}", "42", "de"), (r"\boxed{42 яблок}", "42", "ru"),
    (r"\boxed{42元}", "42", "zh"), (r"\boxed{42 pommes de terre}", "42", "fr"), (r"\boxed{42 μήλα}", "42", "el"),
    (r"\boxed{42 cá}", "42", "vi"), (r"\boxed{42\,manzanas}", "42", "es"), (r"\boxed{\text{42 Äpfel}}", "42", "de"),
    (r"\boxed{60\text{ cm}^2}", "60", ""), (r"\boxed{60 cm^2}", "60", ""), (r"\boxed{60 m²}", "60", ""),
    (r"\boxed{60 см^2}", "60", "ru"), (r"\boxed{5 km/h}", "5", ""), (r"\boxed{1.234 Euro}", "1234", "de"),
    (r"\boxed{90^\circ}", "90", ""), (r"\boxed{₩42}", "42", "ko"), (r"\boxed{42 °C}", "42", ""),
    # What looks like a word that multiplies.
    (r"\boxed{5 miles}", "5", "en"), (r"\boxed{5 bins}", "5", "en"), (r"\boxed{5 millionaires}", "5", "en"),
    ("It is 5 mil.", "5", "en"), ("Det är 5 mil.", "5", "sv"), ("Es sind 5 Min.", "5", "de"), ("5 bln", "5", "id"),
    (r"\boxed{5 laki-laki}", "5", "id"), ("Ada 5 laki-laki.", "5", "id"), ("5 M", "5", ""), ("Es sind 5 m.", "5", "de"),
    (r"\boxed{5 миллионеров}", "5", "ru"), (r"\boxed{5百分点}", "5", "zh"), ("距离是5千米。", "5", "zh"),
    (r"\boxed{5兆瓦}", "5", "zh"), (r"\boxed{5조각}", "5", "ko"), ("답은 5조각입니다.", "5", "ko"),
    (r"\boxed{5 พันธุ์}", "5", "th"), (r"\boxed{5 প্রতিশত}", "5", "bn"), ("উত্তর ৫ শতাংশ।", "5", "bn"),
    (r"\boxed{5 लीटर}", "5", "hi"), ("उत्तर 5 प्रतिशत है।", "5", "hi"), (r"\boxed{6 yüz}", "6", "tr"),
    (r"\boxed{5 దిన}", "5", "te"), ("5 మి.మీ", "5", "te"), (r"\boxed{5 أيام}", "5", "ar"), ("الجواب 5 أشخاص", "5", "ar"),
    (r"\boxed{5 روز}", "5", "fa"), ("5 million", "5 million", "en"), ("5 thousand, or 5000", "5000", "en"),
    (r"\boxed{½}", r"\frac{1}{2}", ""), (r"\boxed{3½}", "3.5", ""), ("Es ist ½.", "1/2", "de"),
    ("It is 2½.", "2.5", ""),
    (r"\boxed{42 quả táo}", "42", "vi"), (r"\boxed{42 kg}", "42", ""), (r"\boxed{4,2 km}", "4.2", "de"),
]  # fmt: skip

WRONG = [
    (r"\boxed{9^{9^{9^9}}}", "4", ""), ("9**9**9**9 + 1", "4", ""), (r"\boxed{10^{100000}!}", "4", ""),
    (r"$10^{-100000}$", "4", ""), (r"\boxed{９＾９＾９}", "4", ""), (r"\boxed{5!!!}", "5", ""),
    (r"\boxed{99999!}", "4", ""),
    (r"\boxed{3π}", "3", ""), (r"\boxed{√2}", "2", ""), (r"\boxed{3!}", "3", ""), (r"\boxed{3 sin x}", "3", ""),
    (r"\boxed{5x}", "5", ""), (r"\boxed{5 x}", "5", ""), (r"\boxed{5 xy}", "5", ""), (r"\boxed{5万}", "5", "zh"),
    (r"\boxed{5 million}", "5", ""), (r"\boxed{5 Millionen}", "5", "de"), (r"\boxed{-(5)}", "5", ""),
    ("The answer is 5 thousand.", "5", "en"), ("答案是3万", "3", "zh"), ("$5$ thousand", "5", "en"),
    ("The total is $5 thousand.", "5", "en"), ("So 5 **thousand**", "5", "en"), ("Jibu ni elfu 5.", "5", "sw"),
    ("Son 5 mil.", "5", "es"), ("5 bin", "5", "tr"), ("Es sind 5 Mio.", "5", "de"), ("Ответ: 3 тыс.", "3", "ru"),
    (r"\boxed{5 ميليون}", "5", "fa"), (r"\boxed{5 हजार}", "5", "hi"), (r"\boxed{5 हज़ार}", "5", "hi"),
    (r"\boxed{2천}", "2", "ko"), (r"\boxed{5백}", "5", "ko"), (r"\boxed{5 百}", "5", "ja"),
    (r"\boxed{5mila}", "5", "it"),
    (r"\boxed{5 bilhões}", "5", "pt"), (r"\boxed{5 trăm}", "5", "vi"), (r"\boxed{5พันล้าน}", "5", "th"),
    (r"\boxed{5 ล้านบาท}", "5", "th"), (r"\boxed{5 కోట్లు}", "5", "te"), (r"\boxed{5 miliar}", "5", "id"),
    (r"\boxed{5~\text{million}}", "5", "en"), (r"\boxed{elfu 5}", "5", "sw"), (r"\boxed{2½}", "2", ""),
    (r"\boxed{\frac{1}{2}}", "2", ""), (r"\boxed{10~20}", "1020", ""), ("答案是3～5", "35", "zh"),
    (r"$x = 42$, \boxed{43}", "42", ""), (r"\boxed{4", "4", ""), (r"42, so \boxed{4", "42", ""),
    (r"\boxed{\frac{1}{2}", r"\frac{1}{2}", ""), (r"\boxed{42}, \boxed{43}", "42", ""),
]  # fmt: skip


def test_only_what_an_answer_ends_with_is_verified(verifier: MathVerifier) -> None:
    found = verifier.verify([(text, [gold], language) for text, gold, language in RIGHT])
    assert [row for row, value in zip(RIGHT, found, strict=True) if value != 1] == []
    assert not verifier.counts["math_refused"] and not verifier.counts["math_killed"]
    found = verifier.verify([(text, [gold], language) for text, gold, language in WRONG])
    assert [row for row, value in zip(WRONG, found, strict=True) if value != 0] == []


LANGUAGES = (
    "ar", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fr", "gu", "he", "hi", "hr", "hu", "hy",
    "id", "it", "ja", "ka", "kk", "km", "kn", "ko", "lo", "mk", "ml", "mr", "ms", "my", "nb", "ne", "nl", "pa", "pl",
    "pt", "ro", "ru", "si", "sk", "sl", "sr", "sv", "sw", "ta", "te", "th", "tr", "uk", "ur", "uz", "vi", "zh",
    "zh_Hant",
)  # fmt: skip
# Of these words one cannot tell in every language that they multiply: units, other words, and abbreviations of both.
UNTOLD = frozenset([
    "χιλ", "bln", "bil", "bio", "bill", "mill", "tri", "tril", "ming", "мил", "бил", "नील", "शंख", "पद्म", "શંકુ", "જલધિ",
    "નિખર્વ", "મહાપદ્મ", "ਨੀਲ", "ათ", "ට්රි", "ట్రి", "ಟ್ರಿ", "ဋေထ", "ဋေသ", "লাকো",
])  # fmt: skip


def test_the_words_of_cldr_that_multiply_are_known() -> None:
    missed = []
    for code in LANGUAGES:
        for kind in ("long", "short"):
            for plural in Locale.parse(code).compact_decimal_formats.get(kind, {}).values():
                for pattern in plural.values():
                    form = re.sub("[\u200c-\u200f']", "", pattern.pattern.partition(";")[0]).replace("\xa0", " ")
                    word = re.sub("[0.¤ ]", "", form).lower()
                    is_long = len(word) > 2 or (word and "\u3000" < word[0] < "\uffff")
                    written = re.sub("0+", "5", form)
                    if "5" in written and is_long and word not in UNTOLD and not ends_multiplied(f"= {written}", ""):
                        missed.append((code, written))
    assert missed == []


def test_hostile_formulas_are_refused_unread_and_told(verifier: MathVerifier, caplog: pytest.LogCaptureFixture) -> None:
    verifier.counts.clear()
    assert verifier.verify([(text, [gold], language) for text, gold, language in WRONG[:7]]) == [0] * 7
    assert verifier.counts["math_refused"] == 7 and not verifier.counts["math_killed"]
    assert r"counts as wrong (1 so far): '\\boxed{9^{9^{9^9}}}'" in caplog.text
    # The brackets hide this one from the filter; the worker's limits are for such.
    assert verifier.verify([(r"\boxed{9^{(9^{(9^9)})}}", ["4"], ""), (r"\boxed{4}", ["4"], "")]) == [0, 1]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("9**9**9**9, so $5$", "so $5$"),
        (r"\(9^{9^9}\) and $2^{100000}$ and 7", " and   and 7"),
        ("**9** and **9**", "9 and 9"),
        ("2**3 and 2 ** 3", "2**3 and 2 ** 3"),
        ("x_1 and x_2", "x_1 and x_2"),
        (r"so $x$ is \boxed{2^{3}}, really", r"\boxed{2^{3}}"),
    ],
)
def test_formulas_that_nobody_can_evaluate_are_left_out(text: str, kept: str) -> None:
    assert result_of(text).text.strip() == kept.strip() and not is_hostile(result_of(text).formula)


@pytest.mark.parametrize("box", ["**42**", "`42`", r"\textbf{42}", "42!!!", "42元", "9^9^9"])
def test_emphasis_is_no_power(box: str) -> None:
    assert is_hostile(box) == (box in ("42!!!", "9^9^9"))
    assert number_in_box(box, "") == (None if is_hostile(box) else 42)


@given(st.text(max_size=100), st.integers(0, 10**9))
def test_whatever_stands_before_a_box_plays_no_part(before: str, number: int) -> None:
    result = result_of(f"{before} {'x' * 80} \\boxed{{{number}}}")
    assert last_box(result.text) == str(number) and not is_hostile(result.formula)
    assert number_in_box(str(number), "") == number


MARKS = [
    "**",
    "*",
    "_",
    "`",
    "$",
    r"\(",
    r"\)",
    r"\boxed{",
    "{",
    "}",
    "(",
    ")",
    "^",
    "!",
    "9",
    "99999",
    "x",
    " ",
    "\n",
    "%",
]


@given(st.lists(st.sampled_from(MARKS), max_size=30).map("".join))
def test_no_text_is_an_error(text: str) -> None:
    result = result_of(text)
    is_hostile(result.formula), number_in_box(text, "en")
    if (box := last_box(result.text)) and box.strip():
        assert result.formula == result.text


@pytest.mark.parametrize("piece", [*MARKS, *(a + b for a in MARKS[:10] for b in ("1", "1 ", " ", "a ", "\n"))])
def test_no_text_takes_long(piece: str) -> None:
    text = (piece * 20_000)[:20_000]
    began = time.process_time()
    is_hostile(result_of(text).formula)
    number_in_box(text[:1000], "de")
    assert time.process_time() - began < 5, "in linear time it is less than a tenth of a second"
