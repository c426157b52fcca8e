"""An evaluation that finds nothing is told, and ends nothing."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any
from unittest.mock import Mock

import pytest

from common.config import load
from common.stopwatch import Stopwatch
from learner.groups import Group
from learner.loop.evaluator import Evaluator
from learner.work.admission import UNLIMITED
from learner.work.server import EveryQuestionGivenUp
from router import Router
from tests.support.groups import question, random_rollout, seeded_generator, work

LANGUAGES = ["de", "en"]


def make_evaluator(**parts: Any) -> tuple[Evaluator, Mock]:
    config, mocks = load([]), Mock()
    mocks.state.step, mocks.state.router = 7, Router(config.router, LANGUAGES, 0, 1)
    names = ("state", "server", "training_work", "publishing", "batches", "ranks", "report", "interrupts")
    others = {name: getattr(mocks, name) for name in names} | parts
    sets = {"train": [question(0, "de")], "heldout": [question(1, "en")]}
    evaluator = Evaluator(
        config.learner, LANGUAGES, sets, limits=UNLIMITED, detector="gate", stopwatch=Stopwatch(), **others
    )
    return evaluator, mocks


def answered(number: int, *, scored: bool) -> Group:
    rollouts = [random_rollout(seeded_generator(), reward=1.0) for _ in LANGUAGES]
    scores = [one.score.model_copy(update={"scored": scored}) for one in rollouts]
    rollouts = [
        one.model_copy(update={"score": score, "language": language})
        for one, score, language in zip(rollouts, scores, LANGUAGES, strict=True)
    ]
    return Group(work=work(number, LANGUAGES, greedy=True), actor="a", rollouts=rollouts)


def test_a_set_whose_questions_were_given_up_or_not_scored_has_no_figures(caplog: pytest.LogCaptureFixture) -> None:
    evaluator, mocks = make_evaluator()
    mocks.batches.next_batch.side_effect = [EveryQuestionGivenUp("all"), [answered(1, scored=True)]]
    with caplog.at_level(logging.ERROR):
        assert evaluator.evaluate("before").keys() == {"heldout"}
    assert "evaluation before-train: all 1 questions were given up" in caplog.text
    assert mocks.report.evaluation.call_args.args[:2] == (7, "heldout")
    told = [call.args for call in mocks.report.answered.call_args_list]
    assert [(name, [group.work.question.index for group in groups]) for name, groups in told] == [
        ("before-train", []), ("before-heldout", [1]),
    ], "the rewards of each question are kept"  # fmt: skip
    mocks.batches.next_batch.side_effect = [[answered(0, scored=False)], [answered(1, scored=True)]]
    assert evaluator.evaluate("after").keys() == {"heldout"}
    assert "evaluation after-train has no figures" in caplog.text


@pytest.mark.parametrize(
    ("newcomers", "told"),
    [(True, "an actor has come"), (False, "under way, and none has come for learner.group_timeout_s = 1800 s")],
)
def test_an_evaluation_between_steps_that_cannot_be_made_says_why(
    newcomers: bool, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator, mocks = make_evaluator()
    mocks.server.wait_until_all_finished.return_value = False
    mocks.server.has_newcomers.return_value = newcomers
    assert evaluator.publish_and_evaluate() == 0.0
    assert told in caplog.text and mocks.publishing.publish.call_args.args == (7,)
    timeout_s, check = mocks.server.wait_until_all_finished.call_args.args
    check()
    [kept_s] = mocks.ranks.keep_waiting.call_args.args
    assert mocks.interrupts.check.called and kept_s <= timeout_s / 2, "the other ranks do not run out of time"


def test_what_is_waited_for_before_an_evaluation_belongs_to_the_next_step() -> None:
    """It trains the tokens that come in this time; without its seconds they would seem to come faster than they do."""
    evaluator, mocks = make_evaluator()
    mocks.state.lock = threading.Condition()

    def slow(seconds: float, result: Any = None) -> Any:
        def call(*_: object) -> Any:
            time.sleep(seconds)
            return result

        return call

    mocks.server.wait_until_all_finished.side_effect = slow(0.4, True)
    mocks.publishing.publish.side_effect = slow(0.4)
    mocks.training_work.serve.side_effect = slow(0.4)
    mocks.batches.next_batch.side_effect = [[answered(0, scored=True)], [answered(1, scored=True)]]
    began = time.monotonic()
    assert evaluator.publish_and_evaluate() < 0.3
    assert time.monotonic() - began > 1.2
    assert mocks.report.evaluation.call_count == 2 and mocks.training_work.serve.call_count == 1
