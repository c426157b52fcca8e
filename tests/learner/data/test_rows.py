"""Rows as they are published become questions, without a mapping or with one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.data.problems import Place, Problems, RowError
from learner.data.rows import QuestionRow, Rules, drop_repeated, normal_form, parse_row

PLACE = Place("file", 0)
# As verl's examples/data_preprocess write GSM8K and MATH.
GSM8K = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": 'Natalia sold 48 clips. Let\'s think step by step, after "####".'}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "72"},
    "extra_info": {"split": "train", "index": 0, "answer": "48/2 = 24 #### 72", "question": "Natalia sold 48 clips."},
}
MATH = {
    "data_source": "DigitalLearningGmbH/MATH-lighteval",
    "prompt": [{"role": "user", "content": "Let $x$ be … put your final answer within \\boxed{}."}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2\\sqrt{3}"},
    "extra_info": {"split": "train", "index": 7},
}
M_THINKER = {
    "data_source": "ja",
    "prompt": [{"role": "user", "content": "2+3は？"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "5"},
    "extra_info": {"en_question": "What is 2+3?", "en_answer": "<think>2 and 3…</think>5", "id": 9},
}
ADAMAME = {
    "data_source": "dapo",
    "prompt": [{"role": "user", "content": "2+3은?"}],
    "lang": "ko",
    "reward_model": {"style": "rule", "ground_truth": "5"},
}
TRIT = {
    "data_source": "trit",
    "query": "2+3는?",
    "reward_model": {"ground_truth": "KO---x---5"},
    "extra_info": {"lang": "ko"},
}
MMATH = {"question": "Wie viel ist 2+3?", "answer": 5, "lang": "de", "data_source": "AIME2024", "gid": 3}
POLYMATH = {"id": "low-de-1", "question": "Wie viel ist 2+3?", "answer": "5"}


@pytest.mark.parametrize(
    ("record", "columns", "language", "expected"),
    [
        (GSM8K, {}, "en", ("en", "72", ["math"], {})),
        (MATH, {}, "English", ("en", "2\\sqrt{3}", ["math"], {})),
        (
            M_THINKER,
            {"language": "data_source", "anchor": "extra_info.en_answer"},
            "",
            ("ja", "5", ["math"], {"anchor": "<think>2 and 3…</think>5"}),
        ),
        (ADAMAME, {"language": "lang"}, "", ("ko", "5", ["dapo"], {})),
        (ADAMAME, {}, "", ("ko", "5", ["dapo"], {})),
        (
            TRIT,
            {"question": "query", "answer": "reward_model.ground_truth after ---", "language": "extra_info.lang"},
            "",
            ("ko", "5", [], {}),
        ),
        (MMATH, {"topic": "data_source"}, "", ("de", "5", ["AIME2024"], {})),
        (POLYMATH, {"set": "id"}, "de", ("de", "5", [], {"set": "low-de-1"})),
    ],
    ids=["gsm8k", "math", "m-thinker", "adamame", "adamame unmapped", "trit", "mmath", "polymath"],
)
def test_published_rows(record: dict[str, Any], columns: dict[str, str], language: str, expected: Any) -> None:
    row = parse_row(record, PLACE, Rules(columns, language="" if not language else "en" if "n" in language else "de"))
    assert (row.language, row.reference, row.topics, row.extra) == expected
    assert row.messages[-1]["role"] == "user" and row.question


def test_a_row_keeps_what_is_not_used() -> None:
    assert parse_row(GSM8K, PLACE, Rules(language="en")).rest == {
        "reward_model": {"style": "rule"},
        "extra_info": GSM8K["extra_info"],
    }


def test_a_path_may_lead_into_lists_and_names_may_have_dots() -> None:
    record = {"a.b": "dotted", "a": {"b": "nested"}, "choices": ["x", {"text": "Berlin"}], "question": "Wo?"}
    rules = Rules({"answer": "choices.1.text", "one": "a.b"}, "de")
    row = parse_row(record, PLACE, rules)
    assert (row.reference, row.extra) == ("Berlin", {"one": "dotted"})
    with pytest.raises(RowError, match="no such column") as error:
        parse_row(record, PLACE, Rules({"answer": "choices.7.text"}, "de"))
    assert error.value.key == "choices.7.text"


def make_row(text: str, number: int = 0, rating: float | None = None) -> QuestionRow:
    messages = [{"role": "user", "content": text}]
    return QuestionRow(messages, "a", "de", [], [], "s", Place("f", number), rating=rating)


@given(texts=st.lists(st.text(min_size=1).filter(str.strip), max_size=8))
def test_dropping_what_is_repeated_loses_no_question_and_names_each_row_once(texts: list[str]) -> None:
    rows, problems = [make_row(text, number) for number, text in enumerate(texts)], Problems()
    kept = drop_repeated(rows, problems)
    assert {normal_form(row.messages) for row in kept} == {normal_form(row.messages) for row in rows}
    assert sorted([*(row.place.row for row in kept), *(problem.row for problem in problems.found)]) == [
        *range(len(rows))
    ]
    assert drop_repeated(kept, Problems()) == kept


def test_the_best_rated_answer_is_kept() -> None:
    problems = Problems()
    kept = drop_repeated([make_row("a", 0, 2), make_row("a", 1, 9), make_row("a\n", 2, 5)], problems)
    assert [row.place.row for row in kept] == [1]
    assert {problem.row for problem in problems.found} == {0, 2}


def test_nan_is_a_missing_value() -> None:
    """pandas writes it for one, also to JSON."""
    nan = float("nan")
    row = {"question": "3+3?", "answer": 6, "language": nan, "accepted": nan, "topic": nan, "region": nan, "hint": nan}
    found = parse_row(row, PLACE, Rules({"hint": "hint"}, language="en"))
    assert (found.language, found.accepted, found.topics, found.regions, found.extra) == ("en", [], [], [], {})
    with pytest.raises(RowError, match="it is missing") as problem:
        parse_row({"question": "3+3?", "answer": nan, "language": "en"}, PLACE, Rules())
    assert problem.value.key == "answer"
    helpsteer = {"context": "Hi?", "response1": "a", "response2": "b", "language": "en", "overall_preference": nan}
    with pytest.raises(RowError, match="it is not a number: nan"):
        parse_row(helpsteer, PLACE, Rules())
