"""What is believed of every arm, and on how much evidence: an additive Gaussian model of quality and compliance.

A rollout in language l of a question with topics t, regions g, written in q, is taken to be worth

    question + shared[l] + Σ topic[t, l] + Σ region[g, l] + own[q, l] + noise,

once for its quality (the rewards of compliant rollouts) and once for its compliance (0 or 1). Each term but the
question's starts as a normal one of mean 0 and the variance of the noise / ``prior``: a region never seen is worth what
its topic is, and departs from that as far as its evidence carries. The question's term makes difficulty no quality. An
update fits the terms in turn, from the shared to the special, each to what those before it and earlier updates left
over. Evidence fades by ``forget`` an update, so that an arm never stops following the policy; with little of it, it
moves little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import erf
from typing import Any

import numpy as np

from router.observations import Array, Batch, Cells, Context, Integers

QUALITY, COMPLIANCE = 0, 1
SHARED = "shared:"
_NOTHING = 0  # a row that is worth 0 for sure, for contexts with fewer rows than others
_GUESS = 0.25  # standard deviation of rewards, until some were seen
_FINE = 1000  # steps of the normal distribution's table, per standard deviation
_NORMAL = np.array([0.5 + 0.5 * erf(n / _FINE / 2**0.5) for n in range(-5 * _FINE, 5 * _FINE + 1)], np.float32)


class Beliefs:
    """Means and evidence of named rows of L arms; a row exists once a question with its name was met.

    Args:
        arms: L.
        prior: rollouts that the mean of 0 weighs.
        forget: share of the evidence lost in an update.
        own_language: whether the language of the question has a term.
        initial: [L] mean quality to begin a row with, by its name.
    """

    def __init__(
        self, arms: int, prior: float, forget: float, own_language: bool, initial: Mapping[str, Sequence[float]]
    ) -> None:
        self._prior, self._forget, self._own_language, self._initial = prior, forget, own_language, initial
        self.rows: dict[str, int] = {"": _NOTHING}  # shared:, topic:NAME, region:NAME, question:LANGUAGE
        self.mean = np.zeros((2, 1, arms))  # of quality and of compliance
        self.evidence = np.full((2, 1, arms), np.inf)  # in rollouts
        self.counts = np.zeros((1, arms))  # rollouts ever seen
        self._noise = np.array([[_GUESS**2, 1.0], [_GUESS**2, 1.0]])  # squares, and how many
        self._seen = np.array([0.5, 1.0, 1.0])  # sum of compliant rewards, how many, and rollouts of either kind
        self._met: dict[Context, None] = {}  # topics and regions that were observed together
        self._found: dict[Context, list[list[int]]] = {}  # rows of each kind

    @property
    def met(self) -> list[Context]:
        """Topics and regions that were observed together, in the order they were."""
        return list(self._met)

    def weights(self, compliance_weight: float) -> Array:
        """Of quality and of compliance in an arm's worth, [2]: mean compliance, and the weight times mean quality.

        With a weight of 1 the worth is the expected reward, quality x compliance, to first order about the means.
        """
        quality, compliant, rollouts = self._seen
        return np.array([compliant / rollouts, compliance_weight * quality / max(compliant, 1e-9)])

    @property
    def noise(self) -> Array:
        """Variance of the rollouts' quality and compliance beside what is believed, [2]."""
        ratio: Array = self._noise[:, 0] / self._noise[:, 1]
        return ratio

    def update(self, batch: Batch) -> None:
        """One pass over the terms, given the rollouts since the last one."""
        index = self.index(batch.contexts)
        self._met.update((context._replace(language=""), None) for context in batch.contexts)
        for fading in (self.evidence[:, 1:], self._noise, self._seen):
            fading *= 1 - self._forget
        self._seen += [batch.reward[batch.compliant].sum(), batch.compliant.sum(), len(batch.arm)]
        predicted = self._sum(self.mean, index)
        everyone = np.ones_like(batch.compliant)
        self._fit(QUALITY, index, batch.cells(batch.reward, batch.compliant, predicted[QUALITY]))
        self._fit(COMPLIANCE, index, batch.cells(batch.compliant.astype(np.float64), everyone, predicted[COMPLIANCE]))
        cell = batch.context * batch.arms + batch.arm
        counts = np.bincount(cell, minlength=predicted[0].size).reshape(predicted[0].shape).astype(np.float64)
        for rows in index:
            for column in rows.T:
                self._add(self.counts, column, counts)
        self.counts[_NOTHING] = 0

    def _fit(self, table: int, index: list[Integers], cells: Cells) -> None:
        self._noise[table] += [cells.squares, cells.freedom]
        left, mean, evidence = cells.sums.copy(), self.mean[table], self.evidence[table]
        for rows in index:
            share = 1 / np.maximum(np.count_nonzero(rows, axis=1), 1)[:, None]  # of each of several topics
            found, number, information = np.zeros_like(mean), np.zeros_like(mean), np.zeros_like(mean)
            for column in rows.T:
                self._add(found, column, left * share)
                self._add(number, column, cells.counts)
                self._add(information, column, cells.information)
            step = found / (self._prior + evidence + number)  # 0 for the row of nothing, whose evidence is infinite
            mean += step
            evidence += information
            left -= cells.counts * step[rows].sum(1)

    def _add(self, table: Array, rows: Integers, values: Array) -> None:
        """``table[row] += value`` for each of ``rows`` [C] and ``values`` [C, L]."""
        arms = table.shape[1]
        flat = (rows[:, None] * arms + np.arange(arms)).ravel()
        table += np.bincount(flat, values.ravel(), table.size).reshape(table.shape)

    def index(self, contexts: Sequence[Context]) -> list[Integers]:
        """The rows that speak for each context, by kind; [C, most names] each."""
        found = [self._found.get(context) or self._find(context) for context in contexts]
        result = []
        for kind in range(4):
            lists = [rows[kind] for rows in found]
            width = max(map(len, lists), default=0)
            result.append(np.array([rows + [_NOTHING] * (width - len(rows)) for rows in lists], np.intp))
        return result

    def _find(self, context: Context) -> list[list[int]]:
        own = [f"question:{context.language}"] if self._own_language and context.language else []
        names = [[SHARED], [f"topic:{n}" for n in context.topics], [f"region:{n}" for n in context.regions], own]
        rows = self._found[context] = [[self._row(name) for name in kind] for kind in names]
        return rows

    def _row(self, name: str) -> int:
        if name not in self.rows:
            row = self.rows[name] = len(self.rows)
            if row == len(self.counts):  # doubled, so that thousands of rows are not copied thousands of times
                self.mean, self.evidence, self.counts = (
                    np.pad(table, [(0, 0)] * (table.ndim - 2) + [(0, row), (0, 0)])
                    for table in (self.mean, self.evidence, self.counts)
                )
            self.mean[QUALITY, row] = self._initial.get(name, 0.0)
        return self.rows[name]

    def _sum(self, table: Array, index: list[Integers]) -> Array:
        """Sum over the rows of each context of a [2, rows, L] table, [2, C, L]."""
        total = np.zeros((2, len(index[0]), table.shape[2]))
        for rows in index:
            total += table[:, rows].sum(2)
        return total

    def worth(self, contexts: Sequence[Context], compliance_weight: float) -> tuple[Array, Array]:
        """Mean and variance of what each arm is worth, but for the question's term, both [C, L]."""
        index, weights = self.index(contexts), self.weights(compliance_weight)
        variance = self.noise[:, None, None] * self._uncertainty(np.concatenate(index, axis=1))
        return np.tensordot(weights, self._sum(self.mean, index), 1), np.tensordot(weights**2, variance, 1)

    def _uncertainty(self, rows: Integers) -> Array:
        """Variance of the sum of a context's terms over that of the noise, [2, C, L].

        From the term with the most evidence to the one with the least: the rollouts that one has beyond the next tell
        of the sum so far, ``v <- 1 / (1 / (v + 1 / prior) + e - e_next)``. Exact where the rollouts of each term are
        among those of the one before; to add the terms' variances up would forget that what one gains another loses.

        Args:
            rows: [C, terms].
        """
        evidence = -np.sort(-self.evidence[:, rows], axis=2)  # [2, C, terms, L], the rows of nothing first
        variance = np.zeros_like(evidence[:, :, 0])
        for term in range(rows.shape[1]):
            known = np.isfinite(evidence[:, :, term])
            beyond = np.where(known, evidence[:, :, term], 0.0)
            if term + 1 < rows.shape[1]:
                beyond = beyond - np.where(known, evidence[:, :, term + 1], 0.0)
            variance = np.where(known, 1 / (1 / (variance + 1 / self._prior) + beyond), variance)
        return variance

    def state(self) -> dict[str, Any]:
        return {
            "rows": list(self.rows)[1:],
            "met": [[context.topics, context.regions] for context in self._met],
            "mean": self.mean[:, 1 : len(self.rows)].tolist(),
            "evidence": self.evidence[:, 1 : len(self.rows)].tolist(),
            "counts": self.counts[1 : len(self.rows)].tolist(),
            "noise": self._noise.tolist(),
            "seen": self._seen.tolist(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.rows, self._found = {"": _NOTHING}, {}
        for name in state["rows"]:
            self._row(name)
        self._met = {Context("", tuple(topics), tuple(regions)): None for topics, regions in state["met"]}
        if state["rows"]:
            for table, saved in ((self.mean, "mean"), (self.evidence, "evidence"), (self.counts, "counts")):
                table[..., 1 : len(self.rows), :] = state[saved]
        self._noise, self._seen = np.array(state["noise"]), np.array(state["seen"])


def best(mean: Array, variance: Array, nodes: int = 32) -> Array:
    """Probability of each arm to be the best one under independent normal beliefs, all [C, L].

    ``P(l) = ∫ Π_{j ≠ l} Φ((x - m_j) / s_j) dΦ((x - m_l) / s_l)``: how often Thompson sampling would choose it. An arm
    counts as at most six times as sure as the least sure one, which the grid can still resolve.
    """
    deviation = np.sqrt(np.maximum(variance, 1e-18))  # rewards that never differ leave no variance
    deviation = np.maximum(deviation, deviation.max(1, keepdims=True) / 6)
    low, high = (mean - 4 * deviation).max(1), (mean + 4 * deviation).max(1)
    x = (np.linspace(0, 1, nodes)[:, None] * (high - low)).astype(np.float32)  # above low, [nodes, C]
    scale = (_FINE / deviation).T[:, None].astype(np.float32)
    place = x * scale  # in the table, [L, nodes, C]
    place += 5 * _FINE + ((low[:, None] - mean) * (_FINE / deviation)).T[:, None].astype(np.float32)
    below = _NORMAL[np.clip(place, 0, 10 * _FINE, out=place).astype(np.int32)]
    middle = (below[:, 1:] + below[:, :-1]) / 2 + np.float32(1e-12)
    chances: Array = (np.diff(below, axis=1) * (middle.prod(0) / middle)).sum(1).T.astype(np.float64)
    chances /= chances.sum(1, keepdims=True)
    return chances
