"""Cold start: which traces are kept, and which language is asked for next."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common import endpoint
from common.config import ModelConfig
from scripts.bench.support.scoring import SENTENCES
from scripts.data.cold_start import Acceptance, main
from scripts.world.templates import OPENINGS
from tests.support.chat import serving
from tests.support.rows import read_rows


@pytest.fixture
def teacher() -> Iterator[tuple[str, list[dict[str, object]]]]:
    """A server that knows Tokyo; German it writes as English, and it is wrong in Korean every second time."""
    asked: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            opening = body["messages"][-1]["content"].removeprefix("<think>")
            language = next(code for code, words in OPENINGS.items() if words == opening)
            wrong = language == "ko" and len(asked) % 2 == 0
            thought = SENTENCES["en"] * 4 if language == "de" else SENTENCES[language]
            content = f"{thought}</think>{'Osaka' if wrong else 'Tokyo'}"
            reply = json.dumps({
                "id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [{
                    "index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}],
            }).encode()  # fmt: skip
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()
    server.server_close()


def questions(path: Path, count: int) -> Path:
    row = {"reward_model": {"ground_truth": SENTENCES["en"], "accepted": ["Tokyo", "東京"]}}
    prompts = [[{"role": "user", "content": f"({n}) What is the capital of Japan?"}] for n in range(count)]
    pq.write_table(pa.Table.from_pylist([{"prompt": prompt, **row} for prompt in prompts]), path)
    return path


def test_traces_are_kept_when_they_verify_in_their_language(
    teacher: tuple[str, list[dict[str, object]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoint, "_LONGEST_PAUSE_S", 0.001)
    url, asked = teacher
    asking = ["--questions", str(questions(tmp_path / "q.parquet", 12)), "--url", url, "--model", "m"]
    wanted = ["--languages", "de,en,ko", "--each", "3", "--term", "exact", "--out", str(tmp_path / "t.parquet")]
    main([*asking, *wanted])
    rows = pq.read_table(tmp_path / "t.parquet").to_pylist()
    kept = Counter(row["language"] for row in rows)
    assert kept["de"] == 0 and kept["en"] >= 3 and kept["ko"] >= 3
    for row in rows:
        header = ModelConfig().header.format(code=row["language"])
        thought = f"<think>{OPENINGS[row['language']]}{SENTENCES[row['language']]}</think>Tokyo"
        assert row["answer"] == header + thought
    pairs = [(row["language"], row["messages"][0]["content"]) for row in rows]
    assert len(set(pairs)) == len(pairs), "no question twice in a language"
    assert all(body["continue_final_message"] for body in asked) and "de: kept 0 of" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="unknown language 'xx'"):
        main([*asking, "--languages", "xx", "--out", str(tmp_path / "x.parquet")])
    with pytest.raises(SystemExit, match="gives no answer"):
        main([*asking[:2], "--url", "http://127.0.0.1:9/v1", "--model", "other", *wanted])


def answers_in_its_language(request: dict[str, Any]) -> str:
    """Every third answer by the number of the question is wrong."""
    asked, opening = request["messages"][-2]["content"], request["messages"][-1]["content"].removeprefix("<think>")
    language = next((code for code, words in OPENINGS.items() if words == opening), "ru")
    return f"{SENTENCES[language]}</think>{'Osaka' if int(asked[1:].split(')')[0]) % 3 == 0 else 'Tokyo'}"


def command(tmp_path: Path, url: str, languages: str, *flags: str) -> list[dict[str, Any]]:
    out = tmp_path / "traces.jsonl"
    main([
        "--questions", str(tmp_path / "q.parquet"), "--url", url, "--model", "m", "--languages", languages, "--term",
        "exact", "--out", str(out), *flags,
    ])  # fmt: skip
    return read_rows(str(out))


def test_a_question_that_the_teacher_refuses_is_listed_and_the_others_are_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(request: dict[str, Any]) -> str | tuple[int, str]:
        too_long = request["messages"][-2]["content"].startswith("(7)")
        return (400, "the prompt is too long") if too_long else answers_in_its_language(request)

    questions(tmp_path / "q.parquet", 12)
    with serving(answer) as url:
        rows = command(tmp_path, url, "English, German,en, zh-Hant", "--each", "7")
    assert Counter(row["language"] for row in rows) == {"en": 7, "de": 7, "zh": 7}
    assert not any(row["messages"][0]["content"].startswith("(7)") for row in rows)
    (listed,) = read_rows(str(tmp_path / "traces.problems.jsonl"))
    assert (listed["row"], listed["kind"]) == (7, "refused") and "the prompt is too long" in listed["reason"]
    assert "zh: kept" in capsys.readouterr().out
    with serving(lambda _: (400, "no continue_final_message")) as url, pytest.raises(SystemExit) as refused:
        command(tmp_path, url, "en", "--seed", "1")
    assert "m refuses all of the first" in str(refused.value) and "no continue_final_message" in str(refused.value)


def test_an_interrupted_command_asks_only_for_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a question is asked again because its first answer was wrong, and sampling makes the second right."""
    asked = Counter[str]()

    def answer(request: dict[str, Any]) -> str:
        talk = json.dumps(request["messages"])
        asked[talk] += 1
        return answers_in_its_language(request).replace("Osaka", "Osaka" if asked[talk] == 1 else "Tokyo")

    def interrupted(*_: object) -> list[str]:
        if asked:
            raise KeyboardInterrupt
        return following(*_)

    following: Callable[..., list[str]] = Acceptance.next
    questions(tmp_path / "q.parquet", 12)
    wanted = ["en,de", "--each", "12"]
    with serving(answer) as url:
        whole = command(tmp_path, url, *wanted)
        needed = asked.copy()
        assert len(whole) == 24 and needed.total() == 24 + 8
        (tmp_path / "traces.answers.sqlite").unlink()
        asked.clear()
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(Acceptance, "next", interrupted)
            command(tmp_path, url, *wanted)
        assert 0 < asked.total() < needed.total()
        assert command(tmp_path, url, *wanted) == whole
        assert asked == needed, "what was answered is not asked again"
        assert command(tmp_path, url, *wanted) == whole and asked == needed
        command(tmp_path, url, *wanted, "--seed", "1")
        assert asked.total() > needed.total(), "another seed wants other answers"
    with serving(lambda _: (401, "the key has expired")) as url, pytest.raises(SystemExit, match="the key has expired"):
        command(tmp_path, url, *wanted, "--seed", "2")


def test_openings_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = set()

    def answer(request: dict[str, Any]) -> str:
        begun.add(request["messages"][-1]["content"])
        return answers_in_its_language(request)

    questions(tmp_path / "q.parquet", 3)
    (tmp_path / "openings.toml").write_text('ckb = "باشە. "\nGerman = "Nun. "\n')
    own = ["--openings", str(tmp_path / "openings.toml"), "--each", "1"]
    with serving(answer) as url, pytest.raises(SystemExit, match="no trace was right and in its language"):
        command(tmp_path, url, "ckb,de,eo", *own)
    assert begun == {"<think>باشە. ", "<think>Nun. ", "<think>"}
    assert "a thought begins with nothing in eo: --openings" in capsys.readouterr().out
    for text, why in (
        ("x = 1", "x is no text"),
        ('xx = "a"', "unknown language 'xx'"),
        ("=", "cannot read --openings"),
    ):
        (tmp_path / "openings.toml").write_text(text)
        with pytest.raises(SystemExit, match=why):
            command(tmp_path, "http://127.0.0.1:9/v1", "ckb", *own)


def test_questions_may_have_columns_of_their_own(tmp_path: Path) -> None:
    row = {"ask": "(1) What is the capital of Japan?", "right": "Tokyo"}
    pq.write_table(pa.Table.from_pylist([row, {**row, "ask": "(2)?", "right": ""}]), tmp_path / "q.parquet")
    with serving(answers_in_its_language) as url:
        rows = command(tmp_path, url, "en", "--each", "1", "--columns", "question=ask,answer=right")
        assert rows[0]["messages"] == [{"role": "user", "content": row["ask"]}]
        (broken,) = read_rows(str(tmp_path / "traces.problems.jsonl"))
        assert (broken["row"], broken["key"], broken["kind"]) == (1, "right", "broken")
        with pytest.raises(SystemExit, match=r"name yours .* with --columns question=NAME"):
            command(tmp_path, url, "en", "--each", "1")


def test_tries_make_up_for_rare_acceptance(seed: int) -> None:
    draw, rates = random.Random(seed), {"en": 0.9, "th": 0.1, "zh": 0.5}
    acceptance = Acceptance(100)
    while asked := acceptance.next(draw, list(rates), 8):
        for language in asked:
            acceptance.tried[language] += 1
            acceptance.kept[language] += draw.random() < rates[language]
    assert all(100 <= acceptance.kept[language] < 108 for language in rates)
    hopeless = Acceptance(5)
    while asked := hopeless.next(draw, ["en"], 8):
        hopeless.tried.update(asked)
    assert 100 <= hopeless.tried["en"] < 108
