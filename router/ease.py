"""What the rollouts of a batch tell of each language, apart from how easy their questions are.

Shape suffixes: N rollouts; G questions that have any; C contexts; L languages; A = L + 1 arms, of which the last is the
level.

A rollout's value is modelled as expected + ease + noise, where ``expected`` is what the beliefs say of its language in
its context. All rollouts of one question share its ease, which is normal around 0 with the variance e of questions plus
that of the level, v. The noise has a variance of ``answer_noise`` / weight. Information is counted in rollouts of
weight 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from router.observations import Array, Batch


class Information(NamedTuple):
    """What a batch tells, of quality or of compliance.

    Attributes:
        information_C_A: in usual rollouts.
        weighted_residual_C_A: information times what the values are above the expected ones.
        squares_C_L: sums of squared deviations from the means of their questions.
        freedom_C_L: their degrees of freedom.
        ease_G: the mean residual of each question of which a rollout counts.
        rollouts_G: how many count, of each of these.
    """

    information_C_A: Array
    weighted_residual_C_A: Array
    squares_C_L: Array
    freedom_C_L: Array
    ease_G: Array
    rollouts_G: Array


def compare_within_questions(
    batch: Batch,
    value_N: Array,
    counts_N: Array,
    same_N: Array,
    expected_C_L: Array,
    weight_C_L: Array,
    level_variance_C: Array,
    answer_noise: float,
    question_noise: float,
) -> Information:
    """Estimates the ease of every question, and what its rollouts then tell of their languages. Changes nothing.

    With W the sum of a question's weights, its ease has a precision of W + answer_noise / (e + v) usual rollouts. A
    rollout tells of its language what is left of its value, with the information that estimating the ease did not use.

    Args:
        batch: the rollouts.
        value_N: their values.
        counts_N: 1 for those that count, and 0 for the others.
        same_N: how many that count are of the same question and language.
        expected_C_L: the values that are expected.
        weight_C_L: what a rollout weighs, compared with a usual one.
        level_variance_C: v, by how much the level may be wrong.
        answer_noise: the variance of the answers to one question in one language.
        question_noise: e, the variance of the ease of questions of one context.
    """
    first, size, context_G = batch.first, batch.size, batch.context[batch.first]
    contexts, languages = expected_C_L.shape
    residual_N = value_N - expected_C_L.ravel()[batch.cell]
    weight_N = weight_C_L.ravel()[batch.cell] * counts_N
    weight_G = np.maximum(np.add.reduceat(weight_N, first), 1e-12)
    ease_G = np.add.reduceat(weight_N * residual_N, first) / weight_G
    ease_precision_G = weight_G + answer_noise / (question_noise + level_variance_C[context_G])
    left_N = residual_N - (weight_G / ease_precision_G * ease_G).repeat(size)
    # of a question's rollouts those in the same language weigh the same
    information_N = weight_N * (1 - weight_N * same_N * (1 / ease_precision_G).repeat(size))
    level_information_G = answer_noise / (question_noise + answer_noise / weight_G)

    def by_cell(each_N: Array) -> Array:
        sums = np.bincount(batch.cell, each_N, minlength=contexts * languages)
        return sums.reshape(contexts, languages).astype(np.float64, copy=False)

    def by_context(each_G: Array) -> Array:
        return np.bincount(context_G, each_G, minlength=contexts).astype(np.float64, copy=False)

    rollouts_G = np.add.reduceat(counts_N, first)
    has_rollouts_G = rollouts_G > 0
    return Information(
        information_C_A=np.column_stack([by_cell(information_N), by_context(level_information_G)]),
        weighted_residual_C_A=np.column_stack(
            [by_cell(information_N * left_N), by_context(level_information_G * ease_G)]
        ),
        squares_C_L=by_cell(counts_N * (residual_N - ease_G.repeat(size)) ** 2),
        freedom_C_L=by_cell(counts_N * (1 - 1 / np.maximum(rollouts_G, 1)).repeat(size)),
        ease_G=ease_G[has_rollouts_G],
        rollouts_G=rollouts_G[has_rollouts_G],
    )
