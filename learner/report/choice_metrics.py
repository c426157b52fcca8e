"""The metrics of the languages that the policy itself chose; docs/metrics.md explains each of them. Pure functions."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from common.languages import POLICY_CHOOSES
from common.wire import Rollout
from learner.evaluate.choices import accuracy
from learner.groups import Group
from learner.work.chosen import header_logp


def choice_metrics(batch: Sequence[Group]) -> dict[str, float]:
    """Metrics of the languages that the policy chose in a step; empty if it chose none.

    Answers that could not be scored count for the languages, and not for accuracy and compliance.

    ``choice_entropy`` is the entropy of the shares of the languages. ``header_entropy`` is the mean of −log p(header)
    over the answers with a header, which estimates its entropy given the question. Both are in nats. The other names
    are explained in docs/metrics.md, under ``selection``.
    """
    free, by_topic = list[Rollout](), defaultdict[str, list[str]](list)
    for group in batch:
        for asked, rollout in zip(group.work.languages, group.rollouts, strict=True):
            if asked == POLICY_CHOOSES:
                free.append(rollout)
                for topic in ("all", *group.work.question.topics):
                    by_topic[topic.replace("/", "-")].append(rollout.language or "none")
    if not free:
        return {}
    named = Counter(rollout.language for rollout in free if rollout.language)
    scored = [rollout for rollout in free if rollout.score.scored]
    metrics = {
        f"{metric}/{one}": v
        for one in named
        if (some := [r for r in scored if r.language == one])
        for metric, v in accuracy(some).items()
    }
    if headers := [header_logp(rollout) for rollout in free if rollout.header]:
        metrics["header_entropy"] = -float(np.mean(headers))
    for topic, languages in by_topic.items():
        metrics |= {f"share {topic}/{one}": count / len(languages) for one, count in Counter(languages).items()}
    return metrics | (accuracy(scored) if scored else {}) | {
        "choice_entropy": -sum(n / named.total() * math.log(n / named.total()) for n in named.values()),
        "well_formed": float(np.mean([rollout.score.terms.get("selection", 0.0) for rollout in free])),
    }  # fmt: skip
