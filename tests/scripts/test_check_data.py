"""What is said of the data before a run begins."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Timer

import pytest

from common.config import Config, load
from scripts.data.golds import unread_golds

ROOT = Path(__file__).parents[2]
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


@pytest.mark.e2e
def test_a_learner_that_is_started_alone_names_them_too(tiny_policy: Path, tmp_path: Path) -> None:
    """As pools, Slurm and Kubernetes start it. The learner goes on to wait for actors, and is ended then."""
    config = _config(tmp_path, [{"question": f"{gold}?", "answer": gold, "language": "en"} for gold in ("1", "few")])
    flags = {
        "data.train": config.data.train, "reward.terms.default.math": "1.0", "model.path": tiny_policy,
        "model.dtype": "float32", "run.languages": '["en"]', "run.dir": tmp_path / "run", "router.own_language": 0,
        "learner.address": f"ipc://{tmp_path}/q", "learner.steps": 1, "learner.groups_per_step": 1,
    }  # fmt: skip
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    learner = subprocess.Popen(
        [str(ROOT / "scripts" / "launch_learner.sh"), *words], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    patience = Timer(240, learner.kill)
    patience.start()
    try:
        assert learner.stderr is not None
        told = []
        for line in learner.stderr:
            told.append(line)
            if "unread:" in line:
                break
    finally:
        patience.cancel()
        learner.terminate()
        rest = learner.communicate()[1]
    assert "WARNING" in told[-1] and f"{config.data.train}, row 1, answer" in told[-1], "".join(told) + rest
