"""What the router believes of every language: an additive Gaussian model whose variances are estimated as well.

The value of a rollout in language l, of a question with topics t and regions g that is written in language q, is
modelled as

    level(t, g, q) + question + shared[l] + mean of topic[t, l] + mean of region[g, l] + pair[t, g, l] + own[q, l] + noise,

once for its quality (the rewards of compliant rollouts) and once for its compliance (0 or 1). The level has terms of the
same kinds, which all languages share. Every term is normal with mean 0, except that own[l, l], the worth of answering in
the question's own language, has a mean of its own. All variances are estimated while the run goes on, by the fixed point
of MacKay (1992) for the marginal likelihood: a kind of term that explains nothing comes to weigh nothing. The noise has a
variance for each topic and language.

The rewards of one question tell of its languages only what its own ease, the term ``question``, does not explain. What
they tell is added to sums by context, from which the posterior is computed jointly for all terms of a language.
Old evidence fades. How fast is not a setting: sums are kept at several rates (:data:`KEEP`), and the rate whose means
predicted the newest rewards best is believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import erf
from typing import Any

import numpy as np

from router.observations import Array, Batch, Context, Integers

QUALITY, COMPLIANCE = 0, 1  # the first index of the tables
KEEP = (0.998, 0.97, 0.9)  # the shares of old evidence that an update keeps, among which the rewards decide
SHARED, TOPIC, REGION, OWN, PAIR = range(5)  # kinds of terms
_JOINT = 96  # topics and regions that are fitted jointly, those with the most evidence; others are part of their pairs
_GUESS = 0.25  # standard deviation of rewards, and of the ease of questions, until some were seen
_FINE = 1000  # entries of the normal distribution's table per standard deviation
_NORMAL = np.array([0.5 + 0.5 * erf(n / _FINE / 2**0.5) for n in range(-5 * _FINE, 5 * _FINE + 1)], np.float32)
_JUDGED = 3  # updates between two judgements of the rates
_STEADY = 0.97  # the share of their weight that estimates of noise, and of how well a rate predicts, keep an update
_FIRST = np.array([[0.05, 0.05, 0.05, 0.05, 0.03], [0.05, 0.05, 0.05, 0.05, 0.03]])  # standard deviations by kind, first
_LEVEL = np.array([0.5, 0.1, 0.1, 0.1, 0.05])  # and those of the level


class Layout:
    """Which terms there are, and where. R joint rows, Q question languages, Z pairs, C observed contexts.

    Attributes:
        rows: the joint rows but the shared one, which is row 0.
        questions: the languages of questions.
        pairs: the combinations of topics and regions that were observed.
        x: [Z, R] the weights of the joint rows in each pair.
        kinds: [Z, 5] the weights of the variances, by kind, of each pair's own term: that of the pair, and those of rows
            which are not joint.
        kind: [R + Q] the kind of each joint term.
        pair_of, question_of: [C] the pair and the language of each context; Q for none.
    """

    def __init__(self, rows: Sequence[str], contexts: Sequence[Context], own_language: bool) -> None:
        self.rows = {name: place + 1 for place, name in enumerate(rows)}
        speaking = dict.fromkeys(context.language for context in contexts) if own_language else {}
        self.questions = {language: place for place, language in enumerate(filter(None, speaking))}
        keys = [(context.topics, context.regions) for context in contexts]
        self.pairs = {pair: place for place, pair in enumerate(dict.fromkeys(keys))}
        self.x, self.kinds = self.design(list(self.pairs))
        self.kind = np.array(
            [SHARED, *(TOPIC if name.startswith("topic:") else REGION for name in rows)] + [OWN] * len(self.questions)
        )
        self.pair_of = np.array([self.pairs[key] for key in keys], np.intp)
        none = len(self.questions)
        self.question_of = np.array([self.questions.get(context.language, none) for context in contexts], np.intp)

    def design(self, pairs: Sequence[tuple[tuple[str, ...], tuple[str, ...]]]) -> tuple[Array, Array]:
        """The weights of the joint rows, [Z, R], and of the variances of the other terms, [Z, 5], of topics and regions."""
        x, kinds = np.zeros((len(pairs), len(self.rows) + 1)), np.zeros((len(pairs), 5))
        x[:, 0] = 1
        for row, rest, (topics, regions) in zip(x, kinds, pairs, strict=True):
            for kind, what, names in ((TOPIC, "topic:", topics), (REGION, "region:", regions)):
                for name in names:
                    place = self.rows.get(what + name)
                    if place is None:
                        rest[kind] += 1 / len(names) ** 2
                    else:
                        row[place] = 1 / len(names)
            rest[PAIR] = bool(topics) and bool(regions)
        return x, kinds


@dataclass
class Fit:
    """The posterior of one table at one rate, of A = L + 1 arms of which the last is the level. Z pairs, R rows, Q.

    Attributes:
        mean: [A, R + Q] of the terms that are fitted jointly, without their prior means.
        covariance: [A, R + Q, R + Q]; None where it was not asked for.
        told: [A, Z, Q] the precision that the rollouts of each pair and question language add.
        weight: [A, Z] the precision of each pair's term.
        pair: [A, Z] the mean of each pair's term.
    """

    layout: Layout
    mean: Array
    covariance: Array | None
    told: Array
    weight: Array
    pair: Array


class Beliefs:
    """The posterior of every language in every context.

    Args:
        languages: the L codes, in the order of the arms.
        own_language: whether the language of the question has terms.
        initial: by the name of a row ("shared:", "topic:NAME", "region:NAME", "question:LANGUAGE"), the mean quality
            [L] that it starts with.
    """

    def __init__(self, languages: Sequence[str], own_language: bool, initial: Mapping[str, Sequence[float]]) -> None:
        self._arms, self._own_language = len(languages), own_language
        self._arm = {language: arm for arm, language in enumerate(languages)}
        self._initial = {name: np.array([*row, 0.0]) for name, row in initial.items()}
        self.counts: dict[str, Array] = {}  # by row, the rollouts ever seen [L]
        self._contexts: dict[Context, int] = {}
        arms = self._arms + 1
        # By rate, table, context and arm, [rates, 2, contexts, A]: information in rollouts, and information times value
        self._told, self._sums = np.zeros((2, len(KEEP), 2, 0, arms))
        self.variance = np.array([[first, _LEVEL] for first in _FIRST]) ** 2  # [2, of languages and of the level, 5]
        self._own_mean = np.zeros(2)  # of own[l, l]
        self._noise: dict[str, Array] = {}  # by topic row and "shared:", [2, 2, L] squares and their number
        self._ease = np.full((2, 2), [_GUESS**2, 1.0])  # squares of the ease of questions, and their number
        self._error = np.zeros(len(KEEP))  # of the predictions at each rate
        self._updates = 0
        self.rate = 0  # the index of the rate that is believed
        self._lay_out()
        self._fits = [self._fit(table, self.rate, True) for table in (QUALITY, COMPLIANCE)]

    # -- the posterior ---------------------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        """Decides which rows are fitted jointly, and lays out the contexts that were observed."""
        names: dict[str, float] = {name: 0.0 for context in self._contexts for name in _rows(context)}
        if len(names) > _JOINT:
            told = self._told[0, :, :, : self._arms].sum((0, 2)).tolist()
            for context, place in self._contexts.items():
                for name in _rows(context):
                    names[name] += told[place]
        rows = sorted(names, key=lambda name: -names[name])[:_JOINT]
        self._layout = Layout(rows, list(self._contexts), self._own_language)

    def _prior_mean(self, table: int, layout: Layout) -> Array:
        """The prior means of the joint terms: [A, R + Q]."""
        rows = len(layout.rows) + 1
        mean = np.zeros((self._arms + 1, len(layout.kind)))
        if table == QUALITY and self._initial:
            for name, place in layout.rows.items():
                mean[:, place] = self._initial.get(name, 0.0)
            mean[:, 0] = self._initial.get("shared:", 0.0)
        for language, place in layout.questions.items():
            if table == QUALITY:
                mean[:, rows + place] = self._initial.get(f"question:{language}", 0.0)
            if language in self._arm:
                mean[self._arm[language], rows + place] += self._own_mean[table]
        mean[-1, 0] = 0.5
        return mean

    def _variances(self, table: int) -> Array:
        """The variances of the terms of each arm and of the level, by kind: [A, 5]."""
        return np.repeat(self.variance[table], [self._arms, 1], axis=0)

    def _fit(self, table: int, rate: int, covariance: bool) -> Fit:
        """Computes the posterior; pairs are eliminated first, because each rollout is in one."""
        layout, noise, variances = self._layout, self.noise[table], self._variances(table)
        x, pairs, questions, rows = layout.x, len(layout.pairs), len(layout.questions), len(layout.rows) + 1
        told, sums = np.zeros((2, pairs, questions + 1, self._arms + 1))
        observed = len(layout.pair_of)
        told[layout.pair_of, layout.question_of] = self._told[rate, table, :observed] / noise
        sums[layout.pair_of, layout.question_of] = self._sums[rate, table, :observed] / noise
        told, sums = told.transpose(2, 0, 1), sums.transpose(2, 0, 1)  # [A, Z, Q + 1]
        prior, of_pairs = variances[:, layout.kind], np.maximum(variances @ layout.kinds.T, 1e-9)
        centre = self._prior_mean(table, layout)
        every, total = told.sum(2), sums.sum(2)
        told, sums = told[:, :, :questions], sums[:, :, :questions]
        weight = every + 1 / of_pairs  # [A, Z]
        left = 1 / (of_pairs * weight)  # the share of what is told that its pair does not explain
        precision = np.empty((self._arms + 1, rows + questions, rows + questions))
        precision[:, :rows, :rows] = (x.T * (every * left)[:, None]) @ x
        cross = x.T @ (told * left[:, :, None])
        precision[:, :rows, rows:], precision[:, rows:, :rows] = cross, cross.transpose(0, 2, 1)
        precision[:, rows:, rows:] = -(told / weight[:, :, None]).transpose(0, 2, 1) @ told
        index = np.arange(rows, rows + questions)
        precision[:, index, index] += told.sum(1)
        value = np.concatenate(
            [(total * left) @ x, sums.sum(1) - ((total / weight)[:, None] @ told)[:, 0]], axis=1
        )
        value -= (precision @ centre[:, :, None])[:, :, 0]
        index = np.arange(rows + questions)
        precision[:, index, index] += 1 / prior
        inverse = np.linalg.inv(precision) if covariance else None
        if inverse is None:
            mean = np.linalg.solve(precision, value[:, :, None])[:, :, 0]
        else:
            mean = (inverse @ value[:, :, None])[:, :, 0]
        whole = mean + centre
        explained = every * (whole[:, :rows] @ x.T) + (told @ whole[:, rows:, None])[:, :, 0]
        return Fit(layout, mean, inverse, told, weight, (total - explained) / weight)

    def _predict(self, table: int, fit: Fit, contexts: Sequence[Context]) -> tuple[Array, Array | None]:
        """The mean and, where the covariance is known, the variance of each arm and of the level: both [C, A]."""
        layout, variances = fit.layout, self._variances(table)
        places = [layout.pairs.get(one[1:], -1) for one in contexts]
        pair = np.array(places, np.intp)
        known = pair >= 0
        x, kinds = np.empty((len(contexts), len(layout.rows) + 1)), np.empty((len(contexts), 5))
        x[known], kinds[known] = layout.x[pair[known]], layout.kinds[pair[known]]
        if not known.all():
            x[~known], kinds[~known] = layout.design([one[1:] for one, place in zip(contexts, places) if place < 0])
        of_pairs = np.maximum(variances @ kinds.T, 1e-9)  # [A, C]
        questions, rows = len(layout.questions), x.shape[1]
        speaks = np.array([layout.questions.get(one.language, -1) for one in contexts], np.intp)
        features = np.concatenate([x, (speaks[:, None] == np.arange(questions)).astype(np.float64)], axis=1)
        mean = features @ (fit.mean + self._prior_mean(table, layout)).T
        mean[known] += fit.pair[:, pair[known]].T
        mean += self._means_of_unmet(table, layout, contexts)
        if fit.covariance is None:
            return mean, None
        weight = 1 / of_pairs
        weight[:, known] = fit.weight[:, pair[known]]
        every = np.broadcast_to(features, (self._arms + 1, *features.shape)).copy()
        every[:, :, :rows] *= (1 / (of_pairs * weight))[:, :, None]
        every[:, known, rows:] -= fit.told[:, pair[known]] / weight[:, known, None]
        variance = ((every @ fit.covariance) * every).sum(2) + 1 / weight
        if self._own_language:
            new = np.array([place < 0 and one.language != "" for place, one in zip(speaks, contexts, strict=True)])
            variance[:, new] += variances[:, OWN, None]
        return mean, variance.T

    def _means_of_unmet(self, table: int, layout: Layout, contexts: Sequence[Context]) -> Array:
        """The prior means of the terms of each context that are not among the joint ones: [C, A]."""
        mean = np.zeros((len(contexts), self._arms + 1))
        for row, context in zip(mean, contexts, strict=True):
            if self._own_language and context.language not in layout.questions and context.language in self._arm:
                row[self._arm[context.language]] += self._own_mean[table]
            if table == QUALITY and self._initial:
                for what, names in (("topic:", context.topics), ("region:", context.regions)):
                    for name in names:
                        if what + name not in layout.rows:
                            row += self._initial.get(what + name, 0.0) / len(names)
                if self._own_language and context.language not in layout.questions:
                    row += self._initial.get(f"question:{context.language}", 0.0)
        return mean

    @property
    def noise(self) -> Array:
        """The variance of the noise of quality and of compliance: [2]."""
        seen = self._noise.get("shared:")
        squares, number = (np.zeros(2), np.zeros(2)) if seen is None else seen.sum(2).T
        ratio: Array = np.maximum((squares + _GUESS**2) / (number + 1), 1e-6)
        return ratio

    def _noise_weights(self, table: int, contexts: Sequence[Context]) -> Array:
        """The mean noise's variance divided by that of each language on the topics of each context: [C, L]."""
        noise, nothing = self.noise[table], np.zeros((2, 2, self._arms))
        by_arm = self._noise.get("shared:", nothing)[table]
        usual = (by_arm[0] + 20 * noise) / (by_arm[1] + 20)
        result = np.empty((len(contexts), self._arms))
        for row, context in zip(result, contexts, strict=True):
            seen = sum((self._noise.get(f"topic:{name}", nothing)[table] for name in context.topics), nothing[0])
            row[:] = (seen[0] + 20 * usual) / (seen[1] + 20)
        weights: Array = np.clip(noise / result, 0.1, 10)
        return weights

    # -- learning --------------------------------------------------------------------------------------------------

    def update(self, batch: Batch) -> None:
        """Learns from the rollouts that were observed since the last update."""
        known = len(self._contexts)
        for context in batch.contexts:
            self._contexts.setdefault(context, len(self._contexts))
        if len(self._contexts) > known:
            wide = [(0, 0), (0, 0), (0, len(self._contexts) - known), (0, 0)]
            self._told, self._sums = np.pad(self._told, wide), np.pad(self._sums, wide)
        place = np.array([self._contexts[context] for context in batch.contexts], np.intp)
        added = [
            self._tell(table, batch, values, kept)
            for table, values, kept in (
                (QUALITY, batch.reward, batch.compliant),
                (COMPLIANCE, batch.compliant.astype(np.float64), np.ones_like(batch.compliant)),
            )
        ]
        self._updates += 1
        if self._updates % _JUDGED == 0:
            self._judge_rates(batch.contexts, added)
        keep = np.array(KEEP)[:, None, None, None]
        self._told *= keep
        self._sums *= keep
        for table, (told, sums) in enumerate(added):
            self._told[:, table, place] += told
            self._sums[:, table, place] += sums
        self._count(batch)
        if len(self._contexts) > known:
            self._lay_out()
        for table in (QUALITY, COMPLIANCE):
            self._fits[table] = self._fit(table, self.rate, True)
            self._estimate(table)

    def _tell(self, table: int, batch: Batch, values: Array, kept: Any) -> tuple[Array, Array]:
        """What the rollouts of a batch tell of each context's arms, and information times value: both [C, A]."""
        mean, variance = self._predict(table, self._fits[table], batch.contexts)
        assert variance is not None
        weights = self._noise_weights(table, batch.contexts)
        context, group, arm = batch.context[kept], batch.group[kept], batch.arm[kept]
        noise, shape = self.noise[table], (len(batch.contexts), self._arms)
        cell = context * self._arms + arm
        error = values[kept] - (mean[:, :-1] + mean[:, -1:]).ravel()[cell]
        weight = weights.ravel()[cell]
        heavy, number = np.bincount(group, weight), np.bincount(group)
        of_context = np.zeros(len(heavy), np.intp)
        of_context[group] = context
        some = number > 0
        average = np.bincount(group, weight * error) / np.maximum(heavy, 1e-12)
        # the ease of each question, given all of its rollouts
        ease = self._ease[table, 0] / self._ease[table, 1]
        prior = noise / (ease + variance[of_context, -1])
        easy = heavy * average / (heavy + prior)
        pair = group * self._arms + arm
        information = weight * (1 - np.bincount(pair, weight)[pair] / (heavy + prior)[group])
        left = weight * (error - easy[group])

        def by_cell(weights: Array) -> Array:
            return np.bincount(cell, weights, minlength=shape[0] * shape[1]).reshape(shape)

        told = np.zeros((shape[0], self._arms + 1))
        sums = np.zeros_like(told)
        told[:, :-1] = by_cell(information)
        sums[:, :-1] = by_cell(left) + told[:, :-1] * mean[:, :-1]
        precision = np.where(some, noise / (ease + noise / np.maximum(heavy, 1e-12)), 0)
        told[:, -1] = np.bincount(of_context, precision, minlength=shape[0])
        sums[:, -1] = np.bincount(of_context, precision * average, minlength=shape[0]) + told[:, -1] * mean[:, -1]
        self._learn_noise(table, batch.contexts, by_cell, error - average[group], number[group], average, heavy, some)
        return told, sums

    def _learn_noise(
        self, table: int, contexts: Sequence[Context], by_cell: Any, rest: Array, number: Array, average: Array,
        heavy: Array, some: Any,
    ) -> None:  # fmt: skip
        free = (number - 1) / number
        squares = np.stack([by_cell(rest**2), by_cell(free)])  # [2, C, L]
        for name in self._noise:
            self._noise[name][table] *= _STEADY
        self._note_noise("shared:", table, squares.sum(1))
        for column, context in enumerate(contexts):
            for topic in context.topics:
                self._note_noise(f"topic:{topic}", table, squares[:, column])
        self._ease[table] *= _STEADY
        beyond = average[some] ** 2 - self.noise[table] / heavy[some]
        self._ease[table] += [max(float(beyond.sum()), 0.0) + 1e-6, float(some.sum())]

    def _note_noise(self, name: str, table: int, squares: Array) -> None:
        self._noise.setdefault(name, np.zeros((2, 2, self._arms)))[table] += squares

    def _judge_rates(self, contexts: Sequence[Context], added: Sequence[tuple[Array, Array]]) -> None:
        """Adds up how far the means at each rate were from what is told now, and believes the nearest."""
        self._error *= _STEADY
        for table, (told, sums) in enumerate(added):
            told, value = told[:, :-1], sums[:, :-1] / np.maximum(told[:, :-1], 1e-12)
            for rate in range(len(KEEP)):
                fit = self._fits[table] if rate == self.rate else self._fit(table, rate, False)
                mean, _ = self._predict(table, fit, contexts)
                off = value - mean[:, :-1]
                off -= (told * off).sum(1, keepdims=True) / np.maximum(told.sum(1, keepdims=True), 1e-12)
                self._error[rate] += float((told * off**2).sum()) / self.noise[table]
        self.rate = int(self._error.argmin())

    def _estimate(self, table: int) -> None:
        """Moves the variances of the terms, and the mean worth of the own language, to what the posterior says."""
        fit, arms = self._fits[table], self._arms
        assert fit.covariance is not None
        layout, variances = fit.layout, self._variances(table)
        rows = len(layout.rows) + 1
        spread = np.diagonal(fit.covariance, axis1=1, axis2=2)  # [A, R + Q]
        prior, kind = variances[:, layout.kind], layout.kind
        first = np.array([_FIRST[table], _LEVEL]) ** 2
        for which, part in ((0, slice(0, arms)), (1, slice(arms, arms + 1))):
            for one in (SHARED, TOPIC, REGION, OWN) if which == 0 else (TOPIC, REGION, OWN):
                if (some := kind == one).any():
                    squares = float((fit.mean[part][:, some] ** 2).sum())
                    known = float((1 - spread[part][:, some] / prior[part][:, some]).sum())
                    self.variance[table, which, one] = (squares + first[which, one]) / (max(known, 0.0) + 1)
        both = layout.kinds[:, PAIR] > 0
        if both.any():
            of_pairs = np.maximum(variances @ layout.kinds[both].T, 1e-9)
            weight, told = fit.weight[:, both], fit.told[:, both]
            seen = ((weight - 1 / of_pairs)[:, :, None] * layout.x[both], told)
            about = np.concatenate(seen, axis=2) / weight[:, :, None]
            variance = ((about @ fit.covariance) * about).sum(2) + 1 / weight
            for which, part in ((0, slice(0, arms)), (1, slice(arms, arms + 1))):
                squares = float((fit.pair[part][:, both] ** 2).sum())
                known = float((1 - variance[part] / of_pairs[part]).sum())
                self.variance[table, which, PAIR] = (squares + first[which, PAIR]) / (max(known, 0.0) + 1)
        np.maximum(self.variance, 1e-7, out=self.variance)
        places = [(self._arm[one], rows + place) for one, place in layout.questions.items() if one in self._arm]
        if places:
            arm, place = np.array(places).T
            before = prior[arm, place]
            told = 1 / np.minimum(spread[arm, place], 0.999999 * before) - 1 / before
            value = fit.mean[arm, place] / spread[arm, place] / told + self._own_mean[table]
            trust = 1 / (before + 1 / told)
            self._own_mean[table] = float((trust * value).sum() / (trust.sum() + 1 / 0.15**2))

    def _count(self, batch: Batch) -> None:
        cell = batch.context * self._arms + batch.arm
        counts = np.bincount(cell, minlength=len(batch.contexts) * self._arms).reshape(-1, self._arms)
        for context, row in zip(batch.contexts, counts.astype(np.float64), strict=True):
            names = ["shared:", *_rows(context)]
            names += [f"question:{context.language}"] if self._own_language and context.language else []
            for name in names:
                self.counts[name] = self.counts.get(name, 0.0) + row

    # -- what is believed ------------------------------------------------------------------------------------------

    def worth(self, contexts: Sequence[Context], compliance_weight: float) -> tuple[Array, Array]:
        """The mean and the variance of what an answer in each language is worth: both [C, L].

        The worth is ``quality (1 - weight (1 - compliance))``: with a weight of 1 the expected reward. The variance is
        that of this product to first order, without what all languages share.
        """
        (quality, of_quality), (compliance, of_compliance) = (
            self._predict(table, self._fits[table], contexts) for table in (QUALITY, COMPLIANCE)
        )
        assert of_quality is not None and of_compliance is not None
        good = np.maximum(quality[:, :-1] + quality[:, -1:], 0.01)
        kept = np.clip(compliance[:, :-1] + compliance[:, -1:], 0.01, 1)
        share = 1 - compliance_weight * (1 - kept)
        variance: Array = share**2 * of_quality[:, :-1] + (compliance_weight * good) ** 2 * of_compliance[:, :-1]
        return good * share, variance


def _rows(context: Context) -> list[str]:
    return [*(f"topic:{name}" for name in context.topics), *(f"region:{name}" for name in context.regions)]


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
