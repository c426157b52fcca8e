"""Scoring functions as published, also where they are wrong, and what the recipes mend; on tables made by hand."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from common.diagnostics import consistent_polymath
from common.wire import Chat
from configs.recipes import adamame, csc, m_thinker, mcot, pb_rlsvr, sp3f
from reward.terms.custom import Group, GroupAnswer
from reward.terms.published import boxed_equals, normalised_formula

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

    def languages(self, texts: Sequence[str]) -> list[str]:
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


def parts(function: Any, given: Group, tools: StandIn | None = None) -> list[Any]:
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
            {"lc": 0, "acc": 1}, {"lc": -1, "acc": 0}, {"lc": 0, "acc": 0}, {"lc": -1, "acc": 0}
        ]  # fmt: skip
    short = thought(FRENCH, RIGHT)
    long = [thought(FRENCH * 11, RIGHT), thought(ENGLISH * 12, RIGHT), thought(FRENCH * 11, WRONG), short]
    assert len(long[0]) > 1000 > len(short)
    assert parts(m_thinker.slc_rl, group(*long)) == parts(m_thinker.SlcRlAsPublished(), group(*long)) == [
        {"acc": 1, "lc": 1}, {"acc": 1, "lc": 0}, {"acc": 0, "lc": 1}, {"acc": 0, "lc": 0}
    ]  # fmt: skip


def test_langdetect_itself_tells_a_thought_in_english() -> None:
    pytest.importorskip("langdetect")
    found = parts(m_thinker.StrictLcAsPublished(), group(*FOUR))
    assert [one["lc"] for one in found] == [0, -1, 0, -1] and [one["acc"] for one in found] == [1, 0, 0, 0]


@pytest.mark.usefixtures("with_stand_in_detector")
def test_a_formula_is_in_every_language_as_published() -> None:
    given = group(thought("few numbers", r"$\boxed{42}$"))
    assert parts(m_thinker.StrictLcAsPublished(), given) == [{"lc": 0, "acc": 1}]
    assert parts(m_thinker.strict_lc, given) == [{"lc": -1, "acc": 0}], "the gate reads short texts, too"


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
    assert out[0] == {"lc": 0, "acc": 1, "cta": None} and out[1:] == found[1:]
    assert published[0] == {"lc": 0, "acc": 1, "cta": 0.0}, "published: an outage lowers what is right"
    assert parts(m_thinker.m_thinker, group(*FOUR))[0]["cta"] == 0, "without an English thought nothing is asked"
    for said in ("1.5", "-1", "all of them"):
        with pytest.raises(ValueError, match=r"between 0 and 1|could not convert"):
            m_thinker.read_share(said)


RECIPES: list[tuple[Any, int]] = [  # a reward, and which of two answers alike but for a word it cannot value then
    (m_thinker.slc_rl_of_any_length, 0), (m_thinker.strict_lc, 0), (m_thinker.m_thinker, 0), (adamame.score, 0),
    (adamame.score_as_published, 0), (mcot.score, 0), (sp3f.score, 0), (csc.score, 1), (pb_rlsvr.score, 0),
]  # fmt: skip


@pytest.mark.parametrize(("function", "missing"), RECIPES)
def test_what_nobody_could_verify_is_missing_and_not_wrong(function: Any, missing: int) -> None:
    extra = {"english_answer": "42", "english_reasoning": "6 times 7"}
    given = group(thought(f"{FRENCH} Bon.", f"Bon. {RIGHT}"), thought(FRENCH, WRONG), extra=extra)

    def judge(_: str) -> str:
        return "B" if function is sp3f.score else "100"

    tools = StandIn(judge, unverified=r"\boxed{41}" if function is csc.score else "Bon")
    found = parts(function, given, tools)
    cannot = [one is None or None in one.values() for one in found]
    assert cannot == [number == missing for number in range(2)], found


# --- AdaMame ----------------------------------------------------------------------------------------------------------


def test_a_text_without_a_language_is_rare_as_published_and_common_here() -> None:
    given = group(thought(FRENCH, RIGHT), thought(FRENCH, WRONG), r"123456 $\boxed{42}$ 99999".replace("boxed", "!"))
    ours, published = (parts(f, given) for f in (adamame.score, adamame.score_as_published))
    assert [one["same"] for one in ours] == [2, 2, 3] and [one["same"] for one in published] == [2, 2, 1]
    assert [one["match"] for one in ours] == [1, 1, 0] == [one["match"] for one in published]


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
        return None if "numbers" in second else "A" if "{42}" in first and "{41}" in second else "so B"

    given = group(*FOUR[:3], extra={"english_solution": "It is 42."})
    tools = StandIn(judge)
    ours, published = parts(sp3f.score, given, tools), parts(sp3f.score_as_published, given, StandIn(judge))
    assert [one["wins"] for one in ours] == [1, 0.5, 0]  # of one, two and one comparisons that were made
    assert [one["wins"] for one in published] == [0.5, 0.5, 0]
    assert len(tools.asked) == 6 and all("It is 42." in text for text in tools.asked)
    assert [(one["acc"], one["box"], one["lc"]) for one in ours] == [(1, 1, 1), (1, 1, 1), (0, 1, 1)]
    assert parts(sp3f.score, given) == [None] * 3, "with no comparison at all, nothing is known"
    assert sp3f.read_first_wins("A is longer.\nB") is False and sp3f.read_first_wins("so: **A**") is True
    with pytest.raises(ValueError, match="letter A or B"):
        sp3f.read_first_wins("neither")


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
