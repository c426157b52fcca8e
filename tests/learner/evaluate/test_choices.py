"""The policy's own choice of language, compared with languages it was given."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from common.config import load
from learner.evaluate.choices import accuracy, compare_settings, languages_by_setting, pass_at_k
from learner.groups import Group
from router import Router
from tests.support.groups import question, random_rollout, work


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(rng: np.random.Generator) -> None:
    style = ["--model.prompt_style", "select"]
    config = load([*style, "--learner.evaluate_samples", "4", "--learner.evaluate_unseen", '["zh"]'])
    bandit = Router(config.router, ["de", "en"], 0, 1)
    by_setting = languages_by_setting(question(3), bandit, ["de", "en"], config.learner)
    assert by_setting["free"] == [""] * 4 and by_setting["unseen"] == ["zh"] * 4
    assert set(by_setting["routed"]) <= {"de", "en"} and len(set(by_setting["seen"])) == 1
    assert by_setting == languages_by_setting(question(3), bandit, ["de", "en"], config.learner), "always the same"
    asked = [language for languages in by_setting.values() for language in languages]
    rollouts = [random_rollout(rng) for _ in asked]
    rollouts = [
        r.model_copy(update={"score": r.score.model_copy(update={"terms": {"exact": rng.random()}})}) for r in rollouts
    ]
    group = Group(work=work(3, asked), actor="a", rollouts=rollouts)
    figures = compare_settings([group], {3: by_setting}, "gate")
    for number, setting in enumerate(by_setting):
        answers = rollouts[4 * number : 4 * number + 4]
        right = [rollout.score.terms["exact"] >= 0.5 and rollout.score.compliant for rollout in answers]
        for k in (1, 2, 4):
            wins = [any(chosen) for chosen in combinations(right, k)]
            assert figures[f"{setting}_pass@{k}"] == pytest.approx(sum(wins) / len(wins))
        kept = [part.consistent for r in answers if (part := r.score.final_languages)]
        assert figures[f"consistency/gate_{setting}_answer"] == pytest.approx(np.mean(kept))
        lengths = [len(rollout.response_ids) for rollout in answers]
        assert figures[f"{setting}_tokens"] == pytest.approx(sum(lengths) / 4)


def test_the_part_that_is_the_accuracy_says_what_is_right(rng: np.random.Generator) -> None:
    """With reward.terms = {math = 1, thought_language = 1} a wrong answer in its language has the quality 0.5."""
    rollouts = [random_rollout(rng) for _ in range(4)]
    rollouts = [
        one.model_copy(update={"score": one.score.model_copy(update={
            "quality": 0.5, "compliant": True, "terms": {"math": float(n == 0), "thought_language": float(n > 0)},
        })})
        for n, one in enumerate(rollouts)
    ]  # fmt: skip
    assert accuracy(rollouts) == {"accuracy": 0.25, "accuracy_kept": 0.25, "compliance": 1}
    assert pass_at_k([rollouts]) == {"pass@1": 0.25, "pass@2": 0.5, "pass@4": 1}


def test_where_nothing_says_what_is_right_there_is_no_accuracy(rng: np.random.Generator) -> None:
    """As with similarity alone, which is above 0.5 for nearly every answer."""
    rollouts = [random_rollout(rng) for _ in range(4)]
    for n, one in enumerate(rollouts):
        one.score.quality, one.score.compliant, one.score.terms = 0.95, n > 0, {"similarity": 0.95}
    assert accuracy(rollouts) == {"compliance": 0.75} and pass_at_k([rollouts]) == {}
    rollouts[1].score.terms["exact"] = 1.0
    assert accuracy(rollouts) == {"compliance": 0.75, "accuracy": 1, "accuracy_kept": 1}
    assert pass_at_k([rollouts]) == {}, "a question of which not every answer is known to be right or wrong"
    asked = ["en"] * 4
    figures = compare_settings(
        [Group(work=work(3, asked), actor="a", rollouts=[*rollouts[:1], *rollouts[2:]])],
        {3: {"seen": asked[:3]}},
        "gate",
    )
    assert not [name for name in figures if "accuracy" in name or "pass@" in name or "right" in name]
    assert figures["seen_compliance"] == pytest.approx(2 / 3)
