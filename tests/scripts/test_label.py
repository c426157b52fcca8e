"""The endpoint's client, and the labels it and the classifier give."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from common.endpoint import Failure
from common.process import FatalError
from learner.data.problems import Place
from learner.data.rows import QuestionRow, Rules, parse_row
from reward.embedder import Embedder
from scripts.data.endpoint import Endpoint, in_languages
from scripts.data.label import TOPICS, Classifier, label_of, main, read_label
from tests.support.chat import serving


def conversation(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def number(_: int, answer: str) -> int:
    if not answer.isdigit():
        raise ValueError("no number")
    return int(answer)


def test_answers_come_in_order_many_at_a_time_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    calls, keys, busy, most, lock = Counter[str](), set(), 0, 0, threading.Lock()
    crowded = threading.Event()

    def answer(request: dict[str, Any]) -> str | tuple[int, str]:
        nonlocal busy, most
        text = request["messages"][0]["content"]
        with lock:
            busy, most = busy + 1, max(most, busy + 1)
            calls[text] += 1
            keys.add(request["key"])
        if busy == 4:
            crowded.set()
        crowded.wait(30)
        time.sleep(0.02)  # for one too many to show
        with lock:
            busy -= 1
        if text == "7" and calls[text] == 1:
            return 503, "busy"
        return "no idea" if text == "8" or (text == "9" and len(request["messages"]) == 1) else text

    conversations = [conversation(str(n)) for n in range(10)]
    with serving(answer) as url:
        first = Endpoint[int](f"m@{url}", tmp_path / "a.sqlite", calls=4).ask(conversations, number)
        assert first[:8] == list(range(8)) and first[9] == 9
        assert isinstance(first[8], Failure) and "no idea" in first[8].reason
        assert calls["7"] == 2 and calls["9"] == 2 and calls["8"] == 3 and most == 4
        before = calls.copy()
        again = Endpoint[int](f"m@{url}", tmp_path / "a.sqlite").ask(conversations, number)
        assert again[:8] == first[:8]
        assert {text for text in calls if calls[text] > before[text]} == {"8"}, "only what failed is asked again"
        Endpoint[int](f"other@{url}", tmp_path / "a.sqlite").ask(conversations[:1], number)
        assert calls["0"] == 2, "another model's answers are its own"
    assert keys == {"Bearer secret-key"}
    assert all(b"secret-key" not in file.read_bytes() for file in tmp_path.iterdir())
    with pytest.raises(FatalError, match=r"127\.0\.0\.1.*gives no answer: .*"):
        Endpoint[int](f"m@{url}", timeout_s=1).ask(conversations[:1], number)
    with pytest.raises(FatalError, match="names no endpoint"):
        Endpoint[int]("http://127.0.0.1")


def test_a_refusal_is_of_one_question_a_wrong_key_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")

    def answer(request: dict[str, Any]) -> str | tuple[int, str]:
        status = {"long": 400, "key": 401}.get(request["messages"][0]["content"], 200)
        return "fine" if status == 200 else (status, "not like this")

    with serving(answer) as url:
        said = Endpoint[str](f"m@{url}").ask([conversation("a"), conversation("long")], lambda _, answer: answer)
        assert said[0] == "fine" and isinstance(said[1], Failure) and "status 400" in said[1].reason
        with pytest.raises(FatalError, match="status 401") as error:
            Endpoint[str](f"m@{url}").ask([conversation("key")], lambda _, answer: answer)
        assert "secret-key" not in str(error.value)


def test_a_translation_is_in_its_language_where_the_gate_says_so() -> None:
    malay = "Semua manusia dilahirkan bebas dan samarata dari segi kemuliaan dan hak-hak."
    half = "Alle Menschen sind frei und gleich an Würde geboren. All human beings are born free and equal in dignity."
    read = in_languages(["ms", "de", "de"])
    assert read(0, malay) == malay and read(1, "42") == "42"
    with pytest.raises(ValueError, match="it is not in German"):
        read(2, half)


def parsed(row: dict[str, Any]) -> QuestionRow:
    return parse_row(row, Place("file", 0), Rules())


def test_labels_leave_the_other_columns_and_the_broken_rows_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {"answer": "a", "language": "de", "level": 3, "region": "Germany"}
    rows = [{**base, "question": "Wo?"}, {**base, "question": ""}, {**base, "question": "Wer?", "language": None}]
    source = tmp_path / "r.json"
    source.write_text(json.dumps(rows))
    out = tmp_path / "out.parquet"
    with serving(lambda _: '{"topic": "Translation", "regions": []}') as url:
        main([str(source), "--out", str(out), "--endpoint", f"m@{url}"])
    found = pq.read_table(out).to_pylist()
    assert [(row["question"], row["level"], row["ability"]) for row in found] == [("Wo?", 3, "Translation")]
    problems = [json.loads(line) for line in out.with_suffix(".problems.jsonl").read_text().splitlines()]
    assert [(one["row"], one["key"]) for one in problems] == [(1, "question"), (2, "language")]
    with pytest.raises(SystemExit, match=r"no row of .* has a topic to learn from"):
        main([str(source), "--out", str(out), "--classifier", str(source)])
    with pytest.raises(SystemExit, match=r"--classifier auto learns from the rows .*: give --endpoint too"):
        main([str(source), "--out", str(out), "--classifier", "auto"])
    with serving(lambda _: "?") as url, pytest.raises(SystemExit, match=r"silent@http\S+ has labelled no row"):
        main([str(source), "--out", str(out), "--endpoint", f"silent@{url}", "--classifier", "auto"])
    source.write_text("[]")
    with pytest.raises(SystemExit, match="has no good row"):
        main([str(source), "--out", str(out), "--classifier", str(source)])


@pytest.mark.parametrize("answer", [
    "Japan", '{"topic": "Food", "regions": []}', '{"topic": "Translation"}',
    '{"topic": "Translation", "regions": "Asia"}',
    '{"topic": ["Translation", "General Knowledge"], "regions": []}', '{"topic": "Translation", "regions": ["Mars"]}',
])  # fmt: skip
def test_a_label_is_one_topic_and_known_regions(answer: str) -> None:
    with pytest.raises(ValueError):
        read_label(0, answer)
    right = '```json\n{"topic": "Translation", "regions": ["Asia", "Japan", "Asia"]}\n```'
    assert read_label(0, right) == ("Translation", ["Asia", "Japan"])


def test_an_endpoint_and_then_the_classifier_label_the_world(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = pq.read_table(built / "train.parquet").to_pylist()
    by_question = {row["question"]: label_of(parsed(row)) for row in truth}

    def answer(request: dict[str, Any]) -> str:
        question = request["messages"][1]["content"].removeprefix("user: ")
        topic, regions = by_question[question] or ("", [])
        return json.dumps({"topic": topic, "regions": regions}) if len(question) % 2 else "I would rather not."

    out = tmp_path / "labelled.parquet"
    with serving(answer) as url:
        main([str(built / "train.parquet"), "--out", str(out), "--endpoint", f"m@{url}", "--classifier", "auto"])
    found = pq.read_table(out).to_pylist()
    problems = [json.loads(line) for line in out.with_suffix(".problems.jsonl").read_text().splitlines()]
    failed = {n for n, row in enumerate(truth) if len(row["question"]) % 2 == 0}
    assert {problem["row"] for problem in problems} == failed
    assert all("rather not" in problem["reason"] for problem in problems)
    right = [label_of(parsed(one)) == label_of(parsed(other)) for one, other in zip(found, truth, strict=True)]
    assert all(ok for n, ok in enumerate(right) if n not in failed)
    assert sum(right[n] for n in failed) > 0.5 * len(failed), "the classifier labels most of the rest as the world does"
    assert "cross-validation" in capsys.readouterr().out


def test_a_classifier_of_too_few_rows_is_refused() -> None:
    row = QuestionRow([{"role": "user", "content": "Wer?"}], "Ich.", "de", [], [], "s", Place("f", 0))
    with pytest.raises(FatalError, match="two topics"):
        Classifier([row] * 20, [("Translation", [])] * 20, Embedder("use"))
    assert len(TOPICS) == 6
