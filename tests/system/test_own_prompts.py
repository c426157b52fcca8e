"""Whole runs whose prompts are the user's own, and one whose judge refuses all that it is asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.tokenizer import load_tokenizer
from learner import recording
from tests.support import processes
from tests.support.chat import serving
from tests.system.test_recipes import ROOT, TINY

_REWARD = """
def score(group, tools):
    return [{"acc": float(number % 2)} for number, _ in enumerate(group.answers)]
"""
_FUNCTION = {"reward.parts": "{acc = 1.0}"}
_SYSTEM = "Nur die Zahl."


def _train(tmp_path: Path, policy: Path, **flags: Any) -> subprocess.CompletedProcess[bytes]:
    """``lrpo train`` on two languages' rows with a system turn of their own."""
    turns = [[{"role": "system", "content": _SYSTEM}, {"role": "user", "content": f"{n} + {n} ?"}] for n in range(40)]
    rows = [{"question": one, "answer": str(2 * n), "language": ("de", "fr")[n % 2]} for n, one in enumerate(turns)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.py").write_text(_REWARD)
    settings = TINY | {
        "run.dir": tmp_path / "run", "run.languages": '["de", "en"]', "model.path": policy, "data.train": "train.jsonl",
        "learner.address": f"ipc://{tmp_path}/queue", "reward.addresses": f'["ipc://{tmp_path}/reward"]', **flags,
    }  # fmt: skip
    command = [sys.executable, "-m", "scripts.ops.train"]
    command += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    light = ROOT / "tests" / "support" / "light"
    environment = {**os.environ, "PYTHONPATH": f"{light}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    return processes.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=800)


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    return f"{done.stdout.decode()[-4000:]}{done.stderr.decode()[-4000:]}"


@pytest.mark.e2e
def test_a_run_with_prompts_as_they_are(tiny_policy: Path, tmp_path: Path) -> None:
    """Answers and evaluations are in the questions' own languages, and the policy reads nothing but the row."""
    flags = {
        **_FUNCTION, "reward.function": "mine.py:score", "router.mode": "monolingual", "model.prompt_style": "plain",
        "learner.evaluate": "true", "learner.record": tmp_path / "record",
    }  # fmt: skip
    done = _train(tmp_path, tiny_policy, **flags)
    assert done.returncode == 0, _said(done)
    tokenizer = load_tokenizer(str(tiny_policy))
    groups = [group for step in recording.read(tmp_path / "record")[1] for group in step.groups]
    assert len(groups) >= 12
    for group in groups:
        question = group.work.question
        assert group.work.languages == [question.language] * 4
        for one in group.rollouts:
            assert tokenizer.decode(one.prompt_ids) == (
                f"<|im_start|>system\n{_SYSTEM}<|im_end|>\n<|im_start|>user\n{question.messages[-1].content}<|im_end|>\n"
                "<|im_start|>assistant\n"
            )
    lines = (tmp_path / "run" / "evaluations").glob("*.jsonl")
    evaluated = [json.loads(line) for path in lines for line in path.read_text().splitlines()]
    assert evaluated and {len(one["rewards"]) for one in evaluated} == {1}, evaluated[:1]
    again = _train(tmp_path, tiny_policy, **{**flags, "model.prompt_style": "system"})
    assert again.returncode and 'model.prompt_style: "plain" -> "system"' in _said(again)


@pytest.mark.e2e
@pytest.mark.slow
def test_a_judge_that_refuses_every_answer_ends_the_run(tiny_policy: Path, tmp_path: Path) -> None:
    """One that took what ``lrpo check-data`` asked it."""

    first = set[str]()

    def judge(request: dict[str, Any]) -> str | tuple[int, str]:
        if len(first) < 3:
            first.add(request["messages"][-1]["content"])
            return "8"
        return 400, "no"

    with serving(judge) as url:
        flags = {"reward.judges": f'["m@{url}"]', "reward.terms.default": "{judge = 1.0}", "learner.steps": 9}
        done = _train(tmp_path, tiny_policy, **flags, **{"router.mode": "monolingual", "model.prompt_style": "plain"})
    said = _said(done)
    assert done.returncode and re.search(r"no answer can be scored: \d+ groups came back unscored", said), said
    assert "a judge refuses each" in said
