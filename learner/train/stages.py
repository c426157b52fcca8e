"""Where the policy chooses its language (ExpLang): rewards that need the whole step, and what is shown of choices."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from common.config import StageConfig
from common.languages import POLICY_CHOOSES
from common.wire import Rollout, Work
from learner.evaluate.choices import RIGHT, accuracy
from learner.groups import Group
from router import Context, Observation

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def running_shares(chosen: Sequence[str], before: Mapping[str, float], ema: float) -> Mapping[str, float]:
    """Share of each language among choices: ``ema`` of it from these, the rest from ``before`` where there is one."""
    if not chosen:
        return before
    new = {language: count / len(chosen) for language, count in Counter(chosen).items()}
    if not before:
        return new
    return {one: ema * new.get(one, 0.0) + (1 - ema) * before.get(one, 0.0) for one in {**before, **new}}


def diversity(chosen: Sequence[str], kept: Bools, before: Mapping[str, float], ema: float) -> Floats:
    """d = p_min / p of its language for a choice that was kept to, else 0: [n].

    p are the running shares of all choices, p_min is the smallest one of those kept to. With ema = 1 this is
    (n / count) over its maximum. ``chosen`` is "" where no language was named, which is never kept to.
    """
    shares = running_shares([one for one in chosen if one], before, ema)
    least = min((shares[one] for one, good in zip(chosen, kept, strict=True) if good), default=0.0)
    return np.array([least / shares[one] if good else 0.0 for one, good in zip(chosen, kept, strict=True)])


def success(languages: Sequence[str], right: Bools) -> Floats:
    """1 where any answer in the same language is right, else 0: [n]."""
    won = {language for language, good in zip(languages, right, strict=True) if good and language}
    return np.array([float(language in won) for language in languages])


def rewarded(
    batch: list[Group], stage: StageConfig | None, before: Mapping[str, float]
) -> tuple[list[Group], Mapping[str, float]]:
    """The batch with the stage's rewards for all rollouts k of a group, F those that chose their language:

        q_k = correctness · quality_k + compliance · compliant_k
        s_k = selection · well-formed_k + diversity · d_k + success · u_k
        r_k = q_k + (s_k if k ∈ F, else the mean of s over F; 0 where F is empty)

    So what both kinds of rollouts do is compared across all, and choices among the free alone: one that was routed
    counts as a mean chooser, and moves nobody's advantage by having no header of its own. Without a stage rewards stay.

    Args:
        before: running shares of the choices until the step before; returned as they are after it.
    """
    if stage is None:
        return batch, before
    rollouts = [rollout for group in batch for rollout in group.rollouts]
    scores = [rollout.score for rollout in rollouts]
    free = np.array([asked == POLICY_CHOOSES for group in batch for asked in group.work.languages])
    named = np.array([rollout.language for rollout in rollouts])
    quality, kept = np.array([score.quality for score in scores]), np.array([score.compliant for score in scores])
    groups = np.split(np.arange(len(rollouts)), np.cumsum([len(group.rollouts) for group in batch])[:-1])
    parts = {"batch": [np.arange(len(rollouts))], "group": groups}
    d, u = np.zeros(len(rollouts)), np.zeros(len(rollouts))
    for part in parts[stage.diversity_over]:
        who = part[free[part]]
        d[who] = diversity(named[who].tolist(), kept[who], before, stage.diversity_ema)
    for part in parts[stage.success_over]:
        u[part] = success(named[part].tolist(), quality[part] >= RIGHT) * free[part]
    well_formed = np.array([score.terms.get("selection", 0.0) for score in scores])
    choice = stage.selection * well_formed + stage.diversity * d + stage.success * u
    for part in groups:
        choice[part[~free[part]]] = choice[part[free[part]]].mean() if free[part].any() else 0.0
    reward = stage.correctness * quality + stage.compliance * kept + choice

    def changed(k: int) -> Rollout:
        more = {"diversity": float(d[k]), "success": float(u[k])} if free[k] else {}
        score = scores[k].model_copy(update={"reward": float(reward[k]), "terms": scores[k].terms | more})
        return rollouts[k].model_copy(update={"score": score})

    after = running_shares([one for one in named[free].tolist() if one], before, stage.diversity_ema)
    pairs = zip(batch, groups, strict=True)
    return [group.model_copy(update={"rollouts": [*map(changed, part)]}) for group, part in pairs], after


def settled(group: Group) -> Work:
    """The work with chosen languages filled in; their propensity is what the policy gave the header it wrote."""
    work, languages = group.work, [rollout.language for rollout in group.rollouts]
    pairs = zip(work.languages, work.propensities, group.rollouts, strict=True)
    chances = [
        float(np.exp(header_logp(rollout))) if asked == POLICY_CHOOSES else chance for asked, chance, rollout in pairs
    ]
    return work.model_copy(update={"languages": languages, "propensities": chances})


def header_logp(rollout: Rollout) -> float:
    """Behaviour log-probability of the header, nats."""
    return float(rollout.logprobs[: rollout.header].sum(dtype=np.float64))


def observations(batch: Sequence[Group], languages: Collection[str]) -> list[Observation]:
    """What the router learns from: the gated quality of every answer in one of its languages, whoever picked that."""
    found = []
    for group in batch:
        asked, known = group.work.question, [one for one in group.rollouts if one.language in languages]
        kept = tuple(rollout.score.compliant for rollout in known)
        rewards = tuple(rollout.score.quality * rollout.score.compliant for rollout in known)
        context = Context.of(asked.language, asked.topics, asked.regions)
        found.append(Observation(context, tuple(rollout.language for rollout in known), rewards, kept))
    return found


def metrics(batch: Sequence[Group]) -> dict[str, float]:
    """Of the choices of a step: empty without any. Entropies are in nats.

    ``choice_entropy`` is that of the shares; ``header_entropy``, the mean of -log p(header), estimates that of the
    header of one question; ``accuracy_kept`` counts answers that left their language as wrong.
    """
    free, topics = list[Rollout](), defaultdict[str, list[str]](list)
    for group in batch:
        for asked, rollout in zip(group.work.languages, group.rollouts, strict=True):
            if asked == POLICY_CHOOSES:
                free.append(rollout)
                for topic in ("all", *group.work.question.topics):
                    topics[topic.replace("/", "-")].append(rollout.language or "none")
    if not free:
        return {}
    named = Counter(rollout.language for rollout in free if rollout.language)
    told = {
        f"{metric}/{one}": v for one in named for metric, v in accuracy(r for r in free if r.language == one).items()
    }
    for topic, languages in topics.items():
        told |= {f"share {topic}/{one}": count / len(languages) for one, count in Counter(languages).items()}
    return told | accuracy(free) | {
        "choice_entropy": -sum(n / named.total() * math.log(n / named.total()) for n in named.values()),
        "header_entropy": -float(np.mean([header_logp(rollout) for rollout in free])),
        "well_formed": float(np.mean([rollout.score.terms.get("selection", 0.0) for rollout in free])),
    }  # fmt: skip
