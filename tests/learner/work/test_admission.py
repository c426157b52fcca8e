"""Groups that cannot be trained on are refused with the reason, and too long answers cut; nothing else is touched."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import LearnerConfig
from common.languages import POLICY_CHOOSES
from common.wire import Rollout
from learner.groups import Group
from learner.train.outcomes import group_outcome
from learner.train.samples import group_samples
from learner.work.admission import UNLIMITED, Limits, cut_to_fit, find_problem
from tests.support.groups import random_rollout, seeded_generator, work

LIMITS = Limits(vocabulary=320, tokens=60)


def rollouts(**changes: Any) -> list[Rollout]:
    """Three answers; the second one is changed."""
    rng = seeded_generator()
    answers = [random_rollout(rng) for _ in range(3)]
    score = answers[1].score.model_copy(update=changes.pop("score", {}))
    return [answers[0], answers[1].model_copy(update={**changes, "score": score}), answers[2]]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"response_ids": np.zeros(0, np.int32)}, r": 0 tokens, \d+ log-probabilities"),
        ({"logprobs": np.zeros(99, np.float32)}, r": \d+ tokens, 99 log-probabilities"),
        ({"versions": np.zeros(99, np.int32)}, r": \d+ tokens, \d+ log-probabilities, 99 versions"),
        ({"prompt_ids": np.zeros(0, np.int32)}, r": 0 prompt tokens, learner.microbatch_tokens = 60"),
        ({"prompt_ids": np.zeros(60, np.int32)}, r": 60 prompt tokens, learner.microbatch_tokens = 60"),
        ({"prompt_ids": np.array([3, 320], np.int32)}, r": token 320, vocabulary 320"),
        ({"prompt_ids": np.array([3, -1], np.int32)}, r": token -1, vocabulary 320"),
        ({"score": {"reward": float("nan")}}, r": reward nan, quality 0.5"),
        ({"score": {"quality": float("inf")}}, r", quality inf"),
        ({"score": {"similarity": float("nan")}}, r": similarity nan"),
        ({"score": {"drift": float("-inf")}}, r": drift -inf"),
        ({"score": {"terms": {"judge": 0.5, "length": float("nan")}}}, r": length nan"),
        ({"header": -1}, r": a header of -1 tokens in a response of \d+"),
        ({"header": 99}, r": a header of 99 tokens in a response of \d+"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_named(changes: dict[str, Any], complaint: str) -> None:
    answers = rollouts(**changes)
    asked = work(0, [answer.language for answer in answers])
    found = find_problem(asked, answers, LIMITS, 0)
    assert re.match(rf"answer 2 \({answers[1].language}\).*{complaint}", found), found


def test_what_names_no_language_cannot_be_in_the_one_that_it_names() -> None:
    """A stage's diversity would look up the share of a language that nobody has chosen."""
    for compliant in (True, False):
        answers = rollouts(language="", score={"compliant": compliant})
        asked = work(0, [answers[0].language, POLICY_CHOOSES, answers[2].language])
        for limits in (LIMITS, UNLIMITED):
            found = find_problem(asked, answers, limits, 0)
            assert found.startswith("answer 2: it names no language") if compliant else not found


def test_good_answers_pass_and_a_log_probability_that_is_not_finite_does_not() -> None:
    answers = rollouts()
    asked = work(0, [answer.language for answer in answers])
    assert not find_problem(asked, answers, LIMITS, 0) and not find_problem(asked, answers, UNLIMITED, 0)
    for value, complaint in (
        (np.nan, "not finite"), (-np.inf, "not finite"), (np.inf, "not finite"), (0.25, "0.25, which is above 0"),
    ):  # fmt: skip
        answers[2].logprobs[-1] = value
        assert re.match(rf"answer 3 .*{complaint}", find_problem(asked, answers, LIMITS, 0))
    answers[2].logprobs[-1] = 1e-6
    assert not find_problem(asked, answers, LIMITS, 0), "rounding may do that to the logarithm of 1"


@settings(max_examples=50)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 5), st.data())
def test_every_token_is_of_a_version_between_its_lease_and_now_and_within_the_bound(
    leased_at: int, since: int, bound: int, data: st.DataObject
) -> None:
    """Compared with the rule for each token, as it is written."""
    newest, wide = leased_at + since, st.integers(-(2**31), 2**31 - 1)
    version = st.integers(leased_at - 2, newest + 2) | wide
    versions = np.array(data.draw(st.lists(version, min_size=1, max_size=5)), np.int32)
    ids, logprobs = np.full(len(versions), 3, np.int32), np.full(len(versions), -1.0, np.float32)
    (answer,) = rollouts(response_ids=ids, logprobs=logprobs, versions=versions, header=0)[1:2]
    asked = work(0, [answer.language]).model_copy(update={"policy_version": leased_at})
    found = find_problem(asked, [answer], Limits(320, 60, bound), newest)
    expected = all(leased_at <= one <= newest and newest - one <= bound for one in versions.tolist())
    assert (not found) == expected, found
    if not expected:
        assert f"versions {versions.min()} to {versions.max()};" in found


def test_an_answer_must_be_in_the_language_asked_for_unless_the_policy_chooses() -> None:
    answers = rollouts()
    languages = [answer.language for answer in answers]
    assert not find_problem(work(0, [POLICY_CHOOSES, *languages[1:]]), answers, LIMITS, 0)
    for asked in ([*languages[:2], "xx"], languages[:2], [*languages, POLICY_CHOOSES]):
        assert find_problem(work(0, asked), answers, LIMITS, 0) == "the rollouts are not in the languages asked for"


def test_a_policy_that_chooses_may_choose_the_languages_of_the_run_and_terms_have_names_that_a_metric_can_have() -> (
    None
):
    answers, limits = rollouts(language="tlh"), Limits(320, 60, languages={"en", "de", "zh"})
    asked = work(0, [POLICY_CHOOSES] * 3)
    assert find_problem(asked, answers, limits, 0).startswith("answer 2: the policy cannot have chosen 'tlh'")
    assert not find_problem(asked, answers, LIMITS, 0), "where nothing is said of languages"
    unnamed = rollouts(language="", score={"compliant": False})
    assert not find_problem(asked, unnamed, limits, 0), "it named none"
    unseen = work(0, [POLICY_CHOOSES, "tlh", POLICY_CHOOSES])
    assert not find_problem(unseen, answers, limits, 0), "what was asked for may be no language of the run"
    for terms in ({"x" * 201: 0.5}, {str(n): 0.5 for n in range(101)}):
        answers = rollouts(score={"terms": terms})
        found = find_problem(work(0, [answer.language for answer in answers]), answers, LIMITS, 0)
        assert found.startswith(f"answer 2: {len(terms)} terms of the reward"), found


def test_large_but_finite_numbers_are_not_refused_although_their_sum_overflows() -> None:
    answers = rollouts(score={"quality": 1.5e308, "reward": 1.5e308})
    assert not find_problem(work(0, [answer.language for answer in answers]), answers, LIMITS, 0)


def test_answers_longer_than_a_micro_batch_are_cut_and_noted() -> None:
    answers = rollouts(
        prompt_ids=np.arange(20, dtype=np.int32),
        response_ids=np.arange(50, dtype=np.int32),
        logprobs=np.arange(50, dtype=np.float32),
        versions=np.arange(50, dtype=np.int32),
        header=45,
    )
    short, note = cut_to_fit(answers, LIMITS)
    assert note == "1 of 3 answers cut to learner.microbatch_tokens = 60"
    assert short[1].response_ids.tolist() == short[1].versions.tolist() == list(range(40)) and short[1].truncated
    assert len(short[1].logprobs) == short[1].header == 40 and short[1].score == answers[1].score
    assert short[0] is answers[0] and short[2] is answers[2]
    assert cut_to_fit(short, LIMITS) == (short, "")


def test_over_long_masking_keeps_the_answers_in_their_group_alone(rng: np.random.Generator) -> None:
    answers = [random_rollout(rng, reward=n / 3).model_copy(update={"truncated": n % 2 == 0}) for n in range(4)]
    group = Group(work=work(0, [answer.language for answer in answers]), actor="a", rollouts=answers)
    masked, plain = LearnerConfig(mask_truncated=True), LearnerConfig()
    everything, _ = group_samples([group], plain)
    remaining, _ = group_samples([group], masked)
    assert [sample.advantage for sample in remaining] == [everything[1].advantage, everything[3].advantage]
    assert sum(sample.weight * len(sample.rollout.response_ids) for sample in remaining) == pytest.approx(1)
    hopeless = group.model_copy(
        update={"rollouts": [answer.model_copy(update={"truncated": True}) for answer in answers]}
    )
    assert group_outcome(hopeless, masked) == "masked" and not group_samples([hopeless], masked)[0]
    assert group_outcome(group, masked) == group_outcome(hopeless, plain) == "trained"
