"""The joint posterior of all terms of the model of :mod:`router.posterior`, by ridge regression, of one table.

Shape suffixes: A arms, which are the L languages and the level; Z pairs of topics and regions; Q languages of
questions; R joint rows, which are shared ones, topics and regions; J = R + Q joint terms; C contexts; V kinds of terms,
each with a variance of its own.

For each arm, the rollouts of pair z and of questions in language q have a precision n[z, q] = ``precision_A_Z_Q`` and,
with that precision as weight, a sum of values b[z, q] = ``weighted_value_A_Z_Q``. A value is modelled as

    X[z] @ row + own[q] + pair[z] + noise,

with X = ``row_weights_Z_R``. The joint terms, ``row`` and ``own``, have the prior variances ``prior_A_J``, and pair[z]
has v[z] = ``pair_term_variance_A_Z``. n[z] = ``pair_precision_A_Z`` and b[z] = ``pair_weighted_value_A_Z`` are the sums
over all questions, also those without a language.

Every rollout is in one pair, so the terms of pairs are eliminated first. Given the joint terms, pair[z] has the
precision w[z] = n[z] + 1 / v[z] = ``pair_term_precision_A_Z``. It leaves to the joint terms the share
s[z] = 1 / (v[z] w[z]) = ``joint_share_A_Z`` of its pair's evidence. With N the matrix of n[z, q], the normal equations
of the joint terms are then the Schur complement

    P_RR = X' diag(n s) X        P_RQ = X' diag(s) N        P_QQ = diag(sum_z n[z, q]) - N' diag(1 / w) N
    y_R  = X' (b s)              y_Q  = sum_z b[z, q] - N' (b / w)

with the prior added: (P + diag(1 / prior)) mean = y + prior mean / prior. Substituting back,

    pair[z] = (b[z] - n[z] X[z] @ row - sum_q n[z, q] own[q]) / w[z].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from router.layout import OWN, PAIR, Features, Layout
from router.observations import Array

LEAST_VARIANCE = 1e-7  # of a term


class Evidence(NamedTuple):
    """What was observed of each arm, as the docstring of the module defines it: [A, Z, Q] twice, and [A, Z] twice."""

    precision_A_Z_Q: Array
    weighted_value_A_Z_Q: Array
    pair_precision_A_Z: Array
    pair_weighted_value_A_Z: Array


class Prior(NamedTuple):
    """What is believed of the terms without any evidence.

    Attributes:
        variance_A_V: the variances by kind.
        mean_A_J: the means of the joint terms.
        own_mean: that of own[l, l] in ``mean_A_J``, and its variance.
    """

    variance_A_V: Array
    mean_A_J: Array
    own_mean: tuple[float, float]


@dataclass(frozen=True)
class Fit:
    """The posterior of the terms of one table.

    Attributes:
        layout: the terms.
        prior: what it was computed with.
        mean_A_J: of the joint terms.
        covariance_A_J_J: of these; None where it was not asked for.
        precision_A_Z_Q: as in :class:`Evidence`.
        pair_term_precision_A_Z: the precision of each pair's own term, given the joint terms.
        pair_term_A_Z: the mean of that term.
    """

    layout: Layout
    prior: Prior
    mean_A_J: Array
    covariance_A_J_J: Array | None
    precision_A_Z_Q: Array
    pair_term_precision_A_Z: Array
    pair_term_A_Z: Array

    def predict(
        self, features: Features, own_language: bool, variances_of: slice = slice(None)
    ) -> tuple[Array, Array | None]:
        """The mean of the sum of each arm's terms [C, A], and, with a covariance, the variances of some of them.

        What was never observed has its prior variance, and a mean of 0.

        Args:
            features: the terms that apply to the C contexts.
            own_language: whether the language of the question has terms.
            variances_of: the arms whose variances are computed.
        """
        rows, was_observed_C = self.layout.row_weights_Z_R.shape[1], features.pair_C >= 0
        pair = features.pair_C[was_observed_C]
        mean_C_A = features.weights_C_J @ self.mean_A_J.T
        mean_C_A[was_observed_C] += self.pair_term_A_Z[:, pair].T
        if self.covariance_A_J_J is None:
            return mean_C_A, None
        variance_A_V = self.prior.variance_A_V[variances_of]
        prior_A_C = pair_term_variance(variance_A_V, features.pair_variance_weights_C_V)
        precision_A_C = 1 / prior_A_C
        precision_A_C[:, was_observed_C] = self.pair_term_precision_A_Z[variances_of, pair]
        # the weights of the joint terms, less what the pair's own term takes back when they change
        weights_A_C_J = np.repeat(features.weights_C_J[None], len(precision_A_C), axis=0)
        weights_A_C_J[:, :, :rows] *= (1 / (prior_A_C * precision_A_C))[:, :, None]
        weights_A_C_J[:, was_observed_C, rows:] -= (
            self.precision_A_Z_Q[variances_of, pair] / precision_A_C[:, was_observed_C, None]
        )
        variance_A_C = _variance_of_sums(weights_A_C_J, self.covariance_A_J_J[variances_of]) + 1 / precision_A_C
        if own_language:
            variance_A_C[:, features.has_new_language_C] += variance_A_V[:, OWN, None]
        return mean_C_A, variance_A_C.T

    def pair_terms(self, arms: slice) -> tuple[Array, Array, Array]:
        """Mean, posterior variance and prior variance of the own terms of pairs with a topic and a region: [A, Z] each.

        Args:
            arms: the arms whose terms are returned.
        """
        assert self.covariance_A_J_J is not None
        interacts_Z = self.layout.pair_variance_weights_Z_V[:, PAIR] > 0
        precision_A_Z = self.pair_term_precision_A_Z[arms][:, interacts_Z]
        prior_A_Z = pair_term_variance(
            self.prior.variance_A_V[arms], self.layout.pair_variance_weights_Z_V[interacts_Z]
        )
        # by how much the term falls when a joint term rises
        of_rows = (1 - 1 / (prior_A_Z * precision_A_Z))[:, :, None] * self.layout.row_weights_Z_R[interacts_Z]
        of_questions = self.precision_A_Z_Q[arms][:, interacts_Z] / precision_A_Z[:, :, None]
        slope_A_Z_J = np.concatenate([of_rows, of_questions], axis=2)
        variance_A_Z = _variance_of_sums(slope_A_Z_J, self.covariance_A_J_J[arms]) + 1 / precision_A_Z
        return self.pair_term_A_Z[arms][:, interacts_Z], variance_A_Z, prior_A_Z


def sum_by_pair(layout: Layout, precision_A_C: Array, weighted_value_A_C: Array) -> Evidence:
    """Sums what was observed in the contexts of a layout.

    Args:
        layout: whose C contexts these are, each once.
        precision_A_C: of the rollouts of each arm in each context.
        weighted_value_A_C: the sum of their values, each with its precision as weight.
    """
    precision = _sum_by_pair(layout, precision_A_C)
    weighted_value = _sum_by_pair(layout, weighted_value_A_C)
    return Evidence(precision[0], weighted_value[0], precision[1], weighted_value[1])


def _sum_by_pair(layout: Layout, values_A_C: Array) -> tuple[Array, Array]:
    """Sums [A, Z, Q] over questions with a language, and [A, Z] over all questions."""
    arms, pairs, questions = len(values_A_C), len(layout.pairs), len(layout.questions)
    has_language_C = layout.question_C < questions
    by_question_A_Z_Q = np.zeros((arms, pairs, questions))
    of_questions = layout.pair_C[has_language_C], layout.question_C[has_language_C]
    by_question_A_Z_Q[:, *of_questions] = values_A_C[:, has_language_C]  # only one context has this pair and language
    by_pair_A_Z: Array = by_question_A_Z_Q.sum(2)
    np.add.at(by_pair_A_Z.T, layout.pair_C[~has_language_C], values_A_C.T[~has_language_C])
    return by_question_A_Z_Q, by_pair_A_Z


def fit_terms(layout: Layout, evidence: Evidence, prior: Prior, *, covariance: bool) -> Fit:
    """Computes the posterior.

    Args:
        layout: the terms.
        evidence: what was observed.
        prior: of the terms.
        covariance: whether the covariance of the joint terms is computed, too.
    """
    prior_A_Z = pair_term_variance(prior.variance_A_V, layout.pair_variance_weights_Z_V)
    pair_term_precision_A_Z = evidence.pair_precision_A_Z + 1 / prior_A_Z
    joint_share_A_Z = 1 / (prior_A_Z * pair_term_precision_A_Z)
    precision_A_J_J, value_A_J = _eliminate_pairs(layout, evidence, pair_term_precision_A_Z, joint_share_A_Z)
    mean_A_J, covariance_A_J_J = _solve(layout, precision_A_J_J, value_A_J, prior, covariance=covariance)
    pair_term_A_Z = _substitute_back(layout, evidence, pair_term_precision_A_Z, mean_A_J)
    return Fit(
        layout, prior, mean_A_J, covariance_A_J_J, evidence.precision_A_Z_Q, pair_term_precision_A_Z, pair_term_A_Z
    )


def _eliminate_pairs(
    layout: Layout, evidence: Evidence, pair_term_precision_A_Z: Array, joint_share_A_Z: Array
) -> tuple[Array, Array]:  # fmt: skip
    """P [A, J, J] and y [A, J] of the docstring of the module, without the prior."""
    precision_A_Z_Q, weighted_value_A_Z_Q, pair_precision_A_Z, pair_weighted_value_A_Z = evidence
    x, w, s = layout.row_weights_Z_R, pair_term_precision_A_Z, joint_share_A_Z
    rows, joint = x.shape[1], len(layout.kind_J)
    p = np.empty((len(w), joint, joint))
    p[:, :rows, :rows] = (x.T * (pair_precision_A_Z * s)[:, None]) @ x
    p[:, :rows, rows:] = x.T @ (precision_A_Z_Q * s[:, :, None])
    p[:, rows:, :rows] = p[:, :rows, rows:].transpose(0, 2, 1)
    p[:, rows:, rows:] = -(precision_A_Z_Q / w[:, :, None]).transpose(0, 2, 1) @ precision_A_Z_Q
    diagonal = np.arange(rows, joint)
    p[:, diagonal, diagonal] += precision_A_Z_Q.sum(1)
    y_A_R = (pair_weighted_value_A_Z * s) @ x
    y_A_Q = weighted_value_A_Z_Q.sum(1) - ((pair_weighted_value_A_Z / w)[:, None] @ precision_A_Z_Q)[:, 0]
    return p, np.concatenate([y_A_R, y_A_Q], axis=1)


def _solve(
    layout: Layout, precision_A_J_J: Array, value_A_J: Array, prior: Prior, *, covariance: bool
) -> tuple[Array, Array | None]:  # fmt: skip
    """Mean [A, J] and, where asked for, covariance [A, J, J] of the joint terms. Adds the prior to its arguments."""
    prior_A_J, diagonal = prior.variance_A_V[:, layout.kind_J], np.arange(len(layout.kind_J))
    value_A_J += prior.mean_A_J / prior_A_J
    precision_A_J_J[:, diagonal, diagonal] += 1 / prior_A_J
    if covariance:
        covariance_A_J_J: Array = np.linalg.inv(precision_A_J_J).astype(np.float64, copy=False)
        return (covariance_A_J_J @ value_A_J[:, :, None])[:, :, 0], covariance_A_J_J
    mean_A_J = np.linalg.solve(precision_A_J_J, value_A_J[:, :, None])[:, :, 0].astype(np.float64, copy=False)
    return mean_A_J, None


def _substitute_back(layout: Layout, evidence: Evidence, pair_term_precision_A_Z: Array, mean_A_J: Array) -> Array:
    """The means of pairs' own terms, given those of the joint terms: [A, Z]."""
    x = layout.row_weights_Z_R
    row_A_R, own_A_Q = np.split(mean_A_J, [x.shape[1]], axis=1)
    of_rows_A_Z = evidence.pair_precision_A_Z * (row_A_R @ x.T)
    of_questions_A_Z = (evidence.precision_A_Z_Q @ own_A_Q[:, :, None])[:, :, 0]
    mean: Array = (evidence.pair_weighted_value_A_Z - (of_rows_A_Z + of_questions_A_Z)) / pair_term_precision_A_Z
    return mean


def pair_term_variance(variance_A_V: Array, weights_Z_V: Array) -> Array:
    """The prior variances of pairs' own terms, [A, Z], from the variances by kind and each pair's weights of them."""
    return np.maximum(variance_A_V @ weights_Z_V.T, 1e-9)


def estimated_variance(deviation: Array, posterior: Array, prior: Array, before: float) -> float:
    """The variance that some terms have in common: an EM step in which terms count by how much is known of them.

    Where little is known the variance stays as it was. The arrays have one shape, that of the terms.

    Args:
        deviation: of the posterior means from the prior means.
        posterior: the posterior variances.
        prior: the prior variances.
        before: the variance that was estimated before; it counts as one term that is known.
    """
    known = np.maximum(1 - posterior / prior, 0)
    return max(float(((known * (deviation**2 + posterior)).sum() + before) / (known.sum() + 1)), LEAST_VARIANCE)


def estimated_mean(
    deviation_Q: Array, posterior_Q: Array, prior_Q: Array, own_mean: float, variance: float
) -> tuple[float, float]:
    """The mean that the terms of some languages' own questions have in common, and its posterior variance.

    Each term's own evidence is what its posterior has beyond its prior, and counts with the precision of a value that
    differs from the common mean by the term's deviation and by the error of that evidence.

    Args:
        deviation_Q: of the posterior means from the prior mean.
        posterior_Q: the posterior variances.
        prior_Q: the prior variances.
        own_mean: the prior mean of the terms.
        variance: the prior variance of the common mean, whose own prior mean is 0.
    """
    evidence_Q = np.maximum(1 / posterior_Q - 1 / prior_Q, 1e-9)
    value_Q = deviation_Q / (posterior_Q * evidence_Q) + own_mean
    precision_Q = 1 / (prior_Q + 1 / evidence_Q)
    posterior = 1 / (precision_Q.sum() + 1 / variance)
    return posterior * (precision_Q * value_Q).sum(), posterior


def _variance_of_sums(weights: Array, covariance: Array) -> Array:
    """The variances [A, N] of sums with weights [A, N, J] of terms with a covariance [A, J, J]."""
    variance: Array = ((weights @ covariance) * weights).sum(2)
    return variance
