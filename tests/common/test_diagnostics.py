"""The diagnostics on hand-made tables, and against independent computations."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from statistics import harmonic_mean

import numpy as np
import pytest

from common import diagnostics
from common.diagnostics import Sample
from common.wire import PartLanguages, Score


def part(
    consistent: bool = True, lines: bool = True, words: bool | None = True, switches: bool = False
) -> PartLanguages:
    return PartLanguages(consistent, lines, words, switches)


GOOD, BAD = part(), part(False, False, None, True)


def test_the_figures_of_a_hand_made_table() -> None:
    """Right, thought in its language, answer in its language: a row each; LC&Acc is not LC times Acc."""
    samples = [
        Sample(GOOD, GOOD, True, 10),
        Sample(BAD, GOOD, True, 20),
        Sample(GOOD, BAD, False, 30),
        Sample(None, part(words=False), None, 40),  # nobody could tell whether it is right
    ]
    assert diagnostics.summarise(samples) == {
        "lc": 0.5, "lc_thought": pytest.approx(2 / 3), "lc_answer": 0.75, "tokens": 25,
        "accuracy": pytest.approx(2 / 3), "lc_accuracy": pytest.approx(1 / 3),
        "lpr_thought": pytest.approx(2 / 3), "wpr_thought": 1, "lcpr_thought": pytest.approx(0.8),
        "switching_thought": pytest.approx(1 / 3),
        "lpr_answer": 0.75, "wpr_answer": pytest.approx(2 / 3), "lcpr_answer": pytest.approx(12 / 17),
        "switching_answer": 0.25,
    }  # fmt: skip
    without = diagnostics.summarise([Sample(None, GOOD, None, 1)])
    assert not {"accuracy", "lc_accuracy", "lc_thought"} & without.keys() and without["lc"] == 1
    assert diagnostics.summarise([]) == {}


def test_the_first_part_that_says_so_decides_what_is_right() -> None:
    assert diagnostics.is_right(0.1, {"math": 1.0, "format": 0.0})
    assert not diagnostics.is_right(0.9, {"accuracy": 0.0, "math": 1.0})
    assert diagnostics.is_right(0.99, {"similarity": 0.99}) is None and diagnostics.is_right(0.0, {}) is None
    assert diagnostics.is_right(0.5, {"similarity": 0.2}, 0.5) and diagnostics.is_right(0.49, {}, 0.5) is False
    assert not diagnostics.is_right(3.0, {"acc": 0.5}, 0.6) and diagnostics.is_right(0.0, {"acc": 0.6}, 0.6)


@pytest.mark.parametrize(
    ("compliant", "gated", "solved"), [(True, True, True), (False, True, False), (False, False, True)]
)
def test_a_question_is_solved_in_its_language_where_the_gate_is_on(compliant: bool, gated: bool, solved: bool) -> None:
    score = Score(reward=0, quality=1, similarity=0, compliant=compliant, detected="en", terms={"math": 1.0})
    assert diagnostics.solves(score, gated=gated) is solved
    beaten = score.model_copy(update={"reward": 3.0, "quality": 3.0, "terms": {"acc": 0.0, "box": 1.0, "wins": 1.0}})
    assert diagnostics.solves(beaten, gated=gated) is False, "sp3f: boxed, in its language and better than the others"
    similar = score.model_copy(update={"quality": 0.95, "terms": {"similarity": 0.95}})
    assert diagnostics.solves(similar, gated=gated) is None
    assert diagnostics.solves(similar, least=0.9, gated=gated) is solved


def test_pass_at_k_is_the_share_of_the_choices_with_a_right_answer(rng: np.random.Generator) -> None:
    for _ in range(40):
        n = int(rng.integers(1, 8))
        right = rng.random(n) < 0.4
        k = int(rng.integers(1, n + 1))
        chosen = [any(right[list(some)]) for some in combinations(range(n), k)]
        assert diagnostics.pass_at_k(n, int(right.sum()), k) == pytest.approx(float(Fraction(sum(chosen), len(chosen))))
    for n, c, k in ((3, 1, 4), (3, 4, 1), (3, 0, 0)):
        with pytest.raises(ValueError, match=f"pass@{k}"):
            diagnostics.pass_at_k(n, c, k)


def test_lcpr_is_the_harmonic_mean_of_the_pass_rates(rng: np.random.Generator) -> None:
    for first, second in rng.random((20, 2)).tolist():
        assert diagnostics.harmonic_mean(first, second) == pytest.approx(harmonic_mean([first, second]))
    assert diagnostics.harmonic_mean(0, 0) == diagnostics.harmonic_mean(0, 1) == 0
    assert diagnostics.pass_rates([BAD, BAD]) == (0, 0)


def test_adamame_takes_means_over_questions() -> None:
    """Only texts that pass by lines count by words, and a question without one counts not at all."""
    table = [[GOOD, part(words=False)], [GOOD, BAD], [BAD, BAD]]
    lines, words = diagnostics.pass_rates_adamame(table)
    assert (lines, words) == (0.5, 0.75)
    every = [one for parts in table for one in parts]
    assert diagnostics.pass_rates(every) == pytest.approx((0.5, 2 / 3)), "over all answers it is another figure"
    assert diagnostics.pass_rates_adamame([[BAD]]) == (0, 0)


@pytest.mark.parametrize(
    ("text", "language", "passes"),
    [
        ("La suma es 12.", "es", True),
        ("El ángulo π mide x grados y luego β.", "es", True),  # symbols
        ("La suma 是 12.", "es", False),
        ("La suma ест 12.", "es", False),
        ("我们设 x 为答案，$\\sin x = \\frac{1}{2}$。", "zh", True),
        ("我们 therefore 知道", "zh", False),
        ("答えは12です。カタカナ", "ja", True),
        ("答えは 그래서 です。", "ja", False),
        ("Слово и x, y.", "ru", True),
        ("Слово the.", "ru", False),
        ("`print(x)` тут", "ru", True),
        ("", "th", True),
    ],
)
def test_words_of_another_script(text: str, language: str, passes: bool) -> None:
    assert diagnostics.words_pass(text, language) is passes


def found(*codes: str) -> diagnostics.DetectAll:
    return lambda _: codes


def fails(_: str) -> list[str]:
    raise ValueError("no features in text")


LONG = "ein Satz, der lang genug ist"


@pytest.mark.parametrize(
    ("text", "codes", "consistent"),
    [
        (LONG, ("de",), True),
        (LONG, ("de", "en"), False),  # exactly one language
        (LONG, ("en",), False),
        (LONG, (), False),
        (r"$$\text{this is all in English, and long}$$", ("en",), True),  # nothing is left of it
        (r"\[ this is all in English, and long \] \( so is this one \)", ("en",), True),
        ("fifteen letters", ("en",), True),
        ("sixteen letters.", ("en",), False),
        (f"$5 and {LONG} cost $6", ("de",), True),  # what is between two dollars is taken for a formula
    ],
)
def test_polymaths_language_consistency(text: str, codes: tuple[str, ...], consistent: bool) -> None:
    assert diagnostics.consistent_polymath(text, "de", found(*codes)) is consistent


def test_what_the_published_checks_do_at_their_edges() -> None:
    check = diagnostics.consistent_polymath
    assert not check(LONG, "de", fails), "an exception of the detector"
    padded = "       short       "
    assert not check(padded, "de", found("en")) and check(padded, "de", found("en"), stripped=True)
    both = f"{LONG}</think>{LONG}"
    assert diagnostics.consistent_mthinker(both, "de", found("de"))
    for raw, consistent in ((LONG, False), (f"{both}</think>{LONG}", False), (f"{LONG}</think>", True)):
        assert diagnostics.consistent_mthinker(raw, "de", found("de")) is consistent, "an empty part passes"
    assert not diagnostics.consistent_mthinker(both, "de", lambda text: ["en"])


def test_mmaths_lcr_counts_a_text_without_a_thought_twice() -> None:
    assert diagnostics.parts_mmath("a</think>b</think> c ") == ("a b", "c")
    assert diagnostics.parts_mmath(" only ") == ("only", "only")
    samples = [("de", "de", "de"), ("de", "en", "de"), ("fr", "", "de"), ("fr", "fr", "fr")]
    assert diagnostics.lcr_mmath(samples) == pytest.approx((2 / 3, 0.75))
    assert diagnostics.lcr_mmath([]) == (0, 0)


def test_adamames_part() -> None:
    def detect(text: str) -> str:
        return "de" if "der" in text else "en" if "the" in text else ""

    def every(text: str) -> list[str]:
        return [code for code, word in (("de", "der"), ("en", "the")) if word in text]

    diagnose = diagnostics.part_adamame
    assert diagnose("der Satz\n\n$the$\n12 + 3 = 15", "de", detect, every) == part()
    assert diagnose("der Satz\nthe line", "de", detect, every) == part(True, False, None, True)
    assert diagnose("der Satz π", "de", detect, every) == part(words=False), "one Greek letter"
    assert diagnose("", "de", detect, every) == part(consistent=False), "an empty thought passes both, and is in none"
    assert diagnostics.words_pass_adamame("x = 5 の", "ja") and not diagnostics.words_pass_adamame("ab の", "ja")
    assert diagnostics.words_pass_adamame("anything the", "el"), "a language of neither list"
    assert not diagnostics.switches_adamame("", every) and not diagnostics.switches_adamame("$the$ der", every)
    cut = diagnostics.without_mathematics_adamame(r"so \frac{1}{2} + 3.5 \begin{a}the\end{a} x2 (7)")
    assert cut.split() == ["so", "x2"], "what stands behind the first brace goes as bare numbers"
