"""What greedy answers are worth: each question in every language, so that any way of routing can be read off."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import wire
from learner.groups import Group
from learner.work.scheduler import WorkQueue
from router import Router


@dataclass(frozen=True)
class Evaluation:
    """Mean greedy reward of a question set under the ways to choose its answer language.

    ``own`` answers in the question's language and is the headline; ``best_fixed`` is the language that is best for all
    questions together, ``oracle`` the best one for each, ``routed`` what the router would draw, uniform in fixed modes.
    """

    questions: int
    own: float
    oracle: float
    best_fixed: float
    best_fixed_language: str
    english: float | None  # None when it is no language of the run
    uniform: float
    routed: float
    compliance: float  # share of own-language answers in the language asked for
    own_by_language: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluation_queue(questions: int) -> WorkQueue[Group]:
    """All questions at once, each answered once; ``take`` gives them together."""
    return WorkQueue(groups_per_step=questions, staleness=0, window=1, attempts=3, total=questions)


def evaluation_work(
    name: str, sequence: int, question: wire.Question, languages: list[str], policy_version: int, *, greedy: bool = True
) -> wire.Work:
    return wire.Work(
        id=f"{name}-{sequence}",
        question=question,
        languages=languages,
        propensities=[1.0] * len(languages),
        router_version=0,
        policy_version=policy_version,
        greedy=greedy,
    )


def summarise(groups: list[Group], languages: list[str], router: Router) -> Evaluation:
    """Reads the ways of routing off the reward matrix [questions, languages]."""
    rewards: NDArray[np.float64] = np.array([[r.score.reward for r in g.rollouts[: len(languages)]] for g in groups])
    own = [_own(group) for group in groups]
    asked = [group.work.question for group in groups]
    routed = [router.distribution(one.language, one.topics, one.regions) for one in asked]
    by_language: dict[str, list[float]] = {}
    for group, rollout in zip(groups, own, strict=True):
        by_language.setdefault(group.work.question.language, []).append(rollout.score.reward)
    best = int(rewards.mean(0).argmax())
    return Evaluation(
        questions=len(groups),
        own=float(np.mean([rollout.score.reward for rollout in own])),
        oracle=float(rewards.max(1).mean()),
        best_fixed=float(rewards.mean(0)[best]),
        best_fixed_language=languages[best],
        english=float(rewards[:, languages.index("en")].mean()) if "en" in languages else None,
        uniform=float(rewards.mean()),
        routed=float((rewards * np.array(routed)).sum(1).mean()),
        compliance=float(np.mean([rollout.score.compliant for rollout in own])),
        own_by_language={language: float(np.mean(values)) for language, values in sorted(by_language.items())},
    )


def _own(group: Group) -> wire.Rollout:
    return group.rollouts[group.work.languages.index(group.work.question.language)]
