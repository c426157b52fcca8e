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

The equations and the shape suffixes are in :mod:`router.regression`, which computes the posterior, and in
:mod:`router.ease`, which says what a batch tells of the languages. Here two more suffixes are used: S rates of ``KEEP``
and T tables, quality and compliance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from router.ease import compare_within_questions
from router.layout import OWN, PAIR, REGION, SHARED, TOPIC, Features, Layout, rows_of
from router.noise import Noise
from router.observations import Array, Batch, Context, Integers
from router.regression import LEAST_VARIANCE, Fit, Prior, estimated_mean, estimated_variance, fit_terms, sum_by_pair

QUALITY, COMPLIANCE = 0, 1  # the first index of the tables
KEEP = (0.998, 0.97, 0.9)  # the share of old evidence that a policy step keeps
_JOINT = 96  # topics and regions that are fitted jointly, those with the most evidence; others are part of their pairs
_JUDGED = 3  # policy steps between two judgements of the rates
_STEADY = 0.97  # the share of their weight that older judgements keep
_DOUBT = 2.0  # by how much more likely, in -2 log, the newest rewards must be at a rate than at the next slower one
_OWN = 0.15  # standard deviation of the mean worth of the own language, before anything is known
# Variances by kind before anything is known, of the terms of languages and of the level.
_FIRST = np.array([[0.05, 0.05, 0.05, 0.05, 0.03], [0.5, 0.1, 0.1, 0.1, 0.05]]) ** 2
_LEVEL = 0.5  # prior mean of the shared row of the level


class Told(NamedTuple):
    """What a batch tells of one table: information in usual rollouts, and information times value, both [C, A]."""

    information_C_A: Array
    weighted_value_C_A: Array


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
        # What was observed: information in usual rollouts, and information times value.
        self._information_S_T_C_A, self._weighted_value_S_T_C_A = np.zeros((2, len(KEEP), 2, 0, self._arms + 1))
        self.variance = np.array([_FIRST, _FIRST])
        self._own_mean = np.array([[0.0, 0.0]] * 2)  # of own[l, l], of quality and of compliance; and its variance
        self._own_spread = np.full(2, _OWN**2)  # the prior variance of that mean
        self._shift_T_A = np.zeros((2, self._arms + 1))  # what shared rows moved by since evidence was added
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
        """Computes the posterior of a table from the evidence that was kept at a rate."""
        noise = self._noise.answers[table]
        evidence = sum_by_pair(
            self._layout,
            self._information_S_T_C_A[rate, table].T / noise,
            self._weighted_value_S_T_C_A[rate, table].T / noise,
        )
        mean, variance = self._own_mean[table].tolist()
        prior = Prior(self._variances(table), self._prior_mean(table), (mean, variance))
        return fit_terms(self._layout, evidence, prior, covariance=covariance)

    def _variances(self, table: int) -> Array:
        """The variances of the terms of each arm and of the level, by kind: [A, V]."""
        return np.repeat(self.variance[table], [self._arms, 1], axis=0)

    def _prior_mean(self, table: int) -> Array:
        """The prior means of the joint terms: [A, J]."""
        layout, initial = self._layout, self._initial if table == QUALITY else {}
        mean_A_J = np.zeros((self._arms + 1, len(layout.kind_J)))
        for name, row in ({"shared:": 0} | layout.rows).items() if initial else ():
            mean_A_J[:, row] = initial.get(name, 0.0)
        mean_A_J[-1, 0] = _LEVEL
        for question, language in enumerate(layout.questions, start=len(layout.rows) + 1):
            mean_A_J[:, question] = initial.get(f"question:{language}", 0.0)
            if language in self._arm:
                mean_A_J[self._arm[language], question] += self._own_mean[table, 0]
        return mean_A_J

    def _predict(
        self,
        table: int,
        fit: Fit,
        contexts: Sequence[Context],
        features: Features,
        variances_of: slice = slice(None),
    ) -> tuple[Array, Array | None]:
        """As :meth:`Fit.predict`, with the prior means of terms that are not among the joint ones."""
        mean_C_A, variance_C_A = fit.predict(features, self._own_language, variances_of)
        layout, initial = fit.layout, self._initial if table == QUALITY else {}
        changed = range(len(contexts)) if initial else np.flatnonzero(features.has_new_language_C).tolist()
        for mean_A, context in ((mean_C_A[index], contexts[index]) for index in changed):
            if self._own_language and context.language not in layout.questions:
                mean_A += initial.get(f"question:{context.language}", 0.0)
                if context.language in self._arm:
                    mean_A[self._arm[context.language]] += fit.prior.own_mean[0]
            for kind, names in (("topic:", context.topics), ("region:", context.regions)) if initial else ():
                for name in names:
                    if kind + name not in layout.rows:
                        mean_A += initial.get(kind + name, 0.0) / len(names)
        return mean_C_A, variance_C_A

    def worth(self, contexts: Sequence[Context], compliance_weight: float) -> tuple[Array, Array]:
        """The mean and the variance of what an answer in each language is worth: both [C, L].

        The worth is ``quality (1 - weight (1 - compliance))``, with a weight of 1 the expected reward. The variance is
        that of this product to first order, without that of the level, which all languages share.
        """
        features = self._layout.features(contexts)
        (quality_C_A, quality_variance_C_A), (compliance_C_A, compliance_variance_C_A) = (
            self._predict(table, self._fits[table], contexts, features) for table in (QUALITY, COMPLIANCE)
        )
        assert quality_variance_C_A is not None and compliance_variance_C_A is not None
        if self._own_language:
            arm_C = np.array([self._arm.get(context.language, -1) for context in contexts], np.intp)
            own = (arm_C >= 0).nonzero()[0], arm_C[arm_C >= 0]
            quality_variance_C_A[own] += self._fits[QUALITY].prior.own_mean[1]
            compliance_variance_C_A[own] += self._fits[COMPLIANCE].prior.own_mean[1]
        quality_C_L = quality_C_A[:, :-1] + quality_C_A[:, -1:]
        compliance_C_L = np.clip(compliance_C_A[:, :-1] + compliance_C_A[:, -1:], 0, 1)
        kept_share_C_L = 1 - compliance_weight * (1 - compliance_C_L)
        compliance_slope_C_L = compliance_weight * np.maximum(quality_C_L, 0)
        variance: Array = (
            kept_share_C_L**2 * quality_variance_C_A[:, :-1] + compliance_slope_C_L**2 * compliance_variance_C_A[:, :-1]
        )
        return quality_C_L * kept_share_C_L, variance

    def terms(self, table: int) -> dict[str, Array]:
        """The means [L] of the joint terms, by the names of their rows."""
        fit = self._fits[table]
        names = ["shared:", *fit.layout.rows, *(f"question:{one}" for one in fit.layout.questions)]
        return dict(zip(names, fit.mean_A_J[:-1].T, strict=True))

    # -- learning --------------------------------------------------------------------------------------------------

    def update(self, batch: Batch, steps: int) -> None:
        """Learns from the rollouts of so many policy steps."""
        self._noise.fade()
        compliant_N, features = batch.compliant.astype(np.float64), self._layout.features(batch.contexts)
        told = [
            self._information_of(QUALITY, batch, features, batch.reward, compliant_N),
            self._information_of(COMPLIANCE, batch, features, compliant_N, np.ones_like(compliant_N)),
        ]
        self._unjudged += steps
        if self._unjudged >= _JUDGED:
            self._judge_rates(batch.contexts, features, told)
            self._unjudged = 0
        self._add_evidence(batch.contexts, told, steps)
        cell = np.array([self._contexts[context] for context in batch.contexts], np.intp)[batch.context] * self._arms
        counts = np.bincount(cell + batch.arm, minlength=len(self._contexts) * self._arms)
        self._counts += counts.reshape(-1, self._arms)
        for table in (QUALITY, COMPLIANCE):
            self._fits[table] = self._centred(table, self._fit(table, self.rate, covariance=True))
            self._estimate_variances(table)
            self._estimate_own_mean(table)

    def _information_of(self, table: int, batch: Batch, features: Features, value_N: Array, counts_N: Array) -> Told:
        """What the rollouts of a batch tell of the arms in each context. The estimate of the noise learns from them.

        Args:
            table: quality or compliance.
            batch: the rollouts.
            features: the terms of its contexts.
            value_N: their values.
            counts_N: 1 for those that count, and 0 for the others.
        """
        mean_C_A, level_variance_C_1 = self._predict(
            table, self._fits[table], batch.contexts, features, slice(-1, None)
        )
        assert level_variance_C_1 is not None
        found = compare_within_questions(
            batch,
            value_N,
            counts_N,
            batch.same[table],
            expected_C_L=mean_C_A[:, :-1] + mean_C_A[:, -1:],
            weight_C_L=self._noise.weights(table, batch.contexts),
            level_variance_C=level_variance_C_1[:, 0],
            answer_noise=self._noise.answers[table],
            question_noise=self._noise.questions[table],
        )
        self._noise.learn(table, batch.contexts, found.squares_C_L, found.freedom_C_L, found.ease_G, found.rollouts_G)
        return Told(found.information_C_A, found.weighted_residual_C_A + found.information_C_A * mean_C_A)

    def _judge_rates(self, contexts: Sequence[Context], features: Features, told: Sequence[Told]) -> None:
        """Believes the rate whose means are nearest to what was told lately, apart from what all languages share."""
        self._error *= _STEADY
        for table, (information_C_A, weighted_value_C_A) in enumerate(told):
            information_C_L = information_C_A[:, :-1]
            value_C_L = weighted_value_C_A[:, :-1] / np.maximum(information_C_L, 1e-12)
            for rate in range(len(KEEP)):
                fit = self._fits[table] if rate == self.rate else self._fit(table, rate, covariance=False)
                error_C_L = value_C_L - self._predict(table, fit, contexts, features)[0][:, :-1]
                shared_error_C = (information_C_L * error_C_L).sum(1) / np.maximum(information_C_L.sum(1), 1e-12)
                squares = (information_C_L * (error_C_L - shared_error_C[:, None]) ** 2).sum()
                self._error[rate] += squares / self._noise.answers[table]
        self.rate = int((self._error + _DOUBT * np.arange(len(KEEP))).argmin())

    def _add_evidence(self, contexts: Sequence[Context], told: Sequence[Told], steps: int) -> None:
        """Lets old evidence fade, and adds what a batch told."""
        known = len(self._contexts)
        for context in contexts:
            if context not in self._contexts:
                self._names.update(dict.fromkeys(rows_of(context)))
        index = [self._contexts.setdefault(context, len(self._contexts)) for context in contexts]
        wider = [(0, 0), (0, 0), (0, len(self._contexts) - known), (0, 0)]
        keep = np.array(KEEP)[:, None, None, None] ** steps
        self._weighted_value_S_T_C_A += self._shift_T_A[:, None] * self._information_S_T_C_A
        self._information_S_T_C_A = np.pad(self._information_S_T_C_A * keep, wider)
        self._weighted_value_S_T_C_A = np.pad(self._weighted_value_S_T_C_A * keep, wider)
        self._counts = np.pad(self._counts, wider[2:])
        for table, (information_C_A, weighted_value_C_A) in enumerate(told):
            self._information_S_T_C_A[:, table, index] += information_C_A
            self._weighted_value_S_T_C_A[:, table, index] += weighted_value_C_A
        if len(self._contexts) > known:
            self._layout = Layout(self._joint_rows(), list(self._contexts), self._own_language)

    def _centred(self, table: int, fit: Fit) -> Fit:
        """Moves what all languages have in common from their shared rows to that of the level.

        Otherwise a language of which little is known, and which is thus near 0, would seem worse than all others. The
        evidence follows when more is added to it.
        """
        common = float(fit.mean_A_J[:-1, 0].mean())
        self._shift_T_A[table] = np.repeat([-common, common], [self._arms, 1])
        mean_A_J = fit.mean_A_J.copy()
        mean_A_J[:, 0] += self._shift_T_A[table]
        return replace(fit, mean_A_J=mean_A_J)

    def _joint_rows(self) -> list[str]:
        """The topics and regions with the most evidence, in the order in which they were first observed."""
        names = dict.fromkeys(self._names, 0.0)
        if len(names) <= _JOINT:
            return [*names]
        information_C = self._information_S_T_C_A[0, :, :, :-1].sum((0, 2)).tolist()
        for context, information in zip(self._contexts, information_C, strict=True):
            for name in rows_of(context):
                names[name] += information
        most = set(sorted(names, key=lambda name: -names[name])[:_JOINT])
        return [name for name in names if name in most]

    def _estimate_variances(self, table: int) -> None:
        """Moves the variance of every kind of term to what the posterior says of these terms."""
        fit = self._fits[table]
        kind_J, prior_A_J, posterior_A_J, deviation_A_J = self._joint_terms(table)
        for which, arms in enumerate((slice(0, self._arms), slice(self._arms, None))):  # languages, and the level
            variance_V = self.variance[table, which]
            for kind in (SHARED, TOPIC, REGION, OWN)[which:]:  # one term tells nothing of its variance: shared, level
                of_kind = arms, kind_J == kind
                variance_V[kind] = estimated_variance(
                    deviation_A_J[of_kind], posterior_A_J[of_kind], prior_A_J[of_kind], variance_V[kind]
                )
            mean_A_Z, posterior_A_Z, prior_A_Z = fit.pair_terms(arms)
            if mean_A_Z.size:
                variance_V[PAIR] = estimated_variance(mean_A_Z, posterior_A_Z, prior_A_Z, variance_V[PAIR])

    def _estimate_own_mean(self, table: int) -> None:
        """Moves the mean worth of the question's own language to what the posterior says of own[l, l]."""
        layout = self._layout
        questions = enumerate(layout.questions, start=len(layout.rows) + 1)
        own = [(self._arm[language], term) for term, language in questions if language in self._arm]
        if own:
            _, prior_A_J, posterior_A_J, deviation_A_J = self._joint_terms(table)
            at = tuple(np.array(own).T)
            mean, variance = estimated_mean(
                deviation_A_J[at],
                posterior_A_J[at],
                prior_A_J[at],
                own_mean=self._fits[table].prior.own_mean[0],
                variance=self._own_spread[table],
            )
            self._own_mean[table] = mean, variance
            self._own_spread[table] = max(mean**2 + variance, LEAST_VARIANCE)

    def _joint_terms(self, table: int) -> tuple[Integers, Array, Array, Array]:
        """Of the joint terms: their kinds [J], prior and posterior variances, and posterior less prior means [A, J]."""
        fit = self._fits[table]
        assert fit.covariance_A_J_J is not None
        kind_J, posterior_A_J = fit.layout.kind_J, np.diagonal(fit.covariance_A_J_J, axis1=1, axis2=2)
        return kind_J, fit.prior.variance_A_V[:, kind_J], posterior_A_J, fit.mean_A_J - fit.prior.mean_A_J

    # -- saving and loading ----------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The whole state, as values of JSON. Posteriors are computed again from what was observed.

        The names are those of checkpoints: "told" is information, "sums" information times value, and "fitted" has the
        prior that each present posterior was computed with.
        """
        return {
            "contexts": [list(context) for context in self._contexts],
            "rows": list(self._layout.rows),
            "told": self._information_S_T_C_A.tolist(),
            "sums": self._weighted_value_S_T_C_A.tolist(),
            "fitted": [[fit.prior.variance_A_V[[0, -1]].tolist(), fit.prior.own_mean] for fit in self._fits],
            "variance": self.variance.tolist(),
            "own_mean": [self._own_mean.tolist(), self._own_spread.tolist()],
            "noise": self._noise.state(),
            "rates": [self.rate, self._error.tolist(), self._unjudged],
            "counts": self._counts.tolist(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues from a :meth:`state`."""
        contexts = [Context(language, tuple(topics), tuple(regions)) for language, topics, regions in state["contexts"]]
        self._contexts = {context: index for index, context in enumerate(contexts)}
        self._names = dict.fromkeys(name for context in contexts for name in rows_of(context))
        self._layout = Layout(state["rows"], contexts, self._own_language)
        shape = (len(KEEP), 2, len(contexts), self._arms + 1)
        self._information_S_T_C_A = np.array(state["told"]).reshape(shape)
        self._weighted_value_S_T_C_A = np.array(state["sums"]).reshape(shape)
        self._noise.load(state["noise"])
        self.rate, self._unjudged = state["rates"][0], state["rates"][2]
        self._error = np.array(state["rates"][1])
        self._counts = np.array(state["counts"], np.float64).reshape(len(contexts), self._arms)
        for table, (variance, own_mean) in enumerate(state["fitted"]):
            self.variance[table], self._own_mean[table] = variance, own_mean
            self._fits[table] = self._centred(table, self._fit(table, self.rate, covariance=True))
        self.variance = np.array(state["variance"])
        self._own_mean, self._own_spread = map(np.array, state["own_mean"])
