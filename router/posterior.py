"""What the router believes of every language: an additive Gaussian model whose variances are estimated as well.

The value of a rollout in language l, of a question with topics t and regions g that is written in language q, is
modelled as

    level[t, g, q] + question + shared[l] + topic[t, l] + region[g, l] + pair[t, g, l] + own[q, l] + noise,

once for its quality (the rewards of compliant rollouts) and once for its compliance (0 or 1). ``level`` is a sum of
terms of the same kinds that all languages have in common; it is fitted like one more language. Where a question has
several topics, their mean counts; likewise regions. The terms of a language are normal around 0, except that
own[l, l], the worth of an answer in the question's own language, has a mean which is estimated. So a new region is
worth what its topic is worth, and a new question language gains from its own language what others do.

The variance of every kind of term is estimated as the run goes on, by steps of EM for the marginal likelihood. A kind
that explains nothing, such as the interaction ``pair`` where topics and regions add up, comes to weigh nothing. The
posterior of all terms of a language is computed jointly, by ridge regression. Two things are approximated: the
languages of a question are compared with the question's ease as it is estimated under the present means, and the
errors of two languages are taken for independent.

Old evidence fades with each policy step. How fast is estimated: sums are kept at the rates of :data:`KEEP`, and the
rate is believed whose means predicted the newest rewards best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from router.layout import OWN, PAIR, REGION, SHARED, TOPIC, Features, Layout, rows_of
from router.noise import Noise
from router.observations import Array, Batch, Context

QUALITY, COMPLIANCE = 0, 1  # the first index of the tables
KEEP = (0.998, 0.97, 0.9)  # the share of old evidence that a policy step keeps
_JOINT = 96  # topics and regions that are fitted jointly, those with the most evidence; others are part of their pairs
_JUDGED = 3  # policy steps between two judgements of the rates
_STEADY = 0.97  # the share of their weight that older judgements keep
_DOUBT = 2.0  # by how much more likely, in -2 log, the newest rewards must be at a rate than at the next slower one
_LEAST = 1e-7  # variance of a term
_OWN = 0.15  # standard deviation of the mean worth of the own language, before anything is known
# Variances by kind before anything is known, of the terms of languages and of the level.
_FIRST = np.array([[0.05, 0.05, 0.05, 0.05, 0.03], [0.5, 0.1, 0.1, 0.1, 0.05]]) ** 2
_LEVEL = 0.5  # prior mean of the shared row of the level


@dataclass(frozen=True)
class Fit:
    """The posterior of one table: A = L + 1 arms, of which the last is the level; Z, R and Q as in :class:`Layout`.

    Attributes:
        layout: the terms.
        variances: [A, 5] the prior variances by kind that it was computed with.
        own_mean: the prior mean of own[l, l], and its variance.
        mean: [A, R + Q] of the joint terms.
        covariance: [A, R + Q, R + Q] of these; None where it was not asked for.
        told: [A, Z, Q] the precision that the rollouts of each pair and question language have.
        weight: [A, Z] the precision of each pair's own term, given the joint terms.
        pair: [A, Z] the mean of that term.
    """

    layout: Layout
    variances: Array
    own_mean: tuple[float, float]
    mean: Array
    covariance: Array | None
    told: Array
    weight: Array
    pair: Array

    def predict(
        self, seen: Features, own_language: bool, variances_of: slice = slice(None)
    ) -> tuple[Array, Array | None]:
        """The mean of the sum of each arm's terms [C, A], and, with a covariance, the variances of some of them.

        What was never observed has its prior variance, and a mean of 0.
        """
        rows, known = self.layout.weights.shape[1], seen.pair >= 0
        place = seen.pair[known]
        mean = seen.joint @ self.mean.T
        mean[known] += self.pair[:, place].T
        if self.covariance is None:
            return mean, None
        of_pair = _of_pairs(self.variances[variances_of], seen.rest)
        precision = 1 / of_pair
        precision[:, known] = self.weight[variances_of, place]
        # the joint terms, less what the pair's own term takes back when they change
        every = np.repeat(seen.joint[None], len(precision), axis=0)
        every[:, :, :rows] *= (1 / (of_pair * precision))[:, :, None]
        every[:, known, rows:] -= self.told[variances_of, place] / precision[:, known, None]
        variance = ((every @ self.covariance[variances_of]) * every).sum(2) + 1 / precision
        if own_language:
            variance[:, seen.unmet] += self.variances[variances_of, OWN, None]
        return mean, variance.T


class Beliefs:
    """The posterior of every language in every context. Looking at it changes nothing.

    Args:
        languages: the L codes, in the order of the arms.
        own_language: whether the language of the question has terms.
        initial: by the name of a row ("shared:", "topic:NAME", "region:NAME", "question:LANGUAGE"), the mean quality
            [L] that it starts with.

    Attributes:
        variance: [2, 2, 5] the estimated variances of quality and compliance, of languages and the level, by kind.
        rate: the index in ``KEEP`` of the rate that is believed.
    """

    def __init__(self, languages: Sequence[str], own_language: bool, initial: Mapping[str, Sequence[float]]) -> None:
        self._arms, self._own_language = len(languages), own_language
        self._arm = {language: arm for arm, language in enumerate(languages)}
        self._initial = {name: np.array([*row, 0.0]) for name, row in initial.items()}
        self._counts = np.zeros((0, self._arms))  # the rollouts ever observed of each context and arm
        self._contexts: dict[Context, int] = {}
        self._names: dict[str, None] = {}  # of the rows of topics and regions, in the order in which they were observed
        # By rate, table, context and arm, [rates, 2, C, A]: information in usual rollouts, and information times value.
        self._told, self._sums = np.zeros((2, len(KEEP), 2, 0, self._arms + 1))
        self.variance = np.array([_FIRST, _FIRST])
        self._own_mean = np.array([[0.0, 0.0]] * 2)  # of own[l, l], of quality and of compliance; and its variance
        self._own_spread = np.full(2, _OWN**2)  # the prior variance of that mean
        self._shift = np.zeros((2, self._arms + 1))  # what the shared rows were moved by since the sums were added to
        self._noise = Noise(self._arms)
        self.rate, self._error, self._unjudged = 0, np.zeros(len(KEEP)), 0
        self._layout = Layout((), (), own_language)
        self._fits = [self._fit(table, 0, covariance=True) for table in (QUALITY, COMPLIANCE)]

    @property
    def has_evidence(self) -> bool:
        """Whether anything was observed."""
        return bool(self._contexts)

    @property
    def met(self) -> list[Context]:
        """Topics and regions that were observed together, in the order in which they first were."""
        return [Context("", topics, regions) for topics, regions in self._layout.pairs]

    def counts(self) -> dict[str, Array]:
        """The rollouts ever observed of each language, [L], by the names of the rows."""
        counts: dict[str, Array] = {}
        for context, row in zip(self._contexts, self._counts, strict=True):
            own = [f"question:{context.language}"] if self._own_language and context.language else []
            for name in ("shared:", *rows_of(context), *own):
                counts[name] = counts.get(name, 0.0) + row
        return counts

    # -- the posterior ---------------------------------------------------------------------------------------------

    def _fit(self, table: int, rate: int, *, covariance: bool) -> Fit:
        """Computes a posterior. The terms of pairs are eliminated first: each rollout is in one pair."""
        layout, noise, variances = self._layout, self._noise.answers[table], self._variances(table)
        questions, rows, observed = len(layout.questions), len(layout.rows) + 1, len(layout.pair_of)
        pairs, speaking = layout.pair_of, layout.question_of < questions
        told, sums = np.zeros((2, self._arms + 1, len(layout.pairs), questions))  # [A, Z, Q]
        every, total = np.zeros((2, self._arms + 1, len(layout.pairs)))
        for by_question, by_pair, values in ((told, every, self._told), (sums, total, self._sums)):
            of_context = values[rate, table, :observed].T / noise
            by_question[:, pairs[speaking], layout.question_of[speaking]] = of_context[:, speaking]
            by_pair += by_question.sum(2)
            np.add.at(by_pair.T, pairs[~speaking], of_context.T[~speaking])
        of_pair = _of_pairs(variances, layout.rest)
        weight = every + 1 / of_pair
        left = 1 / (of_pair * weight)  # the share of a pair's evidence that its own term does not take
        x = layout.weights
        precision = np.empty((self._arms + 1, rows + questions, rows + questions))
        precision[:, :rows, :rows] = (x.T * (every * left)[:, None]) @ x
        precision[:, :rows, rows:] = x.T @ (told * left[:, :, None])
        precision[:, rows:, :rows] = precision[:, :rows, rows:].transpose(0, 2, 1)
        precision[:, rows:, rows:] = -(told / weight[:, :, None]).transpose(0, 2, 1) @ told
        diagonal = np.arange(rows + questions)
        precision[:, diagonal[rows:], diagonal[rows:]] += told.sum(1)
        of_questions = sums.sum(1) - ((total / weight)[:, None] @ told)[:, 0]
        value = np.concatenate([(total * left) @ x, of_questions], axis=1)
        prior = variances[:, layout.kind]
        value += self._prior_mean(table) / prior
        precision[:, diagonal, diagonal] += 1 / prior
        inverse = np.linalg.inv(precision).astype(np.float64, copy=False) if covariance else None
        solved = np.linalg.solve(precision, value[:, :, None]) if inverse is None else inverse @ value[:, :, None]
        mean: Array = solved[:, :, 0]
        explained = every * (mean[:, :rows] @ x.T) + (told @ mean[:, rows:, None])[:, :, 0]
        own_mean, of_own_mean = self._own_mean[table].tolist()
        return Fit(
            layout, variances, (own_mean, of_own_mean), mean, inverse, told, weight, (total - explained) / weight
        )

    def _variances(self, table: int) -> Array:
        """The variances of the terms of each arm and of the level, by kind: [A, 5]."""
        return np.repeat(self.variance[table], [self._arms, 1], axis=0)

    def _prior_mean(self, table: int) -> Array:
        """The prior means of the joint terms: [A, R + Q]."""
        layout, initial = self._layout, self._initial if table == QUALITY else {}
        rows, mean = len(layout.rows) + 1, np.zeros((self._arms + 1, len(layout.kind)))
        for name, place in ({"shared:": 0} | layout.rows).items() if initial else ():
            mean[:, place] = initial.get(name, 0.0)
        mean[-1, 0] = _LEVEL
        for language, place in layout.questions.items():
            mean[:, rows + place] = initial.get(f"question:{language}", 0.0)
            if language in self._arm:
                mean[self._arm[language], rows + place] += self._own_mean[table, 0]
        return mean

    def _predict(
        self,
        table: int,
        fit: Fit,
        contexts: Sequence[Context],
        seen: Features,
        variances_of: slice = slice(None),
    ) -> tuple[Array, Array | None]:
        """As :meth:`Fit.predict`, with the prior means of terms that are not among the joint ones."""
        mean, variance = fit.predict(seen, self._own_language, variances_of)
        layout, initial = fit.layout, self._initial if table == QUALITY else {}
        some = range(len(contexts)) if initial else np.flatnonzero(seen.unmet).tolist()
        for row, context in ((mean[place], contexts[place]) for place in some):
            if self._own_language and context.language not in layout.questions:
                row += initial.get(f"question:{context.language}", 0.0)
                if context.language in self._arm:
                    row[self._arm[context.language]] += fit.own_mean[0]
            for what, names in (("topic:", context.topics), ("region:", context.regions)) if initial else ():
                for name in names:
                    if what + name not in layout.rows:
                        row += initial.get(what + name, 0.0) / len(names)
        return mean, variance

    def worth(self, contexts: Sequence[Context], compliance_weight: float) -> tuple[Array, Array]:
        """The mean and the variance of what an answer in each language is worth: both [C, L].

        The worth is ``quality (1 - weight (1 - compliance))``, with a weight of 1 the expected reward. The variance is
        that of this product to first order, without that of the level, which all languages share.
        """
        seen = self._layout.features(contexts)
        (quality, of_quality), (compliance, of_compliance) = (
            self._predict(table, self._fits[table], contexts, seen) for table in (QUALITY, COMPLIANCE)
        )
        assert of_quality is not None and of_compliance is not None
        if self._own_language:
            arms = np.array([self._arm.get(context.language, -1) for context in contexts], np.intp)
            own = (arms >= 0).nonzero()[0], arms[arms >= 0]
            of_quality[own] += self._fits[QUALITY].own_mean[1]
            of_compliance[own] += self._fits[COMPLIANCE].own_mean[1]
        good = quality[:, :-1] + quality[:, -1:]
        share = 1 - compliance_weight * (1 - np.clip(compliance[:, :-1] + compliance[:, -1:], 0, 1))
        lost = compliance_weight * np.maximum(good, 0)
        variance: Array = share**2 * of_quality[:, :-1] + lost**2 * of_compliance[:, :-1]
        return good * share, variance

    def terms(self, table: int) -> dict[str, Array]:
        """The means [L] of the joint terms, by the names of their rows."""
        fit = self._fits[table]
        names = ["shared:", *fit.layout.rows, *(f"question:{one}" for one in fit.layout.questions)]
        return dict(zip(names, fit.mean[:-1].T, strict=True))

    # -- learning --------------------------------------------------------------------------------------------------

    def update(self, batch: Batch, steps: int) -> None:
        """Learns from the rollouts of so many policy steps."""
        self._noise.fade()
        compliant, seen = batch.compliant.astype(np.float64), self._layout.features(batch.contexts)
        told = [
            self._tell(QUALITY, batch, seen, batch.reward, compliant),
            self._tell(COMPLIANCE, batch, seen, compliant, np.ones_like(compliant)),
        ]
        self._unjudged += steps
        if self._unjudged >= _JUDGED:
            self._judge_rates(batch.contexts, seen, told)
            self._unjudged = 0
        self._add(batch.contexts, told, steps)
        cell = np.array([self._contexts[context] for context in batch.contexts], np.intp)[batch.context] * self._arms
        counts = np.bincount(cell + batch.arm, minlength=len(self._contexts) * self._arms)
        self._counts += counts.reshape(-1, self._arms)
        for table in (QUALITY, COMPLIANCE):
            self._fits[table] = self._centred(table, self._fit(table, self.rate, covariance=True))
            self._estimate(table)

    def _tell(self, table: int, batch: Batch, seen: Features, values: Array, kept: Array) -> tuple[Array, Array]:
        """What the rollouts of a batch tell of the arms in each context.

        The ease of a question is estimated from all of its rollouts under the present means. A rollout in l then tells
        of l what is left, with the information that estimating the ease has not used up.

        Args:
            table: quality or compliance.
            batch: the rollouts.
            seen: the terms of its contexts.
            values: [n] their values.
            kept: [n] 1 for those that count, and 0 for the others.

        Returns:
            Information, and information times value: both [C, A].
        """
        mean, of_level = self._predict(table, self._fits[table], batch.contexts, seen, slice(-1, None))
        assert of_level is not None
        noise, shape = self._noise.answers[table], (len(batch.contexts), self._arms)
        cell, first, size = batch.cell, batch.first, batch.size
        of_group = batch.context[first]
        error = values - (mean[:, :-1] + mean[:, -1:]).ravel()[cell]
        weight = self._noise.weights(table, batch.contexts).ravel()[cell] * kept
        total = np.maximum(np.add.reduceat(weight, first), 1e-12)
        average = np.add.reduceat(weight * error, first) / total
        ease = self._noise.questions[table]
        known = total + noise / (ease + of_level[of_group, 0])
        rest = error - (total / known * average).repeat(size)
        # of a question's rollouts those in the same language weigh the same
        information = weight * (1 - weight * batch.same[table] * (1 / known).repeat(size))
        about_level = noise / (ease + noise / total)

        def by_cell(each: Array) -> Array:
            return np.bincount(cell, each, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64, copy=False)

        def by_context(each: Array) -> Array:
            return np.bincount(of_group, each, minlength=shape[0]).astype(np.float64, copy=False)

        told = np.column_stack([by_cell(information), by_context(about_level)])
        beyond = np.column_stack([by_cell(information * rest), by_context(about_level * average)])
        number = np.add.reduceat(kept, first)
        some = number > 0
        squares = by_cell(kept * (error - average.repeat(size)) ** 2)
        free = by_cell(kept * (1 - 1 / np.maximum(number, 1)).repeat(size))
        self._noise.learn(table, batch.contexts, squares, free, average[some], number[some])
        return told, beyond + told * mean

    def _judge_rates(self, contexts: Sequence[Context], seen: Features, told: Sequence[tuple[Array, Array]]) -> None:
        """Believes the rate whose means are nearest to what was told lately, apart from what all languages share."""
        self._error *= _STEADY
        for table, (information, sums) in enumerate(told):
            information = information[:, :-1]
            values = sums[:, :-1] / np.maximum(information, 1e-12)
            for rate in range(len(KEEP)):
                fit = self._fits[table] if rate == self.rate else self._fit(table, rate, covariance=False)
                off = values - self._predict(table, fit, contexts, seen)[0][:, :-1]
                of_all = (information * off).sum(1) / np.maximum(information.sum(1), 1e-12)
                self._error[rate] += (information * (off - of_all[:, None]) ** 2).sum() / self._noise.answers[table]
        self.rate = int((self._error + _DOUBT * np.arange(len(KEEP))).argmin())

    def _add(self, contexts: Sequence[Context], told: Sequence[tuple[Array, Array]], steps: int) -> None:
        """Lets the sums fade, and adds what a batch told to them."""
        known = len(self._contexts)
        for context in contexts:
            if context not in self._contexts:
                self._names.update(dict.fromkeys(rows_of(context)))
        place = [self._contexts.setdefault(context, len(self._contexts)) for context in contexts]
        wide = [(0, 0), (0, 0), (0, len(self._contexts) - known), (0, 0)]
        keep = np.array(KEEP)[:, None, None, None] ** steps
        self._sums += self._shift[:, None] * self._told
        self._told, self._sums = np.pad(self._told * keep, wide), np.pad(self._sums * keep, wide)
        self._counts = np.pad(self._counts, wide[2:])
        for table, (information, sums) in enumerate(told):
            self._told[:, table, place] += information
            self._sums[:, table, place] += sums
        if len(self._contexts) > known:
            self._layout = Layout(self._joint_rows(), list(self._contexts), self._own_language)

    def _centred(self, table: int, fit: Fit) -> Fit:
        """Moves what all languages have in common from their shared rows to that of the level; the sums follow later.

        Otherwise a language of which little is known, and which is thus near 0, would seem worse than all others.
        """
        common = float(fit.mean[:-1, 0].mean())
        self._shift[table] = np.repeat([-common, common], [self._arms, 1])
        mean = fit.mean.copy()
        mean[:, 0] += self._shift[table]
        return replace(fit, mean=mean)

    def _joint_rows(self) -> list[str]:
        """The topics and regions with the most evidence, in the order in which they were first observed."""
        names = dict.fromkeys(self._names, 0.0)
        if len(names) <= _JOINT:
            return [*names]
        for context, told in zip(self._contexts, self._told[0, :, :, :-1].sum((0, 2)).tolist(), strict=True):
            for name in rows_of(context):
                names[name] += told
        most = set(sorted(names, key=lambda name: -names[name])[:_JOINT])
        return [name for name in names if name in most]

    def _estimate(self, table: int) -> None:
        """Moves the variances, and the mean worth of the own language, to what the posterior says of the terms."""
        fit, arms = self._fits[table], self._arms
        assert fit.covariance is not None
        layout, prior, spread = fit.layout, fit.variances[:, fit.layout.kind], _diagonal(fit.covariance)
        deviation = fit.mean - self._prior_mean(table)
        for which, part in enumerate((slice(0, arms), slice(arms, None))):
            for kind in (SHARED, TOPIC, REGION, OWN)[which:]:  # one term tells nothing of its variance: shared, level
                some = layout.kind == kind
                terms = deviation[part][:, some], spread[part][:, some]
                self.variance[table, which, kind] = _estimated(
                    *terms, prior[part][:, some], self.variance[table, which, kind]
                )
            if (both := layout.rest[:, PAIR] > 0).any():
                of_pair, weight = _of_pairs(fit.variances[part], layout.rest[both]), fit.weight[part][:, both]
                share = (1 - 1 / (of_pair * weight))[:, :, None] * layout.weights[both]
                taken = np.concatenate([share, fit.told[part][:, both] / weight[:, :, None]], axis=2)
                variance = ((taken @ fit.covariance[part]) * taken).sum(2) + 1 / weight
                terms = fit.pair[part][:, both], variance
                self.variance[table, which, PAIR] = _estimated(*terms, of_pair, self.variance[table, which, PAIR])
        places = [(self._arm[one], len(layout.rows) + 1 + n) for one, n in layout.questions.items() if one in self._arm]
        if places:
            arm, place = np.array(places).T
            usual, after = prior[arm, place], spread[arm, place]
            evidence = np.maximum(1 / after - 1 / usual, 1e-9)
            value = deviation[arm, place] / (after * evidence) + fit.own_mean[0]
            trust = 1 / (usual + 1 / evidence)
            variance = 1 / (trust.sum() + 1 / self._own_spread[table])
            mean = variance * (trust * value).sum()
            self._own_mean[table] = mean, variance
            self._own_spread[table] = max(mean**2 + variance, _LEAST)

    # -- saving and loading ----------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The whole state, as values of JSON. Posteriors are computed again from the sums."""
        return {
            "contexts": [list(context) for context in self._contexts],
            "rows": list(self._layout.rows),
            "told": self._told.tolist(),
            "sums": self._sums.tolist(),
            "fitted": [[fit.variances[[0, -1]].tolist(), fit.own_mean] for fit in self._fits],
            "variance": self.variance.tolist(),
            "own_mean": [self._own_mean.tolist(), self._own_spread.tolist()],
            "noise": self._noise.state(),
            "rates": [self.rate, self._error.tolist(), self._unjudged],
            "counts": self._counts.tolist(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues from a :meth:`state`."""
        contexts = [Context(language, tuple(topics), tuple(regions)) for language, topics, regions in state["contexts"]]
        self._contexts = {context: place for place, context in enumerate(contexts)}
        self._names = dict.fromkeys(name for context in contexts for name in rows_of(context))
        self._layout = Layout(state["rows"], contexts, self._own_language)
        shape = (len(KEEP), 2, len(contexts), self._arms + 1)
        self._told, self._sums = np.array(state["told"]).reshape(shape), np.array(state["sums"]).reshape(shape)
        self._noise.load(state["noise"])
        self.rate, self._unjudged = state["rates"][0], state["rates"][2]
        self._error = np.array(state["rates"][1])
        self._counts = np.array(state["counts"], np.float64).reshape(len(contexts), self._arms)
        for table, (variance, own_mean) in enumerate(state["fitted"]):
            self.variance[table], self._own_mean[table] = variance, own_mean
            self._fits[table] = self._centred(table, self._fit(table, self.rate, covariance=True))
        self.variance = np.array(state["variance"])
        self._own_mean, self._own_spread = map(np.array, state["own_mean"])


def _of_pairs(variances: Array, rest: Array) -> Array:
    """The prior variances of pairs' own terms, [A, Z], of variances by kind [A, 5] and their weights [Z, 5]."""
    return np.maximum(variances @ rest.T, 1e-9)


def _diagonal(matrices: Array) -> Array:
    return np.diagonal(matrices, axis1=1, axis2=2)


def _estimated(deviation: Array, spread: Array, prior: Array, before: float) -> float:
    """The variance that some terms have in common: an EM step in which terms count by how much is known of them.

    Where little is known the variance stays as it was.

    Args:
        deviation: of the posterior means from the prior means.
        spread: the posterior variances.
        prior: the prior variances.
        before: the variance that was estimated before; it counts as one term that is known.
    """
    known = np.maximum(1 - spread / prior, 0)
    return max(float(((known * (deviation**2 + spread)).sum() + before) / (known.sum() + 1)), _LEAST)
