"""Rows that a command writes mean the same when they are read again, whatever the types of their values."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.process import FatalError
from learner.data.problems import Place, Problems, RowError
from learner.data.rows import QuestionRow, Rules, mean_pass_rate, read_question_rows
from scripts.data import anchors, calibrate, cold_start, label, pass_rate, warm_start_data
from scripts.data.tables import check_holds, write
from tests.support.rows import read_rows

ROOT_3 = "2\\sqrt{3}"
# Of each pair of rows one value or more has two types.
MIXED: list[list[dict[str, Any]]] = [
    [{"question": "a?", "answer": 42, "language": "en"}, {"question": "b?", "answer": ROOT_3, "language": "en"}],
    [{"question": "a?", "answer": 1, "language": "en"}, {"question": "b?", "answer": 2.5, "language": "en"}],
    [
        {"question": "a?", "answer": "1", "language": "en", "accepted": ["1", ROOT_3]},
        {"question": "b?", "answer": "1", "language": "en", "accepted": ROOT_3},
        {"question": "c?", "answer": "1", "language": "en", "accepted": ["1", 2]},
    ],
    [
        {"question": "a\n?", "answer": "1", "language": "en"},
        {"question": [{"role": "user", "content": "b?"}], "answer": "1", "language": "en"},
    ],
    [
        {"prompt": "a?", "reward_model": {"ground_truth": 42}, "extra_info": {"lang": "en"}},
        {"prompt": "b?", "reward_model": {"ground_truth": ROOT_3, "accepted": ["x"]}, "extra_info": {"lang": "en"}},
    ],
    [
        {"question": "a?", "answer": "1", "language": "en", "note": '"quoted"'},
        {"question": "b?", "answer": "1", "language": "en", "note": {"a": [1, None, {}]}},
        {"question": "c?", "answer": "1", "language": "en", "note": True},
        {"question": "d?", "answer": "1", "language": "en", "note": 2**70},
    ],
]


def questions(path: Path) -> list[QuestionRow]:
    problems = Problems()
    rows = list(read_question_rows(str(path), Rules({"note": "note"}), problems))
    assert not problems.found
    return [replace(row, place=Place("", row.place.row), source="", pass_rate=None, rest={}) for row in rows]


@pytest.mark.parametrize("rows", MIXED)
def test_rows_of_mixed_types_mean_the_same_after_a_filter_and_after_anchors(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = list(read_question_rows(str(source), Rules(), Problems()))
    places = [row.place for row in read]
    rated = pass_rate.rated_records(str(source), read, {places[0]: {"en": 0.5}})
    write(rated, tmp_path / "rated.jsonl")
    assert read_rows(str(tmp_path / "rated.jsonl"))[0]["pass_rate"] == {"en": 0.5}
    anchored = anchors.anchored_records(str(source), read, {places[0]: {"thought": "So."}}, {"thought": "thought"})
    write(anchored, tmp_path / "anchored.jsonl")
    assert questions(tmp_path / "rated.jsonl") == questions(tmp_path / "anchored.jsonl") == questions(source)
    with pytest.raises(FatalError, match=r"rated\.parquet cannot hold the column '.*Give a file whose name"):
        write(rated, tmp_path / "rated.parquet")
    with pytest.raises(FatalError, match=r"cannot hold the column"):
        check_holds(tmp_path / "rated.parquet", str(source))
    check_holds(tmp_path / "rated.jsonl", str(source))
    assert not (tmp_path / "rated.parquet").exists()


def test_values_of_several_types_are_quoted(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match=r"the column 'answer' .* of several, as 42 and '2\\\\sqrt\{3\}'"):
        write([{"answer": None}, {"answer": 42}, {"answer": ROOT_3}], tmp_path / "a.parquet")


def test_rows_of_one_type_may_be_parquet(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"answer": 1, "extra_info": {"a": 1}, "accepted": ["x"], "none": None, "rate": float("nan")},
        {"answer": 2, "extra_info": {"b": "2"}, "accepted": [], "rate": 0.5},
        {"answer": None, "extra_info": None},
    ]
    write(rows, tmp_path / "a.parquet")
    found = read_rows(str(tmp_path / "a.parquet"))
    assert found[0]["extra_info"] == {"a": 1, "b": None} and found[1]["accepted"] == [] and found[2]["answer"] is None


def test_half_of_a_character_comes_back(tmp_path: Path) -> None:
    write([{"a": "\ud83d é", "b": 1}], tmp_path / "a.jsonl")
    assert read_rows(str(tmp_path / "a.jsonl")) == [{"a": "\ud83d é", "b": 1}]


def test_a_date_of_parquet_means_the_same_as_json(tmp_path: Path) -> None:
    row = {"question": "a?", "answer": "1", "language": "en", "note": datetime.date(2024, 1, 31)}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    write(read_rows(str(tmp_path / "a.parquet")), tmp_path / "b.jsonl")
    assert questions(tmp_path / "a.parquet") == questions(tmp_path / "b.jsonl")
    assert questions(tmp_path / "b.jsonl")[0].extra == {"note": "2024-01-31"}


def test_what_json_has_not_is_an_answer_and_means_the_same_as_json(tmp_path: Path) -> None:
    """Decimals, as Spark and DuckDB write them; dates; texts that a program wrote as bytes; numbers of CSV."""
    decimals = pa.array([Decimal("1.50"), Decimal("0.00"), Decimal("12345678.90")], pa.decimal128(12, 2))
    columns = {
        "question": pa.array([b"a?", "bé?".encode(), b"c?"]), "answer": decimals,
        "accepted": pa.array([[one] for one in decimals.to_pylist()]), "language": pa.array([b"en"] * 3),
        "note": pa.array([datetime.datetime(2024, 1, 31), None, datetime.datetime(1, 1, 1)]),
        "pass_rate": pa.array([Decimal("0.5"), Decimal("0.0"), Decimal("1.0")]), "blob": pa.array([b"\xff"] * 3),
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    write(read_rows(str(tmp_path / "a.parquet")), tmp_path / "b.jsonl")
    read = questions(tmp_path / "a.parquet")
    assert read == questions(tmp_path / "b.jsonl")
    assert [row.reference for row in read] == ["1.50", "0.00", "12345678.90"] == [row.accepted[0] for row in read]
    assert [row.question for row in read] == ["a?", "bé?", "c?"] and read[0].extra == {"note": "2024-01-31 00:00:00"}
    for name in ("a.parquet", "b.jsonl"):
        rated = list(read_question_rows(str(tmp_path / name), Rules(), Problems()))
        assert [mean_pass_rate(row, ["en"]) for row in rated] == [0.5, 0.0, 1.0]
    (tmp_path / "c.csv").write_text("question,answer,language,pass_rate\na?,2024-01-31,en,0.25\nb?,1,en,high\n")
    rate, wrong = read_question_rows(str(tmp_path / "c.csv"), Rules(), Problems())
    assert mean_pass_rate(rate, ["en"]) == 0.25
    with pytest.raises(RowError, match="it is no share between 0 and 1: 'high'"):
        mean_pass_rate(wrong, ["en"])


def test_what_is_no_answer_is_said(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "True": True, "datetime.timedelta(days=1)": datetime.timedelta(1), "b'\\xff": b"\xff", "inf": float("inf"),
    }  # fmt: skip
    for shown, value in values.items():
        pq.write_table(pa.table({"question": ["a?"], "answer": [value], "language": ["en"]}), tmp_path / "a.parquet")
        problems = Problems()
        assert not list(read_question_rows(str(tmp_path / "a.parquet"), Rules(), problems))
        assert f"it is not a text: {shown}" in problems.found[0].reason


_ASKING = ["--url", "http://127.0.0.1:1/v1", "--model", "m", "--languages", "de"]


@pytest.mark.parametrize("name", ["rated.csv", "rated.json", "rated.ndjson", "rated", "a.parquet.gz", "made.parquet"])
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (anchors, ["--write", "a=whole"]),
        (cold_start, ["--questions", "nowhere.jsonl", *_ASKING]),
        (label, ["nowhere.jsonl", "--endpoint", "m@http://127.0.0.1:1/v1"]),
        (pass_rate, ["nowhere.toml"]),
        (warm_start_data, ["nowhere.jsonl", "--languages", "de", "--parallel"]),
    ],
    ids=lambda value: value.__name__.rpartition(".")[2] if hasattr(value, "__name__") else "",
)
def test_a_file_that_is_no_table_is_refused_before_anything_else(
    command: Any, words: list[str], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing that the words name is there, and the first complaint is of --out all the same."""
    (tmp_path / "made.parquet").mkdir()
    with pytest.raises(SystemExit) as error:
        command.main([*words, "--out", str(tmp_path / name)])
    why = "is a directory" if name == "made.parquet" else "does not end in .parquet or .jsonl"
    said = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert error.value.code == 2 and "'--out'" in said and why in said, said
    with pytest.raises(FatalError, match=why.replace(".", r"\.")):
        write([{"a": 1}], tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["made.parquet"]


def test_a_calibration_is_a_csv(tmp_path: Path) -> None:
    """Its JSON of the same name would take its place."""
    with pytest.raises(SystemExit, match=r"--out: .*pairs\.json does not end in \.csv"):
        calibrate.main(["--parallel", "nowhere.parquet", "--out", str(tmp_path / "pairs.json")])


@pytest.mark.parametrize("flag", ["--language", "--languages", "--translate", "--model"])
def test_a_calibration_of_parallel_texts_refuses_what_would_have_no_effect(flag: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"error: {flag}: of --references"):
        calibrate.main(["--parallel", "nowhere.parquet", "--out", str(tmp_path / "pairs.csv"), flag, "de"])


def test_with_known_types_a_mixed_column_keeps_its_texts(tmp_path: Path) -> None:
    """They are further columns, and reach rewards as these texts in any case."""
    schema = pa.schema({"known": pa.string(), "info": pa.struct({"a": pa.int64()})})
    rows: list[dict[str, Any]] = [
        {"known": "x", "note": ROOT_3, "info": {"a": 1, "b": [1]}},
        {"known": "y", "note": 42, "info": {"a": 2, "b": '"two"'}},
    ]
    write(rows, tmp_path / "a.parquet", schema)
    assert read_rows(str(tmp_path / "a.parquet")) == [
        {"known": "x", "note": ROOT_3, "info": {"a": 1, "b": "[1]"}},
        {"known": "y", "note": "42", "info": {"a": 2, "b": '"two"'}},
    ]
