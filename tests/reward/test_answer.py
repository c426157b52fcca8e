"""Which parts of an answer are scored and which the language gate reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.header import Header
from common.languages import POLICY_CHOOSES
from reward.answer import GateSpan, read_answer, split_thinking

HEADER = Header("<lang_select>\n{code}\n</lang_select>\n", ["de", "en"])


@pytest.mark.parametrize(("span", "read"), [("all", "<think>one</think> two"), ("thinking", "one"), ("answer", "two")])
def test_the_thinking_part_is_not_scored_and_the_gate_reads_its_span(span: GateSpan, read: str) -> None:
    answer = read_answer(" <think>one</think> two ", "German", True, HEADER, span)
    assert (answer.text, answer.gate_text, answer.asked, answer.truncated) == ("two", read, "de", True)
    assert answer.selection == {} and answer.oddities == ()


def test_the_header_names_the_language_where_the_policy_chose_it() -> None:
    chosen = read_answer("<lang_select>\nen\n</lang_select>\nTokyo", POLICY_CHOOSES, False, HEADER, "all")
    assert (chosen.text, chosen.asked, chosen.selection) == ("Tokyo", "en", {"selection": 1.0})
    sloppy = read_answer("<Lang_Select> German Tokio", POLICY_CHOOSES, False, HEADER, "all")
    assert (sloppy.text, sloppy.asked, sloppy.selection) == ("Tokio", "de", {"selection": 0.0})
    missing = read_answer("Tokyo", POLICY_CHOOSES, False, HEADER, "all")
    assert (missing.text, missing.asked, missing.selection) == ("Tokyo", "", {"selection": 0.0})


def test_lone_surrogates_are_replaced_and_long_answers_cut() -> None:
    answer = read_answer("\ud800" + "a" * 100_000, "en", False, HEADER, "all")
    assert answer.text == "?" + "a" * 99_999
    assert answer.oddities == ("unencodable", "over_long")


@given(st.text(max_size=60), st.text(max_size=60))
def test_thinking_ends_at_its_tag(before: str, after: str) -> None:
    thinking, answer = split_thinking(f"<think>{before}</think>{after}")
    if "think>" not in before + after:
        assert (thinking, answer) == (before.strip(), after.strip())
        assert split_thinking(f"<think>{before}") == (before.strip(), "")
