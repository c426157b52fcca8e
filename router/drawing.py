"""From beliefs to draws: how probable each language is, how even that is made, and how languages are drawn."""

from __future__ import annotations

from math import erf

import numpy as np

from router.observations import Array, Integers

_HALVINGS = 14  # of the interval in which the exponent is searched
_LEAST = 1e-9  # probability, in the logarithm

_FINE = 1000  # entries of the normal distribution's table per standard deviation
_NORMAL = np.array([0.5 + 0.5 * erf(n / _FINE / 2**0.5) for n in range(-5 * _FINE, 5 * _FINE + 1)], np.float32)


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


def spread(chances: Array, worth: Array, budget: float) -> Array:
    """Makes probabilities as even as a budget of expected reward allows: [C, L].

    They become proportional to p^s, with the smallest s in [0, 1] at which the expected reward of a draw is lower by at
    most ``budget``. s = 0 is uniform.

    Args:
        chances: p, [C, L].
        worth: the expected reward of each language, [C, L].
        budget: in units of the reward.
    """
    if budget <= 0 or not len(chances):
        return chances
    logarithm = np.log(np.maximum(chances, _LEAST))
    logarithm -= logarithm.max(1, keepdims=True)
    least = (chances * worth).sum(1) - budget

    def powers(exponent: Array) -> Array:
        result: Array = np.exp(exponent[:, None] * logarithm)
        result /= result.sum(1, keepdims=True)
        return result

    low, high = np.zeros(len(chances)), np.ones(len(chances))
    affordable = worth.mean(1) >= least
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = (powers(middle) * worth).sum(1) >= least
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return powers(np.where(affordable, 0.0, high))


def independent(weights: Array, sizes: Integers, random: np.random.Generator) -> Integers:
    """Draws independently: the arms of all questions one after the other, [sum of sizes].

    Args:
        weights: [P, L] the probabilities of each question's draws.
        sizes: [P] how many draws each question has.
    """
    uniform = random.random(int(sizes.sum()))
    repeated = np.repeat(weights, sizes, axis=0)
    chosen: Integers = np.minimum((repeated.cumsum(1) <= uniform[:, None]).sum(1), weights.shape[1] - 1)
    return chosen


def stratified(weights: Array, sizes: Integers, most: int, random: np.random.Generator) -> Integers:
    """Draws so that a language of probability p has either floor(n p) or ceil(n p) of a question's n draws.

    This is systematic sampling (Madow 1949) with the languages in random order: n points, 1 apart, fall on the
    cumulated n p. A language with n p <= 1 is thus drawn at most once, which is without replacement. The points are
    then dealt to the question's draws in random order, so that each draw by itself has exactly the probabilities
    ``weights``.

    Args:
        weights: [P, L] the probabilities of each question's draws.
        sizes: [P] how many draws each question has, n.
        most: the same for all calls, and no less than any size, so that a question takes equally many random numbers
            whether it is drawn alone or among others.
    """
    arms = weights.shape[1]
    uniform = random.random((len(weights), arms + 1 + most))
    order = uniform[:, :arms].argsort(1)
    ends = np.take_along_axis(weights, order, 1).cumsum(1) * sizes[:, None]
    points = uniform[:, arms, None] + np.arange(most)
    places = np.minimum((ends[:, None, :-1] <= points[:, :, None]).sum(2), arms - 1)
    chosen = np.take_along_axis(order, places, 1)
    real = np.arange(most) < sizes[:, None]
    dealt = np.where(real, uniform[:, arms + 1 :], 2.0).argsort(1)  # 2: after all real ones
    result: Integers = np.take_along_axis(chosen, dealt, 1)[real]
    return result
