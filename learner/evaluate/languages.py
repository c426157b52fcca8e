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

    An answer that could not be scored is left out of every figure that needs it: ``own`` and what follows from it needs
    a question's answer in its own language; the others compare languages, and need all answers to a question.

    Args:
        questions: how many have a scored answer in their own language.
        unscored: share of all answers that could not be scored.
        own: in the question's own language; the headline.
        oracle: in the best language for each question; None, as the next five, where no question has all its answers
            scored, or questions are asked in their own languages alone, because prompts do not say the language.
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
    unscored: float
    own: float
    oracle: float | None
    best_fixed: float | None
    best_fixed_language: str | None
    english: float | None
    uniform: float | None
    routed: float | None
    compliance: float
    own_by_language: dict[str, float]
    diagnostics: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_reward_matrix(
    groups: Sequence[Group], languages: Sequence[str], router: Router, detector: str
) -> Evaluation | None:
    """Reads every way of choosing the language off the matrix of greedy rewards, [Q, L].

    Args:
        groups: [Q], each answered in ``languages`` first and, where it is none of these, in the question's own last.
        languages: [L], in the router's order; may be none.
        router: says how each question is routed.
        detector: ``reward.diagnostics``.

    Returns:
        The figures; None where no question has a scored answer in its own language.
    """
    answers = [rollout for group in groups for rollout in group.rollouts]
    own, own_by_language = list[wire.Rollout](), dict[str, list[float]]()
    for group in groups:
        rollout = _answer_in_own_language(group)
        if rollout.score.scored:
            own.append(rollout)
            own_by_language.setdefault(group.work.question.language, []).append(rollout.score.reward)
    if not own:
        return None
    scored = [group for group in groups if all(rollout.score.scored for rollout in group.rollouts)]
    return Evaluation(
        questions=len(own),
        unscored=float(np.mean([not rollout.score.scored for rollout in answers])),
        own=float(np.mean([rollout.score.reward for rollout in own])),
        compliance=float(np.mean([rollout.score.compliant for rollout in own])),
        own_by_language={language: float(np.mean(values)) for language, values in sorted(own_by_language.items())},
        diagnostics=tagged(summarise(samples(own)), detector),
        **_compare_languages(scored, languages, router),
    )


def _compare_languages(groups: Sequence[Group], languages: Sequence[str], router: Router) -> dict[str, Any]:
    """The figures of an :class:`Evaluation` that compare languages, of groups whose answers were all scored."""
    if not groups or not languages:
        return dict.fromkeys(("oracle", "best_fixed", "best_fixed_language", "english", "uniform", "routed"))
    rewards_Q_L: NDArray[np.float64] = np.array(
        [[rollout.score.reward for rollout in group.rollouts[: len(languages)]] for group in groups]
    )
    routed = [reward for group in groups if (reward := _routed_reward(group, router)) is not None]
    best = int(rewards_Q_L.mean(0).argmax())
    return {
        "oracle": float(rewards_Q_L.max(1).mean()),
        "best_fixed": float(rewards_Q_L.mean(0)[best]),
        "best_fixed_language": languages[best],
        "english": float(rewards_Q_L[:, list(languages).index("en")].mean()) if "en" in languages else None,
        "uniform": float(rewards_Q_L.mean()),
        "routed": float(np.mean(routed)) if len(routed) == len(groups) else None,
    }


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
