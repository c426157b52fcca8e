"""A run with a reward function, a judge with troubles and a step term, each in a file of the user's own."""

from __future__ import annotations

import json
import random
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from learner import recording
from tests.support.chat import serving
from tests.support.measured_run import measured_run

MINE = '''
import zlib


async def judged(group, tools):
    """A judge's grade of the answer, and whether it kept to its language."""
    parts = []
    for one in group.answers:
        grade = await tools.judge([{"role": "user", "content": one.text}], int)
        parts.append(None if grade is None else {"grade": grade, "kept": float(one.detected == one.asked)})
    return parts


def doubled(step, state):
    return 2 * step.parts["grade"] + step.number, {"steps": state.get("steps", 0) + 1}
'''
STEPS = 3


def grade(text: str) -> int:
    return zlib.crc32(text.strip().encode()) % 10 - 3


@pytest.mark.e2e
@pytest.mark.timeout(500)
def test_function_judge_and_step_term_train_and_an_outage_lowers_no_reward(
    tiny_policy: Path, tmp_path: Path, seed: int
) -> None:
    draw, lock = random.Random(seed), threading.Lock()
    calls, down_until = 0, 0.0

    def answer(request: dict[str, Any]) -> str | tuple[int, str] | tuple[int, str, dict[str, str]]:
        nonlocal calls, down_until
        with lock:
            calls, chance = calls + 1, draw.random()
            if calls == 20:
                down_until = time.monotonic() + 4  # longer than a judgement may take
        time.sleep(0.05 * chance)
        if time.monotonic() < down_until or chance < 0.1:
            return 503, "out of order"
        if chance < 0.2:
            return 429, "slowly", {"Retry-After": "0.05"}
        return str(grade(request["messages"][0]["content"]))

    (tmp_path / "mine.py").write_text(MINE)
    flags = [
        "--reward.function", f"{tmp_path}/mine.py:judged", "--reward.parts", "{grade = 0.9, kept = 0.1}",
        "--reward.missing_max", "0", "--reward.judge_timeout_s", "2", "--reward.embedder", "/no/such/encoder",
        "--learner.step_reward", f"{tmp_path}/mine.py:doubled", "--learner.steps", str(STEPS),
        "--learner.groups_per_step", "3", "--sampling.max_new_tokens", "8", "--learner.lr", "1e-3",
        "--learner.record", str(tmp_path / "record"),
    ]  # fmt: skip
    with serving(answer) as url:
        run = measured_run(
            tmp_path / "run", tiny_policy, {"a-0": (0.0, 0.0)}, *flags, "--reward.judges", f'["m@{url}"]'
        )
    steps = list(recording.read(tmp_path / "record")[1])
    assert len(steps) == STEPS and calls > 20
    for number, step in enumerate(steps):
        for group in step.groups:
            for one in group.rollouts:
                assert one.score.scored and one.score.terms["grade"] == grade(one.text)
                assert one.score.reward == 2 * grade(one.text) + number
                assert one.score.quality == pytest.approx(0.9 * grade(one.text) + 0.1 * one.score.terms["kept"])
    log = (run.parent / "reward.log").read_text()
    assert "a judgement is missing" in log and "Traceback" not in log
    assert "failed" not in {
        line["outcome"] for line in map(json.loads, (run / "ledger.jsonl").read_text().splitlines())
    }
