"""Which parts of an answer are shown, judged for their language, and rewarded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.answer import GateSpan, read_answer
from common.header import Header
from common.languages import POLICY_CHOOSES

HEADER = Header("<lang_select>\n{code}\n</lang_select>\n", ["de", "en"])


@pytest.mark.parametrize(
    ("span", "final_too", "judged"),
    [
        ("all", False, ["one", "two"]),
        ("thinking", False, ["one"]),
        ("thinking", True, ["one", "two"]),
        ("answer", False, ["two"]),
    ],
)
def test_the_thought_is_not_rewarded_and_the_span_says_what_is_judged(
    span: GateSpan, final_too: bool, judged: list[str]
) -> None:
    answer = read_answer(" <think>one</think> two ", "German", True)
    assert (answer.thought, answer.final) == ("one", "two")
    assert answer.judged(span, final_too) == judged
    bare = read_answer("two", "de").judged(span, final_too)
    assert bare == {"all": ["two"], "thinking": ["", "two"][: 1 + final_too], "answer": ["two"]}[span]
    assert (answer.asked, answer.truncated, answer.header, answer.selection) == ("de", True, "", {})
    assert answer.thought_closed and answer.oddities == ()


@pytest.mark.parametrize(
    ("raw", "opened", "thought", "final", "closed"),
    [
        ("two", False, "", "two", True),
        ("one</think>two", True, "one", "two", True),
        ("one</think>two", False, "one", "two", True),
        ("one", True, "one", "", False),
        ("<think>one", False, "one", "", False),
        ("<think>one</think>two<think>three", False, "one\ntwothree", "", False),
        ("<think>one</think>two<think>three</think>four", False, "onetwothree", "four", True),
        ("zero <think>one</think>two", False, "zero one", "two", True),
    ],
)
def test_a_thought_that_never_ended_is_no_answer(
    raw: str, opened: bool, thought: str, final: str, closed: bool
) -> None:
    answer = read_answer(raw, "de", thinking_opened=opened)
    assert (answer.thought, answer.final, answer.thought_closed) == (thought, final, closed)


def test_the_header_names_the_language_where_the_policy_chose_it() -> None:
    chosen = read_answer("<lang_select>\nen\n</lang_select>\nTokyo", POLICY_CHOOSES, False, HEADER)
    assert (chosen.final, chosen.asked, chosen.selection) == ("Tokyo", "en", {"selection": 1.0})
    assert chosen.header == "<lang_select>\nen\n</lang_select>"
    sloppy = read_answer("<Lang_Select> German Tokio", POLICY_CHOOSES, False, HEADER)
    assert (sloppy.final, sloppy.asked, sloppy.selection) == ("Tokio", "de", {"selection": 0.0})
    missing = read_answer("Tokyo", POLICY_CHOOSES, False, HEADER)
    assert (missing.final, missing.asked, missing.selection) == ("Tokyo", "", {"selection": 0.0})
    with pytest.raises(ValueError, match="no header is known"):
        read_answer("Tokyo", POLICY_CHOOSES)


def test_lone_surrogates_are_replaced_and_of_long_answers_the_end_is_read() -> None:
    answer = read_answer("a" * 100_000 + "\ud800", "en")
    assert answer.final == "a" * 99_999 + "?"
    assert answer.oddities == ("unencodable", "over_long")


@pytest.mark.parametrize("opened", [True, False])
def test_a_long_thought_costs_no_answer_its_end(opened: bool) -> None:
    raw = ("" if opened else "<think>") + "a" * 110_000 + "</think> \\boxed{5}"
    answer = read_answer(raw, "en", thinking_opened=opened)
    assert (answer.final, answer.thought_closed, answer.oddities) == (r"\boxed{5}", True, ("over_long",))
    assert answer.thought == "a" * (100_000 - len(answer.final))


def test_of_all_that_is_long_no_more_is_read_than_may_be() -> None:
    answer = read_answer("<think>" + "a" * 60_000 + "</think>" + "b" * 80_000 + " 5", "en")
    assert (len(answer.thought) + len(answer.final), answer.final[-3:]) == (100_000, "b 5")
    assert read_answer("<think>" + "a" * 150_000, "en").thought == "a" * 100_000
    assert read_answer("b" * 150_000 + " 5", "en").final == "b" * 99_998 + " 5"


@given(st.text(max_size=60), st.text(max_size=60), st.booleans())
def test_a_thought_ends_at_its_tag(before: str, after: str, opened: bool) -> None:
    tag = "" if opened else "<think>"
    if "think>" not in before + after:
        answer = read_answer(f"{tag}{before}</think>{after}", "de", thinking_opened=opened)
        assert (answer.thought, answer.final, answer.thought_closed) == (before.strip(), after.strip(), True)
        unfinished = read_answer(f"{tag}{before}", "de", thinking_opened=opened)
        assert (unfinished.thought, unfinished.final, unfinished.thought_closed) == (before.strip(), "", False)
