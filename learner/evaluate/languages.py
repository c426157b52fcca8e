"""What greedy answers are worth: each question is asked in every language, so that any way of routing can be read off.

Shapes: Q questions, L languages of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import wire
from common.diagnostics import summarise
from learner.evaluate.diagnostics import samples, tagged
from learner.groups import Group
from router import Router


@dataclass(frozen=True)
class Evaluation:
    """Mean greedy reward of a set of questions, by the way in which the answer language is chosen.

    Args:
        questions: how many were answered, and all their answers scored.
        own: in the question's own language; the headline.
        oracle: in the best language for each question.
        best_fixed: in the one language that is best for all questions together.
        best_fixed_language: that language.
        english: in English; None where English is no language of the run.
        uniform: in a language drawn uniformly.
        routed: in the languages in which the run answers besides the question's own, as its ``router.mode`` draws or
            fixes them (:meth:`router.Router.answer_shares`); None where the policy chooses them all.
        compliance: share of the answers in the question's own language that are in the language asked for.
        own_by_language: ``own`` by the question's language.
        diagnostics: of the answers in the question's own language, by tag (``learner/evaluate/diagnostics.py``).
    """

    questions: int
    own: float
    oracle: float
    best_fixed: float
    best_fixed_language: str
    english: float | None
    uniform: float
    routed: float | None
    compliance: float
    own_by_language: dict[str, float]
    diagnostics: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_reward_matrix(groups: Sequence[Group], languages: Sequence[str], router: Router, detector: str) -> Evaluation:
    """Reads every way of choosing the language off the matrix of greedy rewards, [Q, L].

    Args:
        groups: [Q], each answered in ``languages`` first and, where it is none of these, in the question's own last.
        languages: [L], in the router's order.
        router: says how each question is routed.
        detector: ``reward.diagnostics``.

    A question of which an answer could not be scored is left out, so that all ways are compared on the same ones.
    """
    groups = fully_scored(groups)
    rewards_Q_L: NDArray[np.float64] = np.array(
        [[rollout.score.reward for rollout in group.rollouts[: len(languages)]] for group in groups]
    )
    questions = [group.work.question for group in groups]
    routed = [reward for group in groups if (reward := _routed_reward(group, router)) is not None]
    own = [_answer_in_own_language(group) for group in groups]
    own_by_language: dict[str, list[float]] = {}
    for question, rollout in zip(questions, own, strict=True):
        own_by_language.setdefault(question.language, []).append(rollout.score.reward)
    best = int(rewards_Q_L.mean(0).argmax())
    return Evaluation(
        questions=len(groups),
        own=float(np.mean([rollout.score.reward for rollout in own])),
        oracle=float(rewards_Q_L.max(1).mean()),
        best_fixed=float(rewards_Q_L.mean(0)[best]),
        best_fixed_language=languages[best],
        english=float(rewards_Q_L[:, list(languages).index("en")].mean()) if "en" in languages else None,
        uniform=float(rewards_Q_L.mean()),
        routed=float(np.mean(routed)) if len(routed) == len(groups) else None,
        compliance=float(np.mean([rollout.score.compliant for rollout in own])),
        own_by_language={language: float(np.mean(values)) for language, values in sorted(own_by_language.items())},
        diagnostics=tagged(summarise(samples(own)), detector),
    )


def fully_scored(groups: Sequence[Group]) -> list[Group]:
    """The groups whose answers were all scored."""
    return [group for group in groups if all(rollout.score.scored for rollout in group.rollouts)]


def _routed_reward(group: Group, router: Router) -> float | None:
    """The expected reward of a routed answer to the group's question; None where the policy chooses its language."""
    question = group.work.question
    shares = router.answer_shares(question.language, question.topics, question.regions)
    if shares is None:
        return None
    rewards = {
        language: rollout.score.reward for language, rollout in zip(group.work.languages, group.rollouts, strict=True)
    }
    return sum(share * rewards[language] for language, share in shares.items())


def _answer_in_own_language(group: Group) -> wire.Rollout:
    return group.rollouts[group.work.languages.index(group.work.question.language)]
