"""Questions from parquet: the schema, its mistakes, and the order in which a run asks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.process import FatalError
from common.tokenizer import load_tokenizer
from learner.work.questions import ShuffledQuestions, hash_questions, pick_evenly, read_questions
from tests.support.groups import question


def row(**changes: Any) -> dict[str, Any]:
    base = {
        "prompt": [{"role": "user", "content": "Wie heißt die Hauptstadt?"}],
        "ability": "Regional Knowledge",
        "reward_model": {"ground_truth": "Berlin.", "style": "rule"},
        "extra_info": {"language": "german", "topic": "Regional Knowledge", "region": None, "index": 0},
    }
    return {**base, **changes}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_rows_become_questions(tiny_policy: Path, tmp_path: Path) -> None:
    several = {"language": "English", "topic": ["A", "B"], "region": ["Europe", "Asia"], "index": 1}
    single = {"language": "zh", "topic": ["A"], "region": ["Asia"], "index": 2}
    verified = {"ground_truth": "Berlin.", "accepted": ["Berlin", "柏林"]}
    rows = [row(extra_info=several), row(extra_info=single, reward_model=verified)]
    first, second = read_questions(write(tmp_path / "q.parquet", rows), load_tokenizer(str(tiny_policy)), 100)
    assert (first.language, first.topics, first.regions) == ("en", ["A", "B"], ["Europe", "Asia"])
    assert (second.language, second.index, second.reference) == ("zh", 1, "Berlin.")
    assert (first.accepted, second.accepted) == ([], ["Berlin", "柏林"])
    plain = read_questions(write(tmp_path / "p.parquet", [row()]), load_tokenizer(str(tiny_policy)), 100)[0]
    assert (plain.language, plain.topics, plain.regions) == ("de", ["Regional Knowledge"], [])


def test_long_prompts_are_left_out_and_counted(
    tiny_policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row(), row(prompt=[{"role": "user", "content": "x" * 500}])]
    path = write(tmp_path / "q.parquet", rows)
    assert len(read_questions(path, load_tokenizer(str(tiny_policy)), 100)) == 1
    assert "left out 1 prompts" in caplog.text
    with pytest.raises(FatalError, match="no question of at most 3"):
        read_questions(path, load_tokenizer(str(tiny_policy)), 3)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"extra_info": {"language": "klingon"}}, r"row 0: .*klingon"),
        ({"extra_info": {"language": None}}, r"row 0"),
        ({"reward_model": {"style": "rule"}}, r"row 0: .*ground_truth"),
        ({"reward_model": {"ground_truth": 3}}, r"row 0: .*reference"),
        ({"reward_model": {"ground_truth": None}}, r"row 0: .*\$\.reference"),
        ({"reward_model": {"ground_truth": " "}}, r"row 0: .*ground_truth is empty"),
        ({"prompt": [{"role": "user", "content": None}]}, r"row 0: .*\$\.messages\[0\]\.content"),
        ({"extra_info": {"language": "de", "topic": ["A", None]}}, r"row 0: .*\$\.topics\[1\]"),
        ({"prompt": []}, r"row 0: .*prompt is empty"),
    ],
)
def test_a_malformed_row_is_named(changes: dict[str, Any], complaint: str, tiny_policy: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "q.parquet", [row(**changes)])
    with pytest.raises(FatalError, match=complaint) as error:
        read_questions(path, load_tokenizer(str(tiny_policy)), 100)
    assert str(path) in str(error.value)


def test_a_missing_file_or_column_is_named(tiny_policy: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_policy))
    with pytest.raises(FatalError, match=r"nothing\.parquet"):
        read_questions(tmp_path / "nothing.parquet", tokenizer, 100)
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(FatalError, match=r"text\.parquet"):
        read_questions(tmp_path / "text.parquet", tokenizer, 100)
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "lacks.parquet")
    with pytest.raises(FatalError, match="lacks the column 'ability'"):
        read_questions(tmp_path / "lacks.parquet", tokenizer, 100)
    with pytest.raises(FatalError, match="cannot load the tokenizer"):
        load_tokenizer("/nowhere")


@settings(max_examples=30)
@given(count=st.integers(1, 20), epochs=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_every_epoch_asks_each_question_once_in_an_order_of_its_own(count: int, epochs: int, seed: int) -> None:
    questions = [question(index) for index in range(count)]
    order = ShuffledQuestions(questions, seed)
    asked = [order[n].index for n in range(count * epochs)]
    for epoch in range(epochs):
        assert sorted(asked[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert [ShuffledQuestions(questions, seed)[n].index for n in reversed(range(count * epochs))] == asked[::-1]
    assert hash_questions(questions, seed) == hash_questions(questions, seed) != hash_questions(questions, seed + 1)
    assert hash_questions(questions[1:], seed) != hash_questions(questions, seed)


def test_a_pick_takes_each_language_evenly() -> None:
    questions = [question(n, ["en", "de", "zh", "fr"][n % 4]) for n in range(40)]
    picked = pick_evenly(questions, 12)
    assert Counter(item.language for item in picked) == {"en": 3, "de": 3, "zh": 3, "fr": 3}
    assert pick_evenly(questions, 99) == questions
