"""Cold start: which traces are kept, and which language is asked for next."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common import endpoint
from common.config import ModelConfig
from scripts.bench.support.scoring import SENTENCES
from scripts.data.cold_start import Acceptance, main
from scripts.world.templates import OPENINGS


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
    with pytest.raises(SystemExit):
        main([*asking, "--languages", "xx", "--out", "x"])
    with pytest.raises(SystemExit, match="gives no answer"):
        main([*asking[:2], "--url", "http://127.0.0.1:9/v1", "--model", "m", *wanted])


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
