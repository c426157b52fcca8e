"""The paper's tables of logits, an alternative to the beliefs of :mod:`router.posterior` (``router.credit``).

There are two ways to update them: "reference" is LRPO's update as its public code does it, and "pooled" is the same
idea without the faults of that code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from router.observations import Array, Batch, Context

GroupNorm: TypeAlias = Literal["none", "center", "zscore"]

_STD_FLOOR = 1e-6


@dataclass
class Logits:
    """Rows A[topic], B[region] and, with ``own_language``, C[question's language], of L logits each.

    Attributes:
        arms: L.
        ema: the rate at which a logit moves towards its credit, in (0, 1).
        norm: how the mean rewards of the languages of one (topic, region) are compared: as they are, centred, or as
            z-scores.
        region_topics: regions count only for questions of these topics; empty: for all questions.
        own_language: whether the language of the question has a row.
        rows: by name, "topic:NAME", "region:NAME" or "question:LANGUAGE", the logits [L]. A missing row is 0. The row
            "shared:" is added to those of every context; it is given from outside and never moves.
        seen: for pooled credit, the sum and the number of compliant rewards, and the number of all; old ones fade.
    """

    arms: int
    ema: float
    norm: GroupNorm
    region_topics: Sequence[str] = ()
    own_language: bool = False
    rows: dict[str, Array] = field(default_factory=dict)
    seen: Array = field(default_factory=lambda: np.array([0.5, 1.0, 1.0]))

    def weights(self, compliance_weight: float) -> Array:
        """The weights of quality and of compliance in pooled credit: [2].

        They are the mean compliance, and ``compliance_weight`` times the mean quality. With a weight of 1 the credit is
        that of the expected reward, quality times compliance, to first order around the means.
        """
        quality, compliant, rollouts = self.seen
        return np.array([compliant / rollouts, compliance_weight * quality / max(compliant, 1e-9)])

    def of(self, contexts: Sequence[Context]) -> Array:
        """The logits of each context, ``z = S + Σ A[t] + Σ B[g] (+ C[q])``: float64 [C, L]. S is the shared row."""
        result = np.zeros((len(contexts), self.arms))
        for z, context in zip(result, contexts, strict=True):
            names = [f"topic:{name}" for name in context.topics]
            if not self.region_topics or set(self.region_topics) & set(context.topics):
                names += [f"region:{name}" for name in context.regions]
            for name in ["shared:", *names, f"question:{context.language}"]:
                z += self.rows.get(name, 0.0)
        return result

    def alone(self, names: Sequence[str]) -> Array:
        """The rows of these names, as they are: float64 [rows, L]."""
        return np.array([self.rows.get(name, np.zeros(self.arms)) for name in names])

    def update_as_published(self, batch: Batch) -> None:
        """Updates the logits as LRPO's public code (arXiv 2605.25360) does, with its faults.

        Rewards are averaged by (topic, region, language), where a missing region counts as a region of its own.
        ``norm`` compares the means of one (topic, region). Then each of them, in the order in which it first occurred,
        moves A[topic, language], and B[region, language] if that topic's regions count. A topic that occurs with 24
        regions therefore moves 24 times, by an amount that depends on their order.
        """
        buckets: dict[tuple[str, str | None, int], list[float]] = {}
        for context, arm, reward in zip(batch.context.tolist(), batch.arm.tolist(), batch.reward.tolist(), strict=True):
            for topic in batch.contexts[context].topics:
                for region in batch.contexts[context].regions or (None,):
                    buckets.setdefault((topic, region, arm), []).append(reward)
        compared: dict[tuple[str, str | None], list[float]] = defaultdict(list)
        for (topic, region, _), rewards in buckets.items():
            compared[topic, region].append(sum(rewards) / len(rewards))
        normalised = {key: iter(_normalised(np.array(means), self.norm).tolist()) for key, means in compared.items()}
        for topic, region, arm in buckets:
            value = next(normalised[topic, region])
            names = [f"topic:{topic}"]
            if region is not None and (not self.region_topics or topic in self.region_topics):
                names.append(f"region:{region}")
            for name in names:
                row = self._row(name)
                row[arm] += self.ema * (value - row[arm])

    def pooled(self, batch: Batch, credit: Array, counts: Array, prior: float) -> None:
        """Moves each logit once: ``A[t, l] += ema n / (n + prior) (v - A[t, l])``, and likewise B and C.

        v is the mean of the row's (topic, region) buckets after ``norm``, weighted by their n rollouts in l. A logit
        without rollouts keeps its value, one with few moves little, and the order of the rollouts does not matter.

        Args:
            batch: what was observed.
            credit: [C, L] the mean credit of the rollouts of each context in each language.
            counts: [C, L] the number of those rollouts, except in questions that were answered in one language only,
                because these compare no languages.
            prior: the number of rollouts for which a logit moves half as far as with very many.
        """
        self.seen *= 1 - self.ema
        self.seen += [batch.reward[batch.compliant].sum(), batch.compliant.sum(), len(batch.arm)]
        total: dict[str, Array] = defaultdict(lambda: np.zeros((2, self.arms)))  # sum and number of rollouts
        for names, members in self._buckets(batch.contexts).items():
            number = counts[members].sum(0)
            mean = (counts[members] * credit[members]).sum(0) / np.maximum(number, 1)
            value = np.zeros(self.arms)
            value[number > 0] = _normalised(mean[number > 0], self.norm)
            for name in filter(None, names):
                total[name] += [number * value, number]
        for name, (values, number) in total.items():
            row = self._row(name)
            row += self.ema * number / (number + prior) * (values / np.maximum(number, 1) - row)

    def _buckets(self, contexts: Sequence[Context]) -> Mapping[tuple[str, ...], list[int]]:
        """The indices of the contexts whose rollouts are compared together, by the names of the rows that they move."""
        buckets: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, context in enumerate(contexts):
            for topic in [f"topic:{name}" for name in context.topics] or [""]:
                for region in [f"region:{name}" for name in context.regions] or [""]:
                    buckets[topic, region].append(number)
            if self.own_language and context.language:
                buckets[f"question:{context.language}",].append(number)
        return buckets

    def _row(self, name: str) -> Array:
        return self.rows.setdefault(name, np.zeros(self.arms))


def _normalised(means: Array, norm: GroupNorm) -> Array:
    if norm == "none" or not means.size:
        return means
    centred: Array = means - means.mean()
    return centred if norm == "center" else centred / (means.std() + _STD_FLOOR)
