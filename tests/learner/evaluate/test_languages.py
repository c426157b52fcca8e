"""The ways of choosing the answer language that an evaluation reads off its greedy rewards."""

from __future__ import annotations

import numpy as np
import pytest

from common.config import load
from learner.evaluate.languages import read_reward_matrix
from learner.groups import Group
from router import Router
from tests.support.groups import question, random_rollout, work

LANGUAGES = ["de", "en", "zh"]


def answered(rewards: np.ndarray, own: list[str]) -> list[Group]:
    """Groups answered in all languages, with rewards [Q, L + 1]; the last counts where ``own`` is none of these."""
    generator, groups = np.random.default_rng(0), []
    for number, (row, language) in enumerate(zip(rewards, own, strict=True)):
        languages = list(dict.fromkeys([*LANGUAGES, language]))
        one = work(number, languages, greedy=True).model_copy(update={"question": question(number, language)})
        rollouts = [random_rollout(generator, reward=float(value)) for value in row[: len(languages)]]
        groups.append(Group(work=one, actor="a", rollouts=rollouts))
    return groups


@pytest.mark.parametrize("mode", ["learned", "uniform", "fixed", "english_dominant", "input_dominant", "monolingual"])
def test_routed_is_how_the_mode_of_the_run_answers(mode: str, rng: np.random.Generator) -> None:
    """And not what a router would draw that has learned nothing, which all modes but the learned ones have."""
    rewards, own = rng.random((4, 4)), ["de", "en", "zh", "ko"]
    own_rewards = np.array([rewards[0, 0], rewards[1, 1], rewards[2, 2], rewards[3, 3]])
    fixed = ["--run.languages", '["de", "en", "zh"]', "--router.fixed_language", "zh"] if mode == "fixed" else []
    config = load(["--router.mode", mode, *fixed])
    evaluation = read_reward_matrix(answered(rewards, own), LANGUAGES, Router(config.router, LANGUAGES, 0, 1), "gate")
    assert evaluation is not None and evaluation.unscored == 0
    wanted = {
        "learned": rewards[:, :3].mean(),  # nothing is learned yet
        "uniform": rewards[:, :3].mean(),
        "fixed": rewards[:, 2].mean(),
        "english_dominant": rewards[:, 1].mean(),
        "input_dominant": (4 * own_rewards.mean() + 2 * rewards[:, 1].mean()) / 6,  # 2 of 8 are reserved
        "monolingual": own_rewards.mean(),
    }
    assert evaluation.routed == pytest.approx(wanted[mode], abs=1e-6)
    assert evaluation.own == pytest.approx(own_rewards.mean()) and evaluation.uniform == pytest.approx(
        rewards[:, :3].mean()
    )


def test_nothing_is_routed_where_the_policy_chooses() -> None:
    config = load(["--router.mode", "policy", "--model.prompt_style", "select"])
    groups = answered(np.ones((1, 4)), ["de"])
    evaluation = read_reward_matrix(groups, LANGUAGES, Router(config.router, LANGUAGES, 0, 1), "gate")
    assert evaluation is not None and evaluation.routed is None and evaluation.oracle == 1.0


def unscored(group: Group, place: int) -> Group:
    """The group with one answer that could not be scored."""
    rollouts = list(group.rollouts)
    failed = rollouts[place].score.model_copy(update={"scored": False, "reward": 0.0})
    rollouts[place] = rollouts[place].model_copy(update={"score": failed})
    return Group(work=group.work, actor=group.actor, rollouts=rollouts)


def test_an_answer_that_was_not_scored_costs_the_figures_that_need_it_and_no_others() -> None:
    config = load([])
    router = Router(config.router, LANGUAGES, 0, 1)
    groups = answered(np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]), ["de", "en"])
    in_another_language = read_reward_matrix([groups[0], unscored(groups[1], 2)], LANGUAGES, router, "gate")
    assert in_another_language is not None
    assert (in_another_language.own, in_another_language.questions) == (1.0, 2), "both own answers were scored"
    assert in_another_language.unscored == pytest.approx(1 / 6) and in_another_language.best_fixed_language == "de"
    everywhere = read_reward_matrix([unscored(one, 2) for one in groups], LANGUAGES, router, "gate")
    assert everywhere is not None and everywhere.own == 1.0
    assert [everywhere.oracle, everywhere.best_fixed, everywhere.uniform, everywhere.routed] == [None] * 4
    own = [unscored(group, place) for place, group in enumerate(groups)]
    assert read_reward_matrix(own, LANGUAGES, router, "gate") is None, "there is no figure, and no error"


def test_questions_in_their_own_languages_alone_have_no_figures_that_compare_languages() -> None:
    """As where prompts ask for no language: each question has one answer."""
    router = Router(load(["--router.mode", "monolingual"]).router, LANGUAGES, 0, 1)
    own = [
        Group(work=one.work, actor="a", rollouts=one.rollouts[-1:]) for one in answered(np.eye(2, 4, 3), ["fr", "sw"])
    ]
    for group in own:
        group.work.languages = [group.work.question.language]
    evaluation = read_reward_matrix(own, (), router, "gate")
    assert evaluation is not None and (evaluation.own, evaluation.questions) == (0.5, 2)
    assert evaluation.own_by_language == {"fr": 1.0, "sw": 0.0}
    assert {evaluation.oracle, evaluation.best_fixed, evaluation.uniform, evaluation.routed} == {None}
