"""Which prompts are taught in a warm start, which answers they get, and what is said of those that are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.bench.support.scoring import SENTENCES
from scripts.data.warm_start_data import main
from tests.support.chat import serving
from tests.support.rows import read_rows


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prompts(count: int) -> list[dict[str, Any]]:
    return [{"ask": f"({n}) What is the capital of Japan?"} for n in range(count)]


def answer(request: dict[str, Any]) -> str:
    """German where it is asked for, and English in all other languages."""
    return SENTENCES["de" if "Deutsch" in json.dumps(request["messages"], ensure_ascii=False) else "en"]


def made(tmp_path: Path, *words: str) -> list[dict[str, Any]]:
    main([*words, "--out", str(tmp_path / "made.parquet")])
    return read_rows(str(tmp_path / "made.parquet"))


def problems(tmp_path: Path) -> list[tuple[int, str, str]]:
    return [(one["row"], one["key"], one["kind"]) for one in read_rows(str(tmp_path / "made.problems.jsonl"))]


def test_prompts_of_the_training_data_are_left_out_whatever_its_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = jsonl(tmp_path / "prompts.jsonl", *prompts(4))
    train = jsonl(
        tmp_path / "train.jsonl",
        {"query": "(1) What  is the capital of Japan?", "gold": "Tokyo"},
        {"query": "(2) What is the capital of Japan?", "gold": ""},  # without an answer it is a question all the same
        {"query": "(2) What is the capital of Japan?", "id": 1, "lang": "xx"},
    )
    with serving(answer) as url:
        words = [source, "--teacher", f"m@{url}", "--languages", "de,German, en", "--columns", "question=ask",
                 "--language", "en"]  # fmt: skip
        assert len(made(tmp_path, *words)) == 8
        with pytest.raises(SystemExit) as refused:
            made(tmp_path, *words, "--without", train)
        assert "the questions of 3 rows cannot be read" in str(refused.value)
        assert "--without-columns question=NAME" in str(refused.value) and "train.jsonl, row 0" in str(refused.value)
        rows = [{**row, "lang": "en"} for row in read_rows(train)]
        jsonl(tmp_path / "train.jsonl", *rows)
        capsys.readouterr()
        found = made(tmp_path, *words, "--without", train, "--without-columns", "question=query")
        assert sorted({row["messages"][0]["content"][:3] for row in found}) == ["(0)", "(3)"] and len(found) == 4
        assert "4 prompts; 2 are in --without and left out" in capsys.readouterr().out
        with pytest.raises(SystemExit, match="no row has a column 'queri'"):
            made(tmp_path, *words, "--without", train, "--without-columns", "question=queri")
        jsonl(tmp_path / "train.jsonl")
        with pytest.raises(SystemExit, match="holds no questions"):
            made(tmp_path, *words, "--without", train)


def test_what_cannot_be_taught_is_listed_with_its_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = prompts(3)
    source = jsonl(tmp_path / "prompts.jsonl", {"ask": None}, *rows, rows[0])
    with serving(answer) as url:
        words = [
            source,
            "--teacher",
            f"m@{url}",
            "--languages",
            "de,fr",
            "--columns",
            "question=ask",
            "--language",
            "en",
        ]
        found = made(tmp_path, *words)
    assert [row["language"] for row in found] == ["de"] * 3
    assert problems(tmp_path) == [
        (0, "ask", "broken"),
        (4, "question", "repeated"),
        *((n, "", "not answered") for n in (1, 2, 3)),
    ]
    said = capsys.readouterr().out
    assert "not answered: " in said and "prompts.jsonl, row 1: no answer in French: it is not in French" in said


def test_parallel_rows_of_all_sources_are_paired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rows(language: str, *ids: int) -> list[dict[str, Any]]:
        return [{"id": n, "lang": language, "ask": f"{n} {language}?", "answer": f"{n} {language}"} for n in ids]

    first = jsonl(tmp_path / "en.jsonl", *rows("en", 1, 2, 3), {**rows("en", 4)[0], "id": None})
    second = jsonl(tmp_path / "de.jsonl", *rows("de", 1, 2, 3), {**rows("de", 1)[0], "answer": "other"})
    words = [first, second, "--parallel", "--languages", "en,de", "--columns", "question=ask"]
    found = made(tmp_path, *words)
    assert {(row["messages"][0]["content"], row["answer"]) for row in found} == {
        (f"{n} {asked}?", f"{n} {language}") for n in (1, 2, 3) for asked in ("en", "de") for language in ("en", "de")
    }
    assert problems(tmp_path) == [(3, "id", "broken"), (3, "id", "broken")]
    assert "en.jsonl, row 0 has the same id" not in capsys.readouterr().out, "that is another language"
    few = [*words[:3], "--languages", "de,fr", "--columns", "question=ask", "--prompts", "3"]  # one answer each: no fr
    assert [row["messages"][0]["content"] for row in made(tmp_path, *few)] == ["1 en?", "1 de?", "2 en?"]
    train = jsonl(tmp_path / "train.jsonl", {"question": "2 de?", "answer": "x", "language": "de"})
    found = made(tmp_path, *words, "--without", train)
    assert {row["messages"][0]["content"][0] for row in found} == {"1", "3"}, "nor in translation"
