"""What is said of the data before a run begins."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.config import Config, load
from scripts.data.golds import unread_golds

# The forms in which data sets write a result, and one that is none. Only the topic "sums" is verified as mathematics.
GOLDS = ["42", r"\boxed{\frac{3}{4}}", "２\\sqrt{3}", "nobody knows", "1,000", "Paris, of course", "٤٢", "$x^2+1$"]
TOPICS = ["words" if gold.startswith("Paris") else "sums" for gold in GOLDS]


def _config(tmp_path: Path, rows: Sequence[Mapping[str, object]]) -> Config:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load(["--data.train", str(path), "--reward.terms.sums.math", "1.0"])


def test_results_that_the_verifier_cannot_read_are_named_with_their_row(tmp_path: Path) -> None:
    rows = [
        {"question": f"Number {number}?", "answer": gold, "language": "en", "topic": topic}
        for number, (gold, topic) in enumerate(zip(GOLDS, TOPICS, strict=True))
    ]
    config = _config(tmp_path, [*rows, {"question": "no answer"}])
    found = unread_golds(config.data.train, config).found
    assert [(problem.row, problem.key) for problem in found] == [(3, "answer")]
    assert "'nobody knows'" in found[0].reason


def test_one_accepted_answer_that_can_be_read_is_enough(tmp_path: Path) -> None:
    shared = {"answer": "A sentence without a result.", "language": "en", "topic": "sums"}
    rows = [{"question": "a?", "accepted": ["many", "7"]}, {"question": "b?", "accepted": ["many", "few"]}]
    config = _config(tmp_path, [{**shared, **row} for row in rows])
    assert [(problem.row, problem.key) for problem in unread_golds(config.data.train, config).found] == [
        (1, "accepted")
    ]
