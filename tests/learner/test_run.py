"""The order of the loop, with every part but the run's state a stand-in."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from common.config import Config, load
from common.process import FatalError
from common.stopwatch import Stopwatch
from learner.groups import Group, StepResult
from learner.loop.interrupts import Interrupted, NobodyCame
from learner.loop.settling import Settling
from learner.loop.skips import SkippedSteps
from learner.run import Run
from learner.state import LEDGER_FILE, RunState, Snapshot
from learner.train.step_reward import StepReward
from router import Router
from tests.support.train_once import random_batch

LANGUAGES = ["de", "en", "zh"]
FINE = StepResult(means={"loss": 0.0}, by_language={}, fill=1.0, grad_norm=1.0, lr=1e-3)


def configuration(run_dir: Path, steps: int, *further: str) -> Config:
    flags = ["--learner.steps", str(steps), "--learner.evaluate_every", "2", *further]
    return load(["--run.dir", str(run_dir), "--run.languages", json.dumps(LANGUAGES), *flags])


def make_run(
    config: Config, result: StepResult = FINE, step: int = 0, snapshot: Snapshot | None = None
) -> tuple[Run, Mock]:
    """A run and the stand-in that remembers what its parts were asked, in order; after a step, or a snapshot."""
    router = Router(config.router, LANGUAGES, 0, config.learner.steps)
    parts_of_state: dict[str, Any] = {"config": config, "router": router, "lock": threading.Condition()}
    if snapshot is None:
        state = RunState.begin(questions_digest="", **parts_of_state)
        state.step = step
    else:
        state = RunState.restore(snapshot, [], questions_digest="", **parts_of_state)
    parts = Mock()
    parts.ranks.run.return_value = result
    parts.batches.next_batch.side_effect = lambda: random_batch(state.step)
    parts.evaluator.is_due.side_effect = lambda step: step == 2
    parts.evaluator.evaluate.side_effect = lambda when: {"train": {"own": 0.5}}
    parts.evaluator.comparable_before.return_value = {"train": {"own": 0.25}}
    parts.evaluator.publish_and_evaluate.return_value = 1.5
    others: dict[str, Any] = {
        name: getattr(parts, name)
        for name in (
            "ranks", "training_work", "batches", "publishing", "evaluator", "reporting", "saving",
        )
    }  # fmt: skip
    skipped = SkippedSteps(state, config.learner.steps, config.run.dir / "skipped")
    others |= {"settling": Settling(config, state, parts.recorder), "skipped_steps": skipped}
    return Run(config.learner, state=state, stopwatch=Stopwatch(), **others), parts


def asked(parts: Mock) -> list[str]:
    """What the parts were asked; of the ranks, which action."""
    names = []
    for name, arguments, _ in parts.method_calls:
        names.append(f"ranks.{arguments[0]}" if name == "ranks.run" else name)
    return [name for name in names if name not in ("evaluator.is_due", "evaluator.comparable_before")]


STEP = ["batches.next_batch", "ranks.train", "recorder.record", "reporting.step"]
BEGIN = ["publishing.publish", "evaluator.evaluate_before", "training_work.serve", "reporting.begin"]
GO_ON = ["publishing.publish", "evaluator.resume", "training_work.serve", "reporting.begin"]
END = [
    "saving.save", "reporting.end", "evaluator.evaluate", "saving.wait", "ranks.export", "reporting.summary",
    "reporting.close",
]  # fmt: skip


def test_the_loop_takes_trains_settles_reports_publishes_and_saves(tmp_path: Path) -> None:
    run, parts = make_run(configuration(tmp_path, steps=3))
    run.train()
    published = [*STEP, "publishing.publish", "saving.save_if_due"]
    evaluated = [*STEP, "evaluator.publish_and_evaluate", "reporting.exclude", "saving.save_if_due"]
    assert asked(parts) == [*BEGIN, *published, *evaluated, *published, *END]
    assert [call.args[0] for call in parts.publishing.publish.call_args_list] == [0, 1, 3]
    assert [call.args[0] for call in parts.evaluator.evaluate.call_args_list] == ["after"]
    assert [call.kwargs["number"] for call in parts.ranks.run.call_args_list[:-1]] == [0, 1, 2]
    assert parts.reporting.exclude.call_args.args == (1.5,)
    assert parts.reporting.summary.call_args.args == ({"train": {"own": 0.25}}, {"train": {"own": 0.5}})


def test_a_step_is_settled_in_ledger_totals_and_router(tmp_path: Path) -> None:
    run, _ = make_run(configuration(tmp_path, steps=1))
    run.train()
    batch = random_batch(0)
    run.state.ledger.flush()
    lines = [json.loads(line) for line in (tmp_path / LEDGER_FILE).read_text().splitlines()]
    assert [line["sequence"] for line in lines] == [group.work.sequence for group in batch]
    assert {line["step"] for line in lines} == {1} and lines[-1]["outcome"] == "zero_variance"
    assert run.state.totals.response_tokens == _tokens(batch) and run.state.router.step == 1


@pytest.mark.parametrize("gated", [True, False])
def test_the_curriculum_learns_what_is_right_whatever_a_stage_pays(tmp_path: Path, gated: bool) -> None:
    stage = ["--learner.stages", "[{correctness = 0.0, compliance = 5.0}]", "--router.mode", "policy"]
    stage += ["--model.prompt_style", "select", "--reward.gated", str(gated).lower()]
    run, parts = make_run(configuration(tmp_path, 1, *stage))
    batch = [
        group.model_copy(update={"rollouts": [
            one.model_copy(update={"score": one.score.model_copy(update={
                "terms": {"math": float(n > 0)}, "compliant": n == 0, "scored": True,
            })})
            for n, one in enumerate(group.rollouts)
        ]})
        for group in random_batch(0) if len(group.rollouts) > 1
    ]  # fmt: skip
    parts.batches.next_batch.side_effect = lambda: batch
    run.train()
    streaks = run.state.curriculum.streaks
    assert bool(streaks) is gated, "none is right and in its language; without the gate some are right, and some wrong"


def test_the_groups_of_a_skipped_step_are_entered_as_such(tmp_path: Path) -> None:
    run, _ = make_run(
        configuration(tmp_path, steps=1),
        StepResult({}, {}, 1.0, 0.0, 0.0, problem="not finite: loss", skipped=frozenset(range(5))),
    )
    run.train()
    run.state.ledger.flush()
    lines = [json.loads(line) for line in (tmp_path / LEDGER_FILE).read_text().splitlines()]
    assert {(line["outcome"], line["reason"]) for line in lines} == {
        ("skipped", "not finite: loss"), ("zero_variance", ""),
    }  # fmt: skip


NOT_FINITE = StepResult({}, {}, 1.0, 0.0, 0.0, problem="not finite: loss of x", optimizer_steps=2, left_out=2)
NO_GRADIENT = StepResult({}, {}, 0.0, 0.0, 0.0)
ONE_OF_TWO = StepResult({"loss": 0.0}, {}, 1.0, 1.0, 0.0, problem="not finite: loss", optimizer_steps=2, left_out=1)


@pytest.mark.parametrize(
    ("steps", "between", "ends"),
    [(30, None, 10), (30, NO_GRADIENT, 11), (3, None, 3), (30, ONE_OF_TWO, 15), (30, FINE, 15)],
)
def test_a_run_in_which_nothing_is_trained_is_saved_and_ends(
    tmp_path: Path, steps: int, between: StepResult | None, ends: int
) -> None:
    """After ten steps in a row, or all; a step without a gradient is none of them, and one that trains ends the row."""
    run, parts = make_run(configuration(tmp_path, steps))
    parts.ranks.run.side_effect = lambda *_, number, **__: between if between and number == 4 else NOT_FINITE
    with pytest.raises(FatalError, match=r"nothing was trained in .*not finite: loss of x.*skipped"):
        run.train()
    assert run.state.step == ends and parts.saving.save.call_args.args == (ends,)
    assert asked(parts)[-4:] == ["reporting.step", "saving.save", "saving.wait", "reporting.close"]


@pytest.mark.parametrize("steps", [30, 10, 3])
def test_a_run_in_which_nothing_is_trained_ends_so_however_often_it_is_resumed(tmp_path: Path, steps: int) -> None:
    config, ends = configuration(tmp_path, steps), min(steps, 10)
    run, _ = make_run(config, NOT_FINITE)
    with pytest.raises(FatalError, match="nothing was trained"):
        run.train()
    for _ in range(2):
        run, parts = make_run(config, FINE, snapshot=run.state.capture()[0])
        with pytest.raises(FatalError, match=rf"in {ends} steps.*at once.*step {ends} is.*skipped-until-{ends}"):
            run.train()
        assert asked(parts) == ["reporting.close"] and run.state.step == ends


def test_the_steps_before_and_after_a_resume_are_one_row(tmp_path: Path) -> None:
    config = configuration(tmp_path, 30)
    run, parts = make_run(config, NOT_FINITE)
    parts.batches.next_batch.side_effect = [random_batch(step) for step in range(6)] + [Interrupted()]
    with pytest.raises(Interrupted):
        run.train()
    run, _ = make_run(config, NOT_FINITE, snapshot=run.state.capture()[0])
    with pytest.raises(FatalError, match=r"nothing was trained in 10 steps.*skipped-until-10$"):
        run.train()


def test_a_checkpoint_knows_the_last_step_before_those_that_trained_nothing(tmp_path: Path) -> None:
    """Also where steps without a gradient lie between them, or before them, and after a resume."""
    config, found = configuration(tmp_path, 30), list[int | None]()
    results = [FINE, NO_GRADIENT, NOT_FINITE, NO_GRADIENT, NOT_FINITE, NO_GRADIENT, FINE, NOT_FINITE]
    snapshot = None
    for first in (0, 4):
        run, parts = make_run(config, snapshot=snapshot)
        parts.ranks.run.side_effect = lambda *_, number, **__: results[number]
        parts.batches.next_batch.side_effect = [random_batch(step) for step in range(first, first + 4)] + [
            Interrupted()
        ]
        state = run.state
        parts.saving.save_if_due.side_effect = lambda _, state=state: found.append(state.capture()[0].sound_step)
        with pytest.raises(Interrupted):
            run.train()
        snapshot = state.capture()[0]
    assert found == [1, 2, 2, 2, 2, 2, 7, 7]


@pytest.mark.parametrize(
    "flags", [["--resume.accept", "skipped-until-10"], ["--learner.lr", "1e-7", "--resume.accept", "learner.lr"]]
)
def test_a_run_in_which_nothing_was_trained_goes_on_when_somebody_decides_so(tmp_path: Path, flags: list[str]) -> None:
    """Once: a command that is given again by itself, as torchrun does, does not go on for ever."""
    run, _ = make_run(configuration(tmp_path, 30), NOT_FINITE)
    with pytest.raises(FatalError, match="nothing was trained"):
        run.train()
    ended, again = run.state.capture()[0], configuration(tmp_path, 30, *flags)
    run, _ = make_run(again, FINE, snapshot=ended)
    run.train()
    assert run.state.step == 30
    run, _ = make_run(again, NOT_FINITE, snapshot=ended)
    with pytest.raises(FatalError, match=r"nothing was trained in 10 steps.*skipped-until-20$"):
        run.train()
    run, parts = make_run(again, FINE, snapshot=run.state.capture()[0])
    with pytest.raises(FatalError, match=r"nothing was trained in 10 steps.*skipped-until-20$"):
        run.train()
    assert asked(parts) == ["reporting.close"] and run.state.step == 20


@pytest.mark.parametrize("flags", [["--learner.checkpoint_every", "7"], ["--resume.accept", "skipped-until-9"]])
def test_a_harmless_change_forgives_no_steps_that_trained_nothing(tmp_path: Path, flags: list[str]) -> None:
    run, _ = make_run(configuration(tmp_path, 30), NOT_FINITE)
    with pytest.raises(FatalError, match="nothing was trained"):
        run.train()
    run, _ = make_run(configuration(tmp_path, 30, *flags), FINE, snapshot=run.state.capture()[0])
    with pytest.raises(FatalError, match="nothing was trained"):
        run.train()


def test_a_run_without_a_step_left_does_not_export_what_it_did_not_train(tmp_path: Path) -> None:
    run, _ = make_run(configuration(tmp_path, 3), NOT_FINITE)
    with pytest.raises(
        FatalError, match=r"nothing was trained in 3 steps.*raise learner\.steps, too: all 3 were made$"
    ):
        run.train()
    ended, lower = run.state.capture()[0], ["--learner.lr", "1e-7", "--resume.accept", "learner.lr"]
    run, _ = make_run(configuration(tmp_path, 3, *lower), FINE, snapshot=ended)
    with pytest.raises(FatalError, match="raise learner"):
        run.train()
    run, _ = make_run(configuration(tmp_path, 6, *lower), FINE, snapshot=ended)
    run.train()
    assert run.state.step == 6


def test_a_single_bad_batch_at_the_end_of_a_resumed_run_does_not_end_it(tmp_path: Path) -> None:
    run, parts = make_run(configuration(tmp_path, steps=1000), NOT_FINITE, step=999)
    run.train()
    assert asked(parts)[-len(END) :] == END and run.state.step == 1000


def test_router_and_curriculum_learn_from_answers_that_a_step_term_leaves_out(tmp_path: Path) -> None:
    stage = ["--learner.stages", "[{correctness = 0.0}]", "--model.prompt_style", "select", "--router.mode", "policy"]
    run, parts = make_run(configuration(tmp_path, 1, *stage))
    batch = [
        group.model_copy(update={"rollouts": [
            one.model_copy(update={"score": one.score.model_copy(update={"terms": {"math": 1.0}, "compliant": True})})
            for one in group.rollouts
        ]})
        for group in random_batch(0)
    ]  # fmt: skip
    parts.batches.next_batch.side_effect = lambda: batch
    seen = Mock(side_effect=run.state.router.observe)
    run.state.router.observe = seen  # type: ignore[method-assign]
    term = tmp_path / "term.py"
    term.write_text(
        "import numpy as np\ndef nothing(step, state):\n    return np.full(len(step.rewards), np.nan), {}\n"
    )
    run.step_reward = StepReward(f"{term}:nothing", 1)
    run.train()
    trained = parts.ranks.run.call_args_list[0].kwargs["batch"]
    assert not any(rollout.score.scored for group in trained for rollout in group.rollouts)
    assert all(len(one.rewards) == 4 for one in seen.call_args.args[0]) and run.state.curriculum.streaks


def test_a_resumed_run_makes_no_evaluation_before_the_first_step(tmp_path: Path) -> None:
    run, parts = make_run(configuration(tmp_path, steps=3), step=2)  # whether it began with one or without
    run.train()
    assert asked(parts) == [*GO_ON, *STEP, "publishing.publish", "saving.save_if_due", *END]
    assert [call.args[0] for call in parts.publishing.publish.call_args_list] == [2, 3]


def test_a_run_evaluates_before_the_first_step_only_where_it_should(tmp_path: Path) -> None:
    run, parts = make_run(configuration(tmp_path, 1, "--learner.evaluate_before", "false"))
    run.train()
    assert not parts.evaluator.evaluate_before.called and not parts.evaluator.resume.called


@pytest.mark.parametrize("end", [Interrupted, NobodyCame("no actor came")])
def test_a_run_that_ends_early_saves_the_step_that_it_has_trained(tmp_path: Path, end: Exception) -> None:
    run, parts = make_run(configuration(tmp_path, steps=3))
    parts.publishing.publish.side_effect = [None, end]
    with pytest.raises((Interrupted, NobodyCame)):
        run.train()
    assert asked(parts) == [*BEGIN, *STEP, "publishing.publish", "saving.save", "saving.wait", "reporting.close"]
    assert parts.saving.save.call_args.args == (1,)


def test_a_run_saves_when_nobody_is_left_to_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, parts = make_run(configuration(tmp_path, steps=3))
    parts.batches.next_batch.side_effect = [random_batch(0), NobodyCame("no group came")]
    parts.saving.save.side_effect = FatalError("the disk is full")
    with pytest.raises(FatalError, match="the disk is full"):
        run.train()
    assert "the run ends after step 1: no group came" in caplog.text, "both are told"


def test_what_went_wrong_is_not_saved(tmp_path: Path) -> None:
    run, parts = make_run(configuration(tmp_path, steps=3))
    parts.batches.next_batch.side_effect = [random_batch(0), FatalError("the learner's server has failed")]
    with pytest.raises(FatalError, match="server"):
        run.train()
    assert not parts.saving.save.called


def test_the_ledger_is_written_before_a_tracker_is_waited_for(tmp_path: Path) -> None:
    run, parts = make_run(configuration(tmp_path, steps=3))
    written = list[str]()

    def publish(version: int) -> None:
        run.state.ledger.enter(70, 7, "failed", version)
        raise Interrupted

    parts.publishing.publish.side_effect = publish
    parts.reporting.close.side_effect = lambda: written.append((tmp_path / LEDGER_FILE).read_text())
    with pytest.raises(Interrupted):
        run.train()
    assert '"sequence":70' in written[0]


def _tokens(batch: list[Group]) -> int:
    return sum(len(rollout.response_ids) for group in batch for rollout in group.rollouts)
