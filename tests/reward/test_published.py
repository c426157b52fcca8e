"""Scoring functions as published, also where they are wrong, and what the recipes mend; on tables made by hand."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from common.config import RewardConfig
from common.diagnostics import consistent_polymath
from common.wire import Chat
from configs.recipes import adamame, csc, m_thinker, mcot, pb_rlsvr, sp3f
from reward.calibration.formulas import Calibration
from reward.terms.custom import Group, GroupAnswer
from reward.terms.math import MathVerifier
from reward.terms.missing import NEVER
from reward.terms.published import boxed_equals, normalised_formula
from reward.terms.tools import Tools, languages_with_near

FRENCH = "On multiplie six par sept et on additionne les nombres, jusqu'à ce que le résultat soit certain."
ENGLISH = "We multiply six by seven and add up the numbers, until the result is known for certain."
RIGHT, WRONG = r"Le nombre est donc $\boxed{42}$, et voilà.", r"Le nombre est donc $\boxed{41}$, et voilà."


def detect(text: str) -> list[str]:
    """A stand-in for a detector, for texts of this file."""
    if not any(map(str.isalpha, text)):
        raise ValueError("no features in text")
    found = [code for code, word in (("fr", "nombre"), ("en", "numbers"), ("zh", "数")) if word in text]
    return found or ["de"]


class StandIn:
    """The tools of a reward function: right is what has the box of an accepted answer.

    What contains ``unverified`` is never verified.
    """

    def __init__(self, judge: Callable[[str], str | None] = lambda _: None, unverified: str = "\0") -> None:
        self.asked: list[str] = []
        self._judge, self._unverified = judge, unverified

    async def judge(self, messages: list[dict[str, str]], read: Callable[[str], Any]) -> Any:
        self.asked.append(messages[-1]["content"])
        said = self._judge(self.asked[-1])
        return None if said is None else read(said)

    async def verify_all(self, answers: Sequence[tuple[str, list[str], str]]) -> list[float | None]:
        return [
            None if self._unverified in text else float(any(f"boxed{{{one}}}" in text for one in accepted))
            for text, accepted, _ in answers
        ]

    async def embed(self, texts: Sequence[str], keep: bool = False) -> np.ndarray:
        return np.array([[np.nan] if self._unverified in text else [1.0] for text in texts])

    run_languages = frozenset(["fr", "zh"])

    def in_language(self, texts: Sequence[str], languages: Sequence[str]) -> list[bool]:
        found = self.languages(texts)
        return [one in ("", code) and bool(text) for text, one, code in zip(texts, found, languages, strict=True)]

    def languages(self, texts: Sequence[str], among: Sequence[str] = ()) -> list[str]:
        assert not among or set(among) == {"fr", "zh", "en"}
        return [(detect(text)[0] if any(map(str.isalpha, text)) else "") for text in texts]

    def language_shares(self, texts: Sequence[str], languages: Sequence[str]) -> list[float]:
        return [float(code in detect(text)) if text else 0.0 for text, code in zip(texts, languages, strict=True)]


def group(*texts: str, asked: Sequence[str] = (), extra: dict[str, str] | None = None) -> Group:
    answers = []
    for number, text in enumerate(texts):
        thinking, tag, final = text.rpartition("</think>")
        thinking = thinking.removeprefix("<think>")
        kept = "numbers" not in text
        code = asked[number] if asked else "fr"
        answers.append(GroupAnswer(text, thinking, final if tag or "<think>" not in text else "", code, code, kept,
                                   False, 9))  # fmt: skip
    chat = [Chat(role="user", content="Six fois sept ?")]
    return Group(0, chat, "fr", "42", ["42"], extra or {}, answers)


def parts(function: Any, given: Group, tools: Any = None) -> list[Any]:
    return list(asyncio.run(function(given, tools or StandIn())))


# --- M-Thinker and its baselines --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "is_french"),
    [
        (FRENCH, True),
        (ENGLISH, False),
        (f"{FRENCH} {ENGLISH}", False),  # two languages are found
        ("1234567890 1234567890", False),  # none is found
        ("", True),
        ("a few numbers", True),  # published: at most 15 characters are in every language
        ("these few numbers", False),
        (r"$\text{these are numbers, many numbers}$", True),  # so an answer that is one formula is in every language
        (f"  {'x' * 15}  ", True),
    ],
)
def test_consistency_as_m_thinker_has_it(text: str, is_french: bool) -> None:
    assert consistent_polymath(text, "fr", detect, stripped=True) == is_french


EQUAL = [
    (r"\frac12", r"\frac{1}{2}"), (r"\dfrac{1}{2}", "0.5"), ("1/2", r"\tfrac{1}{2}"), (r"\frac1{72}", r"\frac{1}{72}"),
    ("x=5", "5"), ("5 \\text{ cm}", "5"), (r"50\%", "50"), (r"90^\circ", "90"), (r"\sqrt3", r"\sqrt{3}"),
    (r"\left( 1, 2 \right)", "(1,2)"), (".5", "0.5"), ("1\\,000", "1\\,000"), (r"\$7", "7"), ("-3/4", r"\frac{-3}{4}"),
    ("abc=5", "abc=5"), ("a=b=c", "a=b=c"), ("", ""), ("3\n", "3"), ("1,000", "1,000"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), EQUAL)
def test_formulas_have_one_form_as_texts(first: str, second: str) -> None:
    assert normalised_formula(first) == normalised_formula(second)


@pytest.mark.parametrize(("first", "second"), [("1,000", "1000"), ("2/4", "1/2"), ("42.0", "42"), ("٤٢", "42")])
def test_what_is_equal_but_not_as_texts_is_wrong_as_published(first: str, second: str) -> None:
    assert normalised_formula(first) != normalised_formula(second)


def hendrycks() -> ModuleType:
    """The same function of another code base, of lm-eval, without what its package imports."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        pytest.skip("lm_eval is not installed")
    path = Path(found.submodule_search_locations[0]) / "tasks" / "hendrycks_math" / "utils.py"
    spec = importlib.util.spec_from_file_location("hendrycks_math_utils", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_formulas_are_compared_as_in_another_code_base(rng: np.random.Generator) -> None:
    theirs = hendrycks()
    pieces = [
        "1", "2", "72", "x", "=", " ", ".", "0.5", "/", "-", r"\frac", "{", "}", r"\sqrt", r"\text{ m}", r"\%", r"\$",
        r"\left(", r"\right)", r"\dfrac{1}{2}", r"^\circ", r"\frac12", r"\frac1{2}", ",", "\n",
    ]  # fmt: skip
    texts = [one for pair in EQUAL for one in pair]
    texts += ["".join(rng.choice(pieces, rng.integers(1, 6))) for _ in range(300)]
    compared = 0
    for text in texts:
        try:
            wanted = theirs.strip_string(text)
        except Exception:  # theirs fails on texts that are no formulas
            continue
        compared += 1
        assert normalised_formula(text) == wanted, text
    assert compared > 200


def test_the_last_box_counts() -> None:
    assert boxed_equals(r"\boxed{41}, no, \boxed{\frac12}", ["0.5", "3"])
    assert not boxed_equals(r"\boxed{42}, no, \boxed{41}", ["42"]) and not boxed_equals("42", ["42"])
    # As last_boxed_only_string and remove_boxed of MATH have it.
    assert boxed_equals(r"so \boxed 42$ it is", ["42"]) and boxed_equals(r"\boxed{\frac{1}{2}} }", ["0.5"])
    for none in (r"\boxed{4", r"\boxed{42}, then \boxed{4", r"\fbox{42}", r"\boxed42", r"\boxed{}"):
        assert not boxed_equals(none, ["42"]) and not boxed_equals(none, ["4"])


def thought(words: str, final: str) -> str:
    return f"<think>{words}</think>{final}"


FOUR = [
    thought(FRENCH, RIGHT),
    thought(ENGLISH, RIGHT),
    thought(FRENCH, WRONG),
    f"<think>{FRENCH}</think></think>{RIGHT}",
]


@pytest.fixture
def with_stand_in_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m_thinker, "Langdetect", lambda: SimpleNamespace(languages=detect))


@pytest.mark.usefixtures("with_stand_in_detector")
def test_both_forms_of_slc_and_strict_lc_agree_where_the_published_code_is_right() -> None:
    for ours, published in ((m_thinker.strict_lc, m_thinker.StrictLcAsPublished),):
        assert parts(ours, group(*FOUR)) == parts(published(), group(*FOUR)) == [
            {"lc": 0, "acc": 1, "accuracy": 1}, {"lc": -1, "acc": 0, "accuracy": 1},
            {"lc": 0, "acc": 0, "accuracy": 0}, {"lc": -1, "acc": 0, "accuracy": 1},
        ]  # fmt: skip
    short = thought(FRENCH, RIGHT)
    long = [thought(FRENCH * 11, RIGHT), thought(ENGLISH * 12, RIGHT), thought(FRENCH * 11, WRONG), short]
    assert len(long[0]) > 1000 > len(short)
    assert parts(m_thinker.slc_rl, group(*long)) == parts(m_thinker.SlcRlAsPublished(), group(*long)) == [
        {"acc": 1, "lc": 1, "accuracy": 1}, {"acc": 1, "lc": 0, "accuracy": 1}, {"acc": 0, "lc": 1, "accuracy": 0},
        {"acc": 0, "lc": 0, "accuracy": 1},
    ]  # fmt: skip


def test_langdetect_itself_tells_a_thought_in_english() -> None:
    pytest.importorskip("langdetect")
    found = parts(m_thinker.StrictLcAsPublished(), group(*FOUR))
    assert [one["lc"] for one in found] == [0, -1, 0, -1] and [one["acc"] for one in found] == [1, 0, 0, 0]


@pytest.mark.usefixtures("with_stand_in_detector")
def test_a_formula_is_in_every_language_as_published() -> None:
    given = group(thought("few numbers", r"$\boxed{42}$"))
    assert parts(m_thinker.StrictLcAsPublished(), given) == [{"lc": 0, "acc": 1, "accuracy": 1}]
    told = "the gate reads short texts, too, and right is right"
    assert parts(m_thinker.strict_lc, given) == [{"lc": -1, "acc": 0, "accuracy": 1}], told


@pytest.mark.usefixtures("with_stand_in_detector")
def test_alignment_is_asked_of_right_answers_alone_and_an_outage_is_no_zero() -> None:
    extra = {"english_thought": ENGLISH, "english_question": "Six times seven?"}
    tools = StandIn(lambda text: "0.25" if ENGLISH in text and "French" in text else None)
    found = parts(m_thinker.m_thinker, group(*FOUR, extra=extra), tools)
    assert [one["cta"] for one in found] == [0.25, 0, 0, 0] and len(tools.asked) == 1
    assert FRENCH in tools.asked[0] and "Six times seven?" in tools.asked[0]
    out, published = (
        parts(f, group(*FOUR, extra=extra)) for f in (m_thinker.m_thinker, m_thinker.MThinkerAsPublished())
    )
    assert out[0] == {"lc": 0, "acc": 1, "accuracy": 1, "cta": None} and out[1:] == found[1:]
    assert published[0] == {"lc": 0, "acc": 1, "accuracy": 1, "cta": 0.0}, "published: an outage lowers what is right"
    assert parts(m_thinker.m_thinker, group(*FOUR))[0]["cta"] == 0, "without an English thought nothing is asked"
    for said in ("1.5", "-1", "all of them"):
        with pytest.raises(ValueError, match=r"between 0 and 1|could not convert"):
            m_thinker.read_share(said)


RECIPES: list[Any] = [
    m_thinker.slc_rl_of_any_length, m_thinker.strict_lc, m_thinker.m_thinker, adamame.score, adamame.score_as_published,
    mcot.score, sp3f.score, pb_rlsvr.score,
]  # fmt: skip


@pytest.mark.parametrize("function", RECIPES)
def test_what_nobody_could_verify_is_missing_and_not_wrong(function: Any) -> None:
    extra = {"english_answer": "42", "english_reasoning": "6 times 7"}
    given = group(thought(f"{FRENCH} Bon.", f"Bon. {RIGHT}"), thought(FRENCH, WRONG), extra=extra)

    def judge(_: str) -> str:
        return "B" if function is sp3f.score else "100"

    found = parts(function, given, StandIn(judge, unverified="Bon"))
    cannot = [one is None or not {None, NEVER}.isdisjoint(one.values()) for one in found]
    assert cannot == [True, False], found
    if function is pb_rlsvr.score:
        assert found[0]["reasoning"] is NEVER, "an embedding that is no number will be none the next time"


def test_a_box_that_nobody_could_compare_is_missing_and_not_alone() -> None:
    given = group(RIGHT, RIGHT.replace("42", "x + 1"), RIGHT)
    found = parts(csc.score, given, StandIn(unverified="x + 1"))
    assert found == [{"agreement": 1.0}, None, {"agreement": 1.0}]


# --- AdaMame ----------------------------------------------------------------------------------------------------------


def test_a_text_without_a_language_is_rare_as_published_and_common_here() -> None:
    given = group(thought(FRENCH, RIGHT), thought(FRENCH, WRONG), r"123456 $\boxed{42}$ 99999".replace("boxed", "!"))
    ours, published = (parts(f, given) for f in (adamame.score, adamame.score_as_published))
    assert [one["same"] for one in ours] == [2, 2, 3] and [one["same"] for one in published] == [2, 2, 1]
    assert [one["match"] for one in ours] == [1, 1, 0] == [one["match"] for one in published]


PORTUGUESE = "Somamos os números passo a passo, até que o resultado fique certo, e verificamos cada conta outra vez."
# What lid.176 takes for languages that nobody asked for: Galician and Cantonese.
LIKE_GALICIAN = "Os números súmanse un a un, e o resultado é o que buscamos, que se comproba outra vez."
LIKE_CANTONESE = "我哋逐步將啲數加埋，直到個答案啱為止，然後再計多一次。"


def real_tools(*languages: str) -> Tools:
    """Those of a reward process, which embeds nothing."""
    calibrate = Calibration.load("raw", None, 1.0, 0.0, (-1.0, 1.0))
    return Tools(RewardConfig(), calibrate, lambda *_: asyncio.Future(), None, languages)


def test_a_language_that_nobody_asked_for_is_not_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = real_tools("pt", "zh", "ja")
    assert tools.languages([LIKE_GALICIAN, LIKE_CANTONESE]) == ["gl", "yue"]

    async def all_right(answers: Sequence[Any]) -> list[float]:
        return [1.0] * len(answers)

    monkeypatch.setattr(tools, "verify_all", all_right)
    given = replace(group(PORTUGUESE, PORTUGUESE, LIKE_GALICIAN, ENGLISH, "42"), language="pt")
    found = parts(adamame.score, given, tools)
    assert [one["match"] for one in found] == [1, 1, 1, 0, 0] and [one["same"] for one in found] == [3, 3, 3, 1, 5]
    assert [one["same"] for one in parts(adamame.score_as_published, given, tools)] == [3, 3, 3, 1, 1]
    given = replace(group("我们一步一步地把这些数字加起来，直到得到正确的结果。", LIKE_CANTONESE), language="zh")
    assert [(one["match"], one["same"]) for one in parts(adamame.score, given, tools)] == [(1, 2)] * 2
    given = replace(group(LIKE_CANTONESE, LIKE_GALICIAN, LIKE_GALICIAN), language="pt")
    assert [one["same"] for one in parts(adamame.score, given, tools)] == [1, 2, 2]


def test_languages_near_those_to_choose_from_count_as_the_first_of_them() -> None:
    near = {"id": ("ms",), "ms": ("id",), "zh": ("yue", "ja"), "pt": ("gl",)}
    assert languages_with_near(["ms", "id", "pt"], near) == {"ms": "ms", "id": "ms", "pt": "pt", "gl": "pt"}
    assert languages_with_near(["ja", "zh"], near) == {"ja": "ja", "zh": "zh", "yue": "zh"}
    assert languages_with_near(["zh"], near)["ja"] == "zh"


def test_a_box_in_the_question_is_an_answer_as_published() -> None:
    given = group(thought(FRENCH, "Je ne sais pas."))
    given.messages[0].content = r"Est-ce \boxed{42} ?"
    assert [parts(f, given)[0]["acc"] for f in (adamame.score, adamame.score_as_published)] == [0, 1]


# --- CSC --------------------------------------------------------------------------------------------------------------


def test_agreement_counts_every_language_alike() -> None:
    texts = [RIGHT, RIGHT, WRONG, RIGHT, "sans boîte"]
    found = parts(csc.score, group(*texts, asked=["fr", "fr", "fr", "en", "ja"]))
    assert [one["agreement"] for one in found] == pytest.approx([(1 / 2 + 1 + 0) / 3, 0.5, 0, (2 / 3 + 0) / 2, 0])
    alone = [rf"\boxed{{{n}}}" for n in range(4)]
    assert [one["agreement"] for one in parts(csc.score, group(*alone))] == [0] * 4, "no two agree: nothing is learned"


class Verifier(StandIn):
    """math-verify itself, with one worker."""

    def __init__(self) -> None:
        super().__init__()
        self.verifier = MathVerifier(workers=1)
        self.compared: list[tuple[str, list[str], str]] = []

    async def verify_all(self, answers: Sequence[tuple[str, list[str], str]]) -> list[float | None]:
        self.compared += answers
        return self.verifier.verify(answers)


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    pytest.importorskip("math_verify")
    found = Verifier()
    yield found
    found.verifier.close()


# Boxes of one group with their languages, and which of them are equal.
BOXES = [
    ("1.234", "de", 0), ("1,234", "en", 0), ("1234", "ja", 0), ("1.234", "en", 1), ("1,234", "de", 1),
    ("١٫٢٣٤", "ar", 1),
    (r"1.234\text{ km}", "de", 0), (r"\frac{1}{2}", "fr", 2), ("0,5", "fr", 2), ("1/2", "en", 2), ("2x + 1", "en", 3),
    ("1 + 2x", "de", 3), ("9^{9^{9}}", "en", -1), ("9^{9^{9}}", "fr", -1), (None, "fr", -1), (" ", "fr", -1),
]  # fmt: skip


def test_boxes_are_equal_in_any_order_and_by_the_language_they_are_in(
    verifier: Verifier, rng: np.random.Generator
) -> None:
    for _ in range(3):
        order = rng.permutation(len(BOXES))
        boxes, languages, wanted = zip(*(BOXES[place] for place in order), strict=True)
        found = asyncio.run(csc.equal_boxes(boxes, languages, cast("Tools", verifier)))
        pairs = set(zip(found, wanted, strict=True))
        assert len(pairs) == 5 == len(dict(pairs)) and (-1, -1) in pairs, found
    assert not any("9^" in text or "9^" in gold for text, (gold,), _ in verifier.compared), "nobody reads such a box"
    assert not verifier.verifier.counts["math_killed"]


def test_agreement_does_not_depend_on_the_order(rng: np.random.Generator) -> None:
    classes, languages = rng.integers(-1, 3, 8), rng.choice(["fr", "en", "ja"], 8)
    order = rng.permutation(8)
    found = np.array(csc.agreement(classes.tolist(), languages.tolist()))
    assert csc.agreement(classes[order].tolist(), languages[order].tolist()) == pytest.approx(found[order])
    assert (found >= 0).all() and (found <= 1).all() and not found[classes == -1].any()
    same = csc.agreement([0] * 8, languages.tolist())
    assert same == pytest.approx([1.0] * 8)


# --- SP3F, PB-RLSVR, mCoT ---------------------------------------------------------------------------------------------


def test_a_failed_comparison_is_left_out_and_a_loss_as_published() -> None:
    def judge(text: str) -> str | None:
        first, _, second = text.partition("Answer A:")[2].partition("Answer B:")
        return None if "numbers" in second else "A" if "{42}" in first and "{41}" in second else "So it is\nB"

    given = group(*FOUR[:3], extra={"english_solution": "It is 42."})
    tools = StandIn(judge)
    ours, published = parts(sp3f.score, given, tools), parts(sp3f.score_as_published, given, StandIn(judge))
    assert [one["wins"] for one in ours] == [1, 0.5, 0]  # of one, two and one comparisons that were made
    assert [one["wins"] for one in published] == [0.5, 0.5, 0]
    assert len(tools.asked) == 6 and all("It is 42." in text for text in tools.asked)
    assert [(one["acc"], one["box"], one["lc"]) for one in ours] == [(1, 1, 1), (1, 1, 1), (0, 1, 1)]
    assert parts(sp3f.score, given) == [None] * 3, "with no comparison at all, nothing is known"


@pytest.mark.parametrize("said", ["Short.\nA", "B fails in step 2.\n\n**A**\n", "A", "(A).", "It is B?\n`A`", "[[A]]"])
def test_the_winner_is_a_last_line_of_one_letter(said: str) -> None:
    assert sp3f.read_first_wins(said) is True
    assert sp3f.read_first_wins(said.translate(str.maketrans("AB", "BA"))) is False


@pytest.mark.parametrize(
    "said", ["neither", "", "Answer B makes a mistake in step 2, so the first one is better.", "A or B\nA and B", "AB",
             "A\nBoth reach it.", "so: **A**"],
)  # fmt: skip
def test_a_letter_in_a_sentence_is_no_winner(said: str) -> None:
    with pytest.raises(ValueError, match="the last line must be the letter A or B"):
        sp3f.read_first_wins(said)


@pytest.mark.parametrize("function", [sp3f.score, sp3f.score_as_published])
def test_an_answer_that_is_alone_is_compared_with_none(function: Any) -> None:
    """As in an evaluation."""
    tools = StandIn()
    assert parts(function, group(FOUR[0]), tools) == [{"acc": 1, "box": 1, "lc": 1, "wins": 0}] and not tools.asked


def test_answers_without_a_word_are_in_no_language() -> None:
    """It must not pay to leave the thought out. A bare result after a thought is in the thought's language."""
    tools = real_tools("fr", "ja")
    bare, box = "</think>42", r"<think>5</think>$x = \boxed{42}$"
    after = [thought(FRENCH, r"\boxed{42}"), thought(ENGLISH, "42"), thought(ENGLISH, RIGHT)]
    standing_in = StandIn(lambda _: "A")
    standing_in.language_shares = tools.language_shares  # type: ignore[method-assign]
    given = group(bare, box, *after)
    assert [one["lc"] for one in parts(sp3f.score, given, standing_in)] == [0, 0, 1, 0, 1]
    found = [one["language"] for one in parts(mcot.score, given, standing_in)]
    assert found[:2] == [0, 0] and found[2] > 0.9 and found[3] < 0.2
    assert tools.language_shares(["42", "x = 5", "", "答えは 5 cm です。"], ["fr", "ja", "ja", "ja"])[:3] == [0, 0, 0]
    assert tools.language_shares(["答えは 5 cm です。"], ["ja"])[0] > 0.9


def test_a_row_without_its_english_columns_is_named() -> None:
    with pytest.raises(ValueError, match=r"no 'english_answer'; name its column in data\.columns"):
        parts(pb_rlsvr.score, group(FOUR[0]))


def test_mcot_as_published_takes_the_detector_s_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    class Found:
        def __init__(self, lang: str, prob: float) -> None:
            self.lang, self.prob = lang, prob

    class Detector(ModuleType):
        LangDetectException = ValueError

        @staticmethod
        def detect_langs(text: str) -> list[Found]:
            return [Found(code, 1 / len(detect(text))) for code in detect(text)]

    monkeypatch.setitem(__import__("sys").modules, "langdetect", Detector("langdetect"))
    given = group(thought(f"{FRENCH} {ENGLISH}", RIGHT), thought(FRENCH, RIGHT), "123", f"{FRENCH}{RIGHT}")
    found = parts(mcot.AsPublished(), given)
    assert [one["language"] for one in found] == [0.5, 1, 0, 1]
    assert [one["format"] for one in found] == [1, 1, 0, 0] and [one["acc"] for one in found] == [1, 1, 0, 1]
