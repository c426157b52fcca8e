"""An evaluation that finds nothing is told, and ends nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any
from unittest.mock import Mock

import pytest

from common.config import load
from common.stopwatch import Stopwatch
from common.wire import Question
from learner.groups import Group
from learner.loop.evaluator import Evaluator
from learner.loop.interrupts import Interrupted
from learner.work.admission import UNLIMITED
from learner.work.server import EveryQuestionGivenUp
from router import Router
from tests.support.groups import question, random_rollout, seeded_generator, work

LANGUAGES = ["de", "en"]


def make_evaluator(
    *flags: str, heldout: str = "", sets: Mapping[str, list[Question]] | None = None, **parts: Any
) -> tuple[Evaluator, Mock]:
    """An evaluator after step 7, and the stand-ins for its parts.

    Args:
        heldout: the reference of the held-out question.
        sets: the questions, by default one for training and one that is held out.
    """
    config, mocks = load([*flags]), Mock()
    mocks.state.step, mocks.state.router = 7, Router(config.router, LANGUAGES, 0, 1)
    mocks.state.evaluation_before, mocks.state.evaluated_before, mocks.state.evaluated_step = {}, {}, 0
    mocks.state.lock = threading.Condition()
    names = ("state", "server", "training_work", "publishing", "batches", "ranks", "report", "interrupts")
    others = {name: getattr(mocks, name) for name in names} | parts
    sets = sets or {
        "train": [question(0, "de")],
        "heldout": [question(1, "en").model_copy(update={"reference": heldout})],
    }
    evaluator = Evaluator(
        config.learner, LANGUAGES, sets, limits=UNLIMITED, detector="gate", stopwatch=Stopwatch(), **others
    )
    return evaluator, mocks


def test_how_many_questions_of_a_set_are_evaluated_is_said(caplog: pytest.LogCaptureFixture) -> None:
    questions = [question(number, "en") for number in range(5)]
    with caplog.at_level(logging.INFO):
        make_evaluator("--learner.evaluate_questions", "2", sets={"train": questions, "heldout": questions[:1]})
    assert caplog.messages == [
        "evaluating 2 of 5 questions of train (learner.evaluate_questions)",
        "evaluating 1 of 1 questions of heldout (learner.evaluate_questions)",
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        make_evaluator("--learner.evaluate", "false")
    assert not caplog.messages


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


def answers() -> list[list[Group]]:
    """To both sets of questions."""
    return [[answered(0, scored=True)], [answered(1, scored=True)]]


def test_actors_that_come_before_an_evaluation_get_the_weights_and_it_is_made() -> None:
    evaluator, mocks = make_evaluator()
    mocks.server.wait_until_all_finished.side_effect = [False, True]
    mocks.publishing.version = 6
    mocks.server.has_newcomers.side_effect = lambda: mocks.publishing.version == 6
    mocks.publishing.publish.side_effect = lambda version: setattr(mocks.publishing, "version", version)
    mocks.batches.next_batch.side_effect = answers()
    assert evaluator.publish_and_evaluate() > 0
    assert mocks.report.evaluation.call_count == 2 and mocks.state.evaluated_step == 7
    assert mocks.publishing.publish.call_args_list == [((7,),)], "once: all of them have it"
    names = [name for name, *_ in mocks.mock_calls if name in ("publishing.publish", "server.serve")]
    assert names[:2] == ["publishing.publish", "server.serve"], "groups of training are served until then"


def test_a_resumed_run_makes_the_evaluation_that_its_end_kept_from_being_made() -> None:
    for made, every, expected in (
        (0, 7, True), (6, 7, True), (7, 7, False), (0, 5, False), (0, 0, False),
    ):  # fmt: skip
        evaluator, mocks = make_evaluator("--learner.evaluate_every", str(every))
        mocks.state.evaluated_step = made
        mocks.batches.next_batch.side_effect = answers()
        evaluator.resume()
        told = [call.args[0] for call in mocks.report.answered.call_args_list]
        assert told == (["step-7-train", "step-7-heldout"] if expected else []), (made, every)
        assert mocks.state.evaluated_step == (7 if expected else made)


def test_an_evaluation_that_is_interrupted_counts_as_not_made() -> None:
    evaluator, mocks = make_evaluator()
    mocks.batches.next_batch.side_effect = [answers()[0], Interrupted]
    with pytest.raises(Interrupted):
        evaluator.publish_and_evaluate()
    assert mocks.state.evaluated_step == 0


def test_figures_of_other_questions_are_not_those_of_before(caplog: pytest.LogCaptureFixture) -> None:
    evaluator, mocks = make_evaluator()
    mocks.batches.next_batch.side_effect = answers()
    evaluator.evaluate_before()
    before, digests = mocks.state.evaluation_before, mocks.state.evaluated_before
    assert before.keys() == {"train", "heldout"} and evaluator.comparable_before() == before
    before["heldout_settings"] = {"free_accuracy": 0.5}
    for heldout, kept in ((" changed", {"train"}), ("", before.keys())):  # the file was edited, and put back
        caplog.clear()
        later, mocks = make_evaluator(heldout=heldout)
        mocks.state.evaluation_before, mocks.state.evaluated_before = before, digests
        later.resume()
        assert later.comparable_before().keys() == kept
        assert ("the heldout questions that are evaluated are not those" in caplog.text) is (heldout != "")
    mocks.state.evaluated_before = {}  # by a program that did not keep them
    assert later.comparable_before() == before


def test_what_is_waited_for_before_an_evaluation_belongs_to_the_next_step() -> None:
    """It trains the tokens that come in this time; without its seconds they would seem to come faster than they do."""
    evaluator, mocks = make_evaluator()

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
