"""Step terms of the user's own, and answers that could not be scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.config import ConfigError, load
from common.process import FatalError
from learner.groups import Group
from learner.loop.observations import router_observations
from learner.state import Snapshot
from learner.train.outcomes import group_advantages, group_outcome, step_advantages
from learner.train.samples import group_samples
from learner.train.step_reward import StepReward, make_step
from tests.learner.test_run import make_run
from tests.support.train_once import random_batch

TERM = """
import numpy as np

def rarity(step, state):
    '''acc times how rare the answer's language is in the step; the state counts the steps.'''
    counts = {language: np.sum(step.asked == language) for language in np.unique(step.asked)}
    rare = np.array([len(step.asked) / counts[language] for language in step.asked])
    seen = state.get("seen", 0) + 1
    return step.rewards * rare * (1 + step.progress), {"seen": seen, "mean": np.float64(step.rewards.mean())}

class Centred:
    gives = "advantages"

    def __call__(self, step, state):
        means = np.bincount(step.group, step.rewards) / np.bincount(step.group)
        return step.rewards - means[step.group], state

def first_is_missing(step, state):
    return np.where(np.arange(len(step.rewards)) == 0, np.nan, step.rewards), state

def infinite(step, state):
    return step.rewards + np.inf, state

def short(step, state):
    return step.rewards[1:], state

def text(step, state):
    return ["much"] * len(step.rewards), state

def ragged(step, state):
    return [[1.0], [1.0, 2.0]] * (len(step.rewards) // 2), state

def remembers(step, state):
    return step.rewards, {"best": np.full(2, -np.inf), "none": {"yet": [float("nan")]}, "n": np.int64(3), "t": (1, 2)}

def unkeepable(step, state):
    return step.rewards, {"open": open}

def leaves(step, state):
    exit(0)

def broken(step, state):
    return step.parts["absent"], state
"""


@pytest.fixture
def terms(tmp_path: Path) -> Path:
    path = tmp_path / "terms.py"
    path.write_text(TERM)
    return path


def unscored(group: Group, number: int) -> Group:
    """The group with one answer that could not be scored."""
    rollouts = list(group.rollouts)
    score = rollouts[number].score.model_copy(update={"scored": False, "reward": 0.0})
    rollouts[number] = rollouts[number].model_copy(update={"score": score})
    return group.model_copy(update={"rollouts": rollouts})


def test_a_step_term_sees_the_whole_step_and_gives_rewards(terms: Path) -> None:
    batch = random_batch(1)
    languages = [rollout.language for group in batch for rollout in group.rollouts]
    rewards = [rollout.score.reward for group in batch for rollout in group.rollouts]
    found, state = StepReward(f"{terms}:rarity", steps=4)(batch, 2, {"seen": 4})
    given = [rollout.score.reward for group in found for rollout in group.rollouts]
    expected = [r * len(languages) / languages.count(one) * 1.5 for r, one in zip(rewards, languages, strict=True)]
    assert given == pytest.approx(expected)
    assert state == {"seen": 5, "mean": pytest.approx(np.mean(rewards))} == json.loads(json.dumps(state))
    step = make_step(batch, 2, 4)
    assert step.group.tolist() == [n for n, group in enumerate(batch) for _ in group.rollouts]
    assert step.tokens.tolist() == [len(r.response_ids) for group in batch for r in group.rollouts]


def test_a_step_term_may_give_advantages(terms: Path) -> None:
    learner = load([]).learner
    batch, _ = StepReward(f"{terms}:Centred", steps=4)(random_batch(2), 0, {})
    for group in batch:
        rewards = np.array([rollout.score.reward for rollout in group.rollouts])
        assert group_advantages(group, learner) == pytest.approx(rewards - rewards.mean())
    samples, _ = group_samples(batch, learner)
    assert {sample.advantage for sample in samples} <= {one for group in batch for one in group.advantages}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("infinite", "rewards that are not finite in step 3"),
        ("short", r"returned values of shape \(23,\); \(24,\) is needed"),
        ("unkeepable", "state in step 3 that a checkpoint cannot keep"),
        ("text", r"terms\.py returned rewards in step 3 that are no array of numbers: could not convert string"),
        ("ragged", r"terms\.py returned rewards in step 3 that are no array of numbers: .*inhomogeneous"),
        ("broken", r"failed in step 3: .*terms\.py:\d+ in broken: KeyError: 'absent'"),
        ("leaves", r"failed in step 3: .*terms\.py:\d+ in leaves: SystemExit: 0"),
    ],
)
def test_a_step_term_that_fails_is_named(terms: Path, name: str, message: str) -> None:
    with pytest.raises(FatalError, match=message):
        StepReward(f"{terms}:{name}", steps=4)(random_batch(3), 3, {})


def test_the_state_keeps_what_is_not_finite_also_in_a_checkpoint(terms: Path, tmp_path: Path) -> None:
    _, state = StepReward(f"{terms}:remembers", steps=4)(random_batch(3), 0, {})
    assert (
        state["best"] == [-np.inf] * 2 and np.isnan(state["none"]["yet"]) and state["n"] == 3 and state["t"] == [1, 2]
    )
    run, _ = make_run(load(["--run.dir", str(tmp_path), "--learner.steps", "3"]))
    run.state.step_reward = state
    saved = json.loads(json.dumps(run.state.capture()[0].as_json()))
    assert Snapshot.from_json(saved, tmp_path).step_reward["best"] == [-np.inf] * 2


def test_given_advantages_are_taken_as_they_are_also_where_parts_are_decoupled(terms: Path) -> None:
    learner = load(["--learner.advantage", "decoupled", "--learner.decoupled_parts", "{reward = 1}"]).learner
    batch, _ = StepReward(f"{terms}:Centred", steps=4)(random_batch(2), 0, {})
    for group, found in zip(batch, step_advantages(batch, learner), strict=True):
        assert found.tolist() == group.advantages
    plain = step_advantages(random_batch(2), learner)
    assert np.std(np.concatenate(plain), ddof=1) == pytest.approx(1, abs=1e-3), "others are divided as before"


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("rarity", ["--learner.advantage", "decoupled", "--learner.decoupled_parts", "{quality=1}"], "part 'reward'"),
        ("Centred", ["--learner.overlong_limit", "900", "--learner.overlong_buffer", "9"], "no penalty for long"),
    ],
)
def test_a_term_whose_values_or_whose_settings_would_not_be_used_is_refused(
    terms: Path, name: str, flags: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        StepReward.of(load(["--learner.step_reward", f"{terms}:{name}", *flags]).learner)
    other = "Centred" if name == "rarity" else "rarity"
    assert StepReward.of(load(["--learner.step_reward", f"{terms}:{other}", *flags]).learner) is not None
    assert StepReward.of(load([]).learner) is None


def test_a_step_term_that_cannot_be_loaded_is_named(terms: Path) -> None:
    with pytest.raises(ConfigError, match="defines no 'absent'"):
        StepReward(f"{terms}:absent", steps=4)
    with pytest.raises(ConfigError, match=r"FILE\.py:NAME"):
        StepReward("terms.rarity", steps=4)


def test_the_loop_applies_the_term_and_keeps_its_state(terms: Path, tmp_path: Path) -> None:
    config = load(["--run.dir", str(tmp_path), "--learner.steps", "3"])
    run, parts = make_run(config)
    run.step_reward = StepReward(f"{terms}:rarity", steps=3)
    run.train()
    assert run.state.step_reward["seen"] == 3
    trained = [call.kwargs["batch"] for call in parts.ranks.run.call_args_list if call.args[0] == "train"]
    again, _ = StepReward(f"{terms}:rarity", steps=3)(random_batch(1), 1, {})
    assert [r.score.reward for g in trained[1] for r in g.rollouts] == [
        r.score.reward for g in again for r in g.rollouts
    ]
    snapshot, _ = run.state.capture()
    assert snapshot.step_reward == run.state.step_reward


def test_an_answer_that_was_not_scored_is_masked(terms: Path) -> None:
    learner = load([]).learner
    group = random_batch(4)[0]
    missing = unscored(group, 1)
    left = group.model_copy(update={"rollouts": [one for n, one in enumerate(group.rollouts) if n != 1]})
    found = group_advantages(missing, learner)
    assert found[1] == 0 and np.delete(found, 1) == pytest.approx(group_advantages(left, learner))
    samples, _ = group_samples([missing], learner)
    assert len(samples) == 3 and not any(sample.rollout is missing.rollouts[1] for sample in samples)
    observed = router_observations([missing], ["de", "en", "zh"], gated=True)[0]
    assert len(observed.rewards) == len(group.rollouts) - 1
    for number in range(len(group.rollouts)):
        missing = unscored(missing, number)
    assert group_outcome(missing, learner) == "masked" and not group_samples([missing], learner)[0]
    by_term, _ = StepReward(f"{terms}:first_is_missing", steps=4)([group], 0, {})
    assert [one.score.scored for one in by_term[0].rollouts] == [False, True, True, True]
    assert group_advantages(by_term[0], learner)[0] == 0
