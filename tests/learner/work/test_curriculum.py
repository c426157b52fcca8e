"""Questions that teach nothing are asked less often, with the propensity that is told, and the same after a resume."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from common.wire import Score
from learner.loop.training_work import TrainingWork
from learner.state import LEDGER_FILE, RunState
from learner.work.admission import Limits
from learner.work.curriculum import LEAST, Curriculum, CurriculumState, SavedCurriculum
from learner.work.ledger import audit
from learner.work.questions import ShuffledQuestions
from tests.learner.test_state import configuration, router
from tests.support.groups import question

COUNT = 12


def shuffled(seed: int) -> ShuffledQuestions:
    return ShuffledQuestions([question(100 + n) for n in range(COUNT)], seed)


def scores(*rewards: float | None) -> list[Score]:
    return [
        Score(reward=r or 0, quality=r or 0, similarity=0, compliant=True, detected="en", scored=r is not None)
        for r in rewards
    ]


FLAT = {100: (1.0, 1.0), 101: (0.0, 0.2)}  # by row, the rewards of a question that is always, or never, solved


def ask(curriculum: Curriculum, state: CurriculumState, sequence: int, over: list[tuple[int, int, float]]) -> Any:
    asked, propensity = curriculum.question(sequence, lambda one, n, p: over.append((one.index, n, p)))
    state.record(sequence, asked.index, scores(*FLAT.get(asked.index, (0.0, 1.0))), 0.5)
    return asked.index, propensity


def test_without_a_curriculum_each_question_is_asked_in_each_epoch(seed: int) -> None:
    order, state, over = shuffled(seed), CurriculumState(), list[tuple[int, int, float]]()
    curriculum = Curriculum(order, 1.0, state)
    asked = [ask(curriculum, state, n, over) for n in range(5 * COUNT)]
    assert asked == [(order[n].index, 1.0) for n in range(5 * COUNT)] and not over


def test_what_teaches_nothing_is_passed_over_with_the_propensity_that_is_told(seed: int) -> None:
    state, over = CurriculumState(), list[tuple[int, int, float]]()
    curriculum = Curriculum(shuffled(seed), 0.5, state)
    asked = [ask(curriculum, state, n, over) for n in range(4000 * COUNT)]
    times = Counter(row for row, _ in asked)
    passed = Counter(row for row, _, _ in over)
    assert set(passed) == set(FLAT), "the others teach something"
    epochs = times[102]
    for row in FLAT:
        assert abs(times[row] + passed[row] - epochs) <= 1, "each question comes once in every epoch"
        told = [propensity for one, propensity in asked if one == row]
        assert told[:5] == [1.0, 0.5, 0.25, 0.125, 0.0625] and set(told[5:]) == {LEAST}
        # Weighted by the propensity they were asked with, the questions count as often as the others.
        estimate = sum(1 / propensity for propensity in told)
        assert 0.5 * epochs < estimate < 1.6 * epochs  # seven standard deviations
    assert all(propensity == max(LEAST, 0.5**streak) for _, streak, propensity in over)
    assert {propensity for row, propensity in asked if row not in FLAT} == {1.0}


def test_one_that_teaches_again_is_asked_again(seed: int) -> None:
    state = CurriculumState()
    state.record(0, 7, scores(1, 1), 0.5)
    state.record(1, 7, scores(None, 0.4), 0.5)
    assert state.streaks == {7: 2}
    state.record(2, 7, scores(None, None), 0.5)
    assert state.streaks == {7: 2}, "nothing was scored"
    state.record(3, 7, scores(0.5, 0.49), 0.5)
    assert state.streaks == {}


def test_a_resumed_run_asks_what_the_first_one_would_have(seed: int, rng: np.random.Generator) -> None:
    order, state, over = shuffled(seed), CurriculumState(), list[tuple[int, int, float]]()
    curriculum = Curriculum(order, 0.5, state)
    for n in range(20 * COUNT):
        ask(curriculum, state, n, over)
    first = 20 * COUNT
    pending = {first + n: curriculum.question(first + n) for n in range(5)}
    assert {n: curriculum.question(n) for n in pending} == pending, (
        "a lease that is given again is of the same question"
    )
    saved = state.capture([*pending])
    copy = msgspec.convert(msgspec.to_builtins(saved), SavedCurriculum)
    assert copy == saved and len(saved.asked) == 5
    again = CurriculumState.restore(copy, first + 5)
    resumed = Curriculum(order, 0.5, again)
    assert {n: resumed.question(n) for n in rng.permutation([*pending]).tolist()} == pending
    more = range(first + 5, first + 60)
    assert [ask(resumed, again, n, []) for n in more] == [ask(curriculum, state, n, []) for n in more]


def test_a_checkpoint_from_before_goes_on_in_its_order(seed: int) -> None:
    order = shuffled(seed)
    curriculum = Curriculum(order, 0.5, CurriculumState.restore(SavedCurriculum(), 9))
    for sequence in (7, 9, 5, 10):
        assert curriculum.question(sequence) == (order[sequence], 1.0)


def test_answers_are_right_by_their_accuracy_and_not_by_their_reward() -> None:
    """Rewards of further parts, of stages or of step terms go beyond 1, or are 0 for a right answer."""
    state = CurriculumState()
    wrong, right = scores(3.0)[0], scores(0.1)[0]
    wrong.terms, right.terms = {"acc": 0.0, "box": 1.0, "wins": 1.0}, {"acc": 1.0}
    state.record(0, 7, [wrong, wrong])
    assert state.streaks == {7: 1}
    state.record(1, 7, [wrong, right])
    assert state.streaks == {}, "some are right, and some are not"
    foreign = right.model_copy(update={"compliant": False})
    state.record(2, 7, [foreign, right], gated=False)
    assert state.streaks == {7: 1}, "both are right"
    state.record(3, 7, [foreign, right], gated=True)
    assert state.streaks == {}, "the one in another language earns nothing"


def test_answers_that_are_all_similar_to_the_reference_do_not_make_a_question_rarer() -> None:
    """Qualities of 0.90 to 0.98 teach as much as any; what is right is not known unless somebody has said it."""
    similar = scores(0.90, 0.98, 0.94)
    for one in similar:
        one.terms = {"similarity": one.quality}
    state = CurriculumState()
    state.record(0, 7, similar)
    assert state.streaks == {}
    state.record(1, 7, similar, 0.95)
    assert state.streaks == {}, "some are right, and some are not"
    state.record(2, 7, similar, 0.5)
    assert state.streaks == {7: 1}, "all are, by this measure"


@pytest.mark.parametrize("failed", [True, False])
def test_a_group_that_is_gone_is_forgotten(failed: bool, seed: int) -> None:
    state = CurriculumState()
    curriculum = Curriculum(shuffled(seed), 0.5, state)
    curriculum.question(0)
    if failed:
        curriculum.forget(0)
    else:
        state.record(0, 100, scores(1), 0.5)
    assert not state.asked and not state.capture([0]).asked


def test_the_ledger_has_what_was_passed_over_and_each_group_its_propensity(seed: int, tmp_path: Path) -> None:
    config = configuration(tmp_path)
    state = RunState.begin(config=config, router=router(config), questions_digest="d", lock=threading.Condition())
    curriculum = Curriculum(shuffled(seed), 0.5, state.curriculum)
    nothing: Any = SimpleNamespace(version=3)
    training_work = TrainingWork(nothing, state, curriculum, nothing, Limits())
    propensities = []
    for sequence in range(6 * COUNT):
        made = training_work.make(sequence)
        propensities.append(made.question_propensity)
        assert training_work.make(sequence).question == made.question
        if sequence == 5 * COUNT:
            training_work.enter_failure(sequence, "no engine")
            continue
        state.curriculum.record(sequence, made.question.index, scores(1, 1), 0.5)
        state.ledger.enter(sequence, made.question.index, "zero_variance", 1, work=made)
    state.ledger.flush()
    lines = [json.loads(line) for line in (tmp_path / LEDGER_FILE).read_text().splitlines()]
    told = [line["question_propensity"] for line in lines if line["outcome"] == "zero_variance"]
    assert told == [one for n, one in enumerate(propensities) if n != 5 * COUNT] and min(told) < 0.2
    over = [line for line in lines if line["outcome"] == "passed_over"]
    assert over and all("asked with probability" in line["reason"] for line in over)
    found = audit(tmp_path / LEDGER_FILE, 6 * COUNT, [])
    assert (found.lost, found.duplicated, found.outcomes["failed"]) == (0, 0, 1)
