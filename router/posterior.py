"""What the router believes of every language, and on how much evidence: an additive Gaussian model.

The value of a rollout in language l, of a question with topics t and regions g that is written in language q, is
modelled as

    question + shared[l] + Σ topic[t, l] + Σ region[g, l] + own[q, l] + noise,

once for its quality (the rewards of compliant rollouts) and once for its compliance (0 or 1). Each term except the
question's has a normal prior of mean 0 and of the variance of the noise divided by ``prior``. A region that was never
seen is therefore worth what its topic is worth, and departs from that as far as its evidence carries. The term of the
question keeps its difficulty from being taken for quality.

An update fits the terms one after the other, from the shared one to the most special one, each to the residuals that
earlier terms and earlier updates left. Evidence fades by the share ``forget`` with each update, so that a language
never stops following the policy. A term with little evidence moves little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import erf
from typing import Any

import numpy as np

from router.observations import Array, Batch, Cells, Context, Integers

QUALITY, COMPLIANCE = 0, 1  # the first index of the tables
SHARED = "shared:"
_NOTHING = 0  # a row that is 0 with certainty; it fills up the contexts that have fewer rows than others
_GUESS = 0.25  # standard deviation of rewards, until some were seen
_FINE = 1000  # entries of the normal distribution's table per standard deviation
_NORMAL = np.array([0.5 + 0.5 * erf(n / _FINE / 2**0.5) for n in range(-5 * _FINE, 5 * _FINE + 1)], np.float32)


class Beliefs:
    """Means and evidence of named rows of L arms. A row exists once a question with its name occurred.

    Rows are named "shared:", "topic:NAME", "region:NAME" and "question:LANGUAGE".

    Args:
        arms: L.
        prior: how many rollouts the prior mean of 0 weighs.
        forget: the share of the evidence that an update loses.
        own_language: whether the language of the question has a term.
        initial: by the name of a row, the mean quality [L] that it starts with.
    """

    def __init__(
        self, arms: int, prior: float, forget: float, own_language: bool, initial: Mapping[str, Sequence[float]]
    ) -> None:
        self._prior, self._forget, self._own_language, self._initial = prior, forget, own_language, initial
        self.rows: dict[str, int] = {"": _NOTHING}  # index by name
        self.mean = np.zeros((2, 1, arms))  # of quality and of compliance: [2, rows, L], as the next
        self.evidence = np.full((2, 1, arms), np.inf)  # in rollouts
        self.counts = np.zeros((1, arms))  # rollouts ever seen: [rows, L]
        self._noise = np.array(
            [[_GUESS**2, 1.0], [_GUESS**2, 1.0]]
        )  # for each: the sum of squared residuals, and their number
        self._seen = np.array([0.5, 1.0, 1.0])  # sum and number of compliant rewards, and all rollouts
        self._met: dict[Context, None] = {}  # topics and regions that were observed together
        self._row_indices: dict[Context, list[list[int]]] = {}  # of each context, by kind

    @property
    def met(self) -> list[Context]:
        """Topics and regions that were observed together, in the order in which they first were."""
        return list(self._met)

    def weights(self, compliance_weight: float) -> Array:
        """The weights of quality and of compliance in what an arm is worth: [2].

        They are the mean compliance, and ``compliance_weight`` times the mean quality. With a weight of 1 the worth is
        the expected reward, quality times compliance, to first order around the means.
        """
        quality, compliant, rollouts = self._seen
        return np.array([compliant / rollouts, compliance_weight * quality / max(compliant, 1e-9)])

    @property
    def noise(self) -> Array:
        """The variance of the noise of quality and of compliance: [2]."""
        ratio: Array = self._noise[:, 0] / self._noise[:, 1]
        return ratio

    def update(self, batch: Batch) -> None:
        """Fits all terms once to the rollouts that were observed since the last update."""
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
        """Fits the terms of quality or of compliance one after the other."""
        self._noise[table] += [cells.squares, cells.freedom]
        left, mean, evidence = cells.sums.copy(), self.mean[table], self.evidence[table]
        for rows in index:
            share = 1 / np.maximum(np.count_nonzero(rows, axis=1), 1)[:, None]  # of each topic where there are several
            found, number, information = np.zeros_like(mean), np.zeros_like(mean), np.zeros_like(mean)
            for column in rows.T:
                self._add(found, column, left * share)
                self._add(number, column, cells.counts)
                self._add(information, column, cells.information)
            step = found / (self._prior + evidence + number)  # 0 for the row _NOTHING, whose evidence is infinite
            mean += step
            evidence += information
            left -= cells.counts * step[rows].sum(1)

    def _add(self, table: Array, rows: Integers, values: Array) -> None:
        """``table[row] += value`` for each of ``rows`` [C] and ``values`` [C, L]."""
        arms = table.shape[1]
        flat = (rows[:, None] * arms + np.arange(arms)).ravel()
        table += np.bincount(flat, values.ravel(), table.size).reshape(table.shape)

    def index(self, contexts: Sequence[Context]) -> list[Integers]:
        """The indices of the rows of each context, by kind of row: four arrays [C, most rows of a context]."""
        found = [self._row_indices.get(context) or self._make_rows(context) for context in contexts]
        result = []
        for kind in range(4):
            lists = [rows[kind] for rows in found]
            width = max(map(len, lists), default=0)
            result.append(np.array([rows + [_NOTHING] * (width - len(rows)) for rows in lists], np.intp))
        return result

    def _make_rows(self, context: Context) -> list[list[int]]:
        own = [f"question:{context.language}"] if self._own_language and context.language else []
        names = [[SHARED], [f"topic:{n}" for n in context.topics], [f"region:{n}" for n in context.regions], own]
        rows = self._row_indices[context] = [[self._row(name) for name in kind] for kind in names]
        return rows

    def _row(self, name: str) -> int:
        if name not in self.rows:
            row = self.rows[name] = len(self.rows)
            if row == len(self.counts):  # doubled, so that thousands of new rows do not cause thousands of copies
                self.mean, self.evidence, self.counts = (
                    np.pad(table, [(0, 0)] * (table.ndim - 2) + [(0, row), (0, 0)])
                    for table in (self.mean, self.evidence, self.counts)
                )
            self.mean[QUALITY, row] = self._initial.get(name, 0.0)
        return self.rows[name]

    def _sum(self, table: Array, index: list[Integers]) -> Array:
        """The sum of a [2, rows, L] table over the rows of each context: [2, C, L]."""
        total = np.zeros((2, len(index[0]), table.shape[2]))
        for rows in index:
            total += table[:, rows].sum(2)
        return total

    def worth(self, contexts: Sequence[Context], compliance_weight: float) -> tuple[Array, Array]:
        """The mean and the variance of what each arm is worth, apart from the question's term: both [C, L]."""
        index, weights = self.index(contexts), self.weights(compliance_weight)
        variance = self.noise[:, None, None] * self._uncertainty(np.concatenate(index, axis=1))
        return np.tensordot(weights, self._sum(self.mean, index), 1), np.tensordot(weights**2, variance, 1)

    def _uncertainty(self, rows: Integers) -> Array:
        """The variance of the sum of a context's terms, divided by that of the noise: [2, C, L].

        It is computed from the term with the most evidence to the one with the least. The rollouts that one term has
        beyond the next are evidence about the sum so far: ``v <- 1 / (1 / (v + 1 / prior) + e - e_next)``. This is
        exact where the rollouts of each term are among those of the term before. Adding up the variances of the terms
        would ignore that their errors compensate each other.

        Args:
            rows: [C, terms] indices.
        """
        evidence = -np.sort(-self.evidence[:, rows], axis=2)  # [2, C, terms, L], the rows _NOTHING first
        variance = np.zeros_like(evidence[:, :, 0])
        for term in range(rows.shape[1]):
            known = np.isfinite(evidence[:, :, term])
            beyond = np.where(known, evidence[:, :, term], 0.0)
            if term + 1 < rows.shape[1]:
                beyond = beyond - np.where(known, evidence[:, :, term + 1], 0.0)
            variance = np.where(known, 1 / (1 / (variance + 1 / self._prior) + beyond), variance)
        return variance

    def state(self) -> dict[str, Any]:
        """The whole state, as values of JSON."""
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
        """Continues from a :meth:`state`."""
        self.rows, self._row_indices = {"": _NOTHING}, {}
        for name in state["rows"]:
            self._row(name)
        self._met = {Context("", tuple(topics), tuple(regions)): None for topics, regions in state["met"]}
        if state["rows"]:
            for table, saved in ((self.mean, "mean"), (self.evidence, "evidence"), (self.counts, "counts")):
                table[..., 1 : len(self.rows), :] = state[saved]
        self._noise, self._seen = np.array(state["noise"]), np.array(state["seen"])


def best(mean: Array, variance: Array, nodes: int = 32) -> Array:
    """The probability that each arm is the best one under independent normal beliefs: float64 [C, L].

    ``P(l) = ∫ Π_{j ≠ l} Φ((x - m_j) / s_j) dΦ((x - m_l) / s_l)``, which is how often Thompson sampling would choose l.
    The integral is a sum over a grid. No standard deviation counts as less than a sixth of the largest one, because the
    grid could not resolve it.

    Args:
        mean: [C, L].
        variance: [C, L].
        nodes: points of the grid.
    """
    deviation = np.sqrt(np.maximum(variance, 1e-18))  # without any difference between rewards the variance is 0
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
