"""A run that ends early keeps every step that it has trained, and makes up for what its end kept from being done."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from common.config import LearnerConfig
from tests.support.measured_run import measured_run

REWARD = '''
def vowels(group, tools):
    """The share of vowels, so that the answers of a random policy differ in worth."""
    texts = [answer.final for answer in group.answers]
    return [{"vowels": sum(map(text.count, "aeiou")) / (len(text) + 1)} for text in texts]
'''

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def flags_of(directory: Path) -> list[str]:
    (directory / "mine.py").write_text(REWARD)
    return [
        "--reward.function", f"{directory}/mine.py:vowels", "--reward.parts", "{vowels = 1.0}",
        "--reward.gated", "false", "--reward.embedder", "/none", "--reward.diagnostics", "off",
        "--learner.groups_per_step", "4", "--sampling.max_new_tokens", "24", "--actor.groups_in_flight", "4",
        "--learner.record", str(directory / "record"), "--learner.restarts", "0",
    ]  # fmt: skip


def trained_steps(directory: Path) -> list[int]:
    return sorted(int(path.stem[-6:]) for path in (directory / "record").glob("step-*.msgpack"))


def write_heldout(path: Path, reference: str) -> None:
    row = {"question": "Wie heißt die Hauptstadt?", "answer": reference, "language": "de"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n")


def test_a_run_whose_actors_are_gone_keeps_the_steps_that_it_has_trained(tiny_policy: Path, tmp_path: Path) -> None:
    flags = [
        *flags_of(tmp_path), "--learner.steps", "6", "--learner.group_timeout_s", "15",
        "--actor.request_timeout_s", "10", "--actor.start_timeout_s", "15",
    ]  # fmt: skip
    until = tmp_path / "record" / "step-000003.msgpack"
    run = measured_run(tmp_path, tiny_policy, {"a-0": (0.004, 0.002)}, *flags, until=until, lost=True)
    trained = trained_steps(tmp_path)
    [kept] = (run / "checkpoints").iterdir()
    assert int(kept.name[-6:]) == trained[-1] >= 3, "learner.checkpoint_every would save after 1000 steps"
    log = (tmp_path / "learner.log").read_text()
    assert f"the run ends after step {trained[-1]}: no " in log
    measured_run(tmp_path, tiny_policy, {"a-0": (0.0, 0.0)}, *flags_of(tmp_path), "--learner.steps", "6")
    assert f"resuming after step {trained[-1]} of 6" in (tmp_path / "learner.log").read_text()
    assert json.loads((run / "summary.json").read_text())["steps"] == 6


def test_a_reward_that_fails_on_every_question_ends_the_run_at_once_and_costs_no_question(
    tiny_policy: Path, tmp_path: Path
) -> None:
    flags = [*flags_of(tmp_path), "--learner.steps", "2", "--learner.groups_per_step", "16"]
    flags += ["--actor.groups_in_flight", "16"]
    (tmp_path / "mine.py").write_text(REWARD.replace("answer.final", "answer.last"))
    began = time.monotonic()
    run = measured_run(tmp_path, tiny_policy, {"a-0": (0.0, 0.0)}, *flags, ends=1)
    assert time.monotonic() - began < LearnerConfig().group_timeout_s / 4
    said = (tmp_path / "learner.log").read_text()
    assert "error: no answer can be scored: 16 groups came back unscored" in said
    assert re.search(r"mine\.py:4 in \S+: AttributeError: 'GroupAnswer' object has no attribute 'last'", said)
    (tmp_path / "mine.py").write_text(REWARD)
    flags += ["--learner.checkpoint_every", "1", "--learner.checkpoints_kept", "1"]
    measured_run(tmp_path, tiny_policy, {"a-0": (0.0, 0.0)}, *flags)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000002"], "by default there are two"
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert sorted(line["sequence"] for line in lines) == [*range(32)], "each is asked, and none was given up"


def test_a_run_that_trains_nothing_exports_nothing_and_goes_on_when_it_is_mended(
    tiny_policy: Path, tmp_path: Path
) -> None:
    flags = [*flags_of(tmp_path), "--learner.steps", "3", "--learner.checkpoint_every", "1"]
    for _ in range(2):
        infinite = ["--learner.entropy_bonus", "1e39"]  # in float32, and so are the losses
        run = measured_run(tmp_path, tiny_policy, {"a-0": (0.0, 0.0)}, *flags, *infinite, ends=1)
        said = (tmp_path / "learner.log").read_text()
        assert "error: nothing was trained in 3 steps in a row" in said
        assert not (run / "model").exists() and not (run / "summary.json").exists()
    assert "resuming after step 3 of 3" in said
    accepted = ["--learner.steps", "5", "--resume.accept", "learner.entropy_bonus"]  # as the message says
    measured_run(tmp_path, tiny_policy, {"a-0": (0.0, 0.0)}, *flags, *accepted)
    assert "resuming after step 3 of 5" in (tmp_path / "learner.log").read_text()
    assert (run / "model").exists() and json.loads((run / "summary.json").read_text())["steps"] == 5


def test_an_evaluation_that_was_interrupted_is_made_by_the_resume(tiny_policy: Path, tmp_path: Path) -> None:
    heldout = tmp_path / "heldout.jsonl"
    write_heldout(heldout, "Berlin.")
    flags = [
        *flags_of(tmp_path), "--learner.steps", "3", "--learner.evaluate", "true", "--learner.evaluate_every", "2",
        "--learner.evaluate_questions", "8", "--data.heldout", str(heldout),
    ]  # fmt: skip
    evaluations = tmp_path / "run" / "evaluations"
    until = tmp_path / "record" / "step-000002.msgpack"  # after which the run evaluates
    run = measured_run(tmp_path, tiny_policy, {"a-0": (0.02, 0.0)}, *flags, until=until)
    assert not (evaluations / "step-2-heldout.jsonl").exists() and trained_steps(tmp_path) == [1, 2]
    (run / "skipped").mkdir()
    for number in (2, 3):  # as if these had been skipped
        (run / "skipped" / f"step-00000{number}.msgpack").touch()
    write_heldout(heldout, "Paris.")  # edited in place
    measured_run(tmp_path, tiny_policy, {"a-0": (0.0, 0.0)}, *flags)
    log = (tmp_path / "learner.log").read_text()
    assert "making the evaluation after step 2, which has not been made" in log
    assert (evaluations / "step-2-heldout.jsonl").exists()
    assert "the heldout questions that are evaluated are not those that were before the first step" in log
    summary = json.loads((run / "summary.json").read_text())
    assert summary["heldout_before"] is None and summary["evaluation_before"].keys() == {"train"}
    assert None not in (summary["reward_before"], summary["reward_after"], summary["heldout_after"])
    assert [path.name for path in (run / "skipped").iterdir()] == ["step-000002.msgpack"]
