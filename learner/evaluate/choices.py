"""Where the policy chooses its answer language: its sampled answers compared with those in languages it was given.

Each question is asked in up to four settings, with the same number of sampled answers in each: "free", the policy
chooses; "routed", as the run routes it; "seen", one language of the run; "unseen", one of ``learner.evaluate_unseen``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from random import Random
from typing import TypeAlias

import numpy as np

from common import diagnostics
from common.config import LearnerConfig
from common.diagnostics import is_right, solves
from common.languages import POLICY_CHOOSES
from common.wire import Question, Rollout
from learner.evaluate.diagnostics import samples, tagged
from learner.groups import Group
from router import Router

LanguagesBySetting: TypeAlias = dict[str, list[str]]  # setting -> the language asked of each of its answers


def languages_by_setting(
    question: Question, router: Router, languages: Sequence[str], config: LearnerConfig
) -> LanguagesBySetting:
    """The languages to ask of a question in each setting, ``config.evaluate_samples`` a setting.

    Random choices are seeded with the question's row, so a question is asked the same at every evaluation; only the
    "routed" setting moves, with the router's distribution. Where the policy chooses all languages of the training, it
    draws uniformly.
    """
    random, samples = Random(question.index), config.evaluate_samples
    shares = router.answer_shares(question.language, question.topics, question.regions)
    shares = shares or dict.fromkeys(languages, 1.0)
    routed = random.choices([*shares], [*shares.values()], k=samples)
    asked = {"free": [POLICY_CHOOSES] * samples, "routed": routed}
    for setting, candidates in {"seen": languages, "unseen": config.evaluate_unseen}.items():
        if candidates:
            asked[setting] = [random.choice(candidates)] * samples
    return asked


def compare_settings(
    groups: Sequence[Group], asked: Mapping[int, LanguagesBySetting], detector: str
) -> dict[str, float]:
    """The figures of every setting, named ``setting_metric``, and its diagnostics under the names of ``tagged``.

    The metrics are those of :func:`accuracy`, ``tokens`` an answer, and pass@k for every power of two k up to the
    number n of answers to a question in a setting: the mean over questions of

        pass@k = 1 - C(n - c, k) / C(n, k)

    of which c are right and in their language. Where nothing says which answers are right there is no pass@k.

    Args:
        groups: one a question, with the answers of all its settings one after the other.
        asked: row of the question -> what :func:`languages_by_setting` gave for it.
        detector: ``reward.diagnostics``.

    A question of which an answer could not be scored is left out of that answer's setting; a setting that has no
    question left has no figures.
    """
    answers: defaultdict[str, list[list[Rollout]]] = defaultdict(list)  # setting -> question -> answers
    for group in groups:
        rollouts = iter(group.rollouts)
        for setting, languages in asked[group.work.question.index].items():
            of_setting = [next(rollouts) for _ in languages]
            if all(rollout.score.scored for rollout in of_setting):
                answers[setting].append(of_setting)
    figures: dict[str, float] = {}
    for setting, by_question in answers.items():
        every = list(chain.from_iterable(by_question))
        metrics = accuracy(every) | {"tokens": float(np.mean([len(rollout.response_ids) for rollout in every]))}
        figures |= {f"{setting}_{name}": value for name, value in (metrics | pass_at_k(by_question)).items()}
        diagnosed = diagnostics.summarise(samples(every))
        figures |= tagged({name: diagnosed[name] for name in diagnosed.keys() - metrics.keys()}, detector, setting)
    return figures


def pass_at_k(by_question: Sequence[Sequence[Rollout]]) -> dict[str, float]:
    """``pass@1``, ``pass@2``, ``pass@4`` … of equally many answers to each question; see :func:`compare_settings`.

    Questions of which some answer may be right or not, for all that is known, are left out.
    """
    n = len(by_question[0])
    solved = [[solves(one.score, gated=True) for one in answers] for answers in by_question]
    right = [sum(map(bool, answers)) for answers in solved if None not in answers]
    if not right:
        return {}
    powers = (2**exponent for exponent in range(n.bit_length()))
    return {f"pass@{k}": float(np.mean([diagnostics.pass_at_k(n, c, k) for c in right])) for k in powers}


def accuracy(rollouts: Iterable[Rollout]) -> dict[str, float]:
    """Shares of the rollouts: ``compliance`` in their language, ``accuracy`` right, ``accuracy_kept`` both.

    The last two are of the rollouts of which something says whether they are right, and left out where there are none.
    """
    pairs = [(is_right(one.score.quality, one.score.terms), one.score.compliant) for one in rollouts]
    known = np.array([(right, kept) for right, kept in pairs if right is not None], np.bool_)
    found = {"compliance": float(np.mean([kept for _, kept in pairs]))}
    if len(known):
        found |= {"accuracy": float(known[:, 0].mean()), "accuracy_kept": float(known.all(1).mean())}
    return found
