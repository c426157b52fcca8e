"""The tables of logits: LRPO's update as its public code does it, and the same idea pooled."""

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

    Args:
        ema: rate of an arm towards its credit.
        region_topics: regions count for questions of these topics; empty: for all.
    """

    arms: int
    ema: float
    norm: GroupNorm
    region_topics: Sequence[str] = ()
    own_language: bool = False
    rows: dict[str, Array] = field(default_factory=dict)  # "topic:NAME", "region:NAME", "question:LANGUAGE" -> [L]

    def of(self, contexts: Sequence[Context]) -> Array:
        """``z = Σ A[t] + 1[has region] Σ B[g] (+ C[q])`` for each context, [C, L]."""
        result = np.zeros((len(contexts), self.arms))
        for z, context in zip(result, contexts, strict=True):
            names = [f"topic:{name}" for name in context.topics]
            if not self.region_topics or set(self.region_topics) & set(context.topics):
                names += [f"region:{name}" for name in context.regions]
            for name in [*names, f"question:{context.language}"]:
                z += self.rows.get(name, 0.0)
        return result

    def reference(self, batch: Batch) -> None:
        """The update of LRPO's public code (arXiv 2605.25360), faults included.

        Rewards are averaged by (topic, region, language), a missing region being a region of its own; ``norm`` compares
        the means of one (topic, region); then each, in the order in which it first occurred, moves A[topic, language],
        and B[region, language] if that topic's regions count. A topic met with 24 regions so moves 24 times, by an
        amount that depends on their order.
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
        """One step for each arm: ``A[t, l] += ema n / (n + prior) (v - A[t, l])``, and likewise B and C.

        v is the mean of the row's (topic, region) buckets after ``norm``, weighted by their n rollouts in l. Arms
        without rollouts keep their value, those with few move little, and the rollouts' order does not matter.

        Args:
            credit: [C, L] mean credit of the rollouts of each context in each language.
            counts: [C, L] those rollouts, but for questions all in one language, which compare none.
        """
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
        """Positions of the contexts whose rollouts are compared together, by the rows they move."""
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
