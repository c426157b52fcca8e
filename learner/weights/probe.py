"""The probe: a fixed sequence with which an engine proves that its weights are the learner's.

The learner computes the log-probabilities of the sequence under the weights that it publishes. An engine computes them
too, after its update, and may send answers only if the mean absolute difference is within a tolerance. The arithmetic
of both differs, so the tolerance must let rounding pass and nothing else.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_TOKENS = 129
_SEED = 0
_EXACT = 1e-3  # nats; where learner and engine both compute in float32, only the order of additions differs
# Rounding errors of bfloat16 add up over the layers like a random walk, in proportion to the spread of the
# log-probabilities, so the unit is 2^-8 * sqrt(layers) * spread. In this unit, correct weights were measured at 0.9 to
# 1.4 from float32 in trained models of 4 layers (SGLang and transformers) and at 1.8 to 3.0 in random models of 2 to 24
# layers; a sixth more where the learner rounds too. Weights that are off by 5% were at 14 if all layers are, and at 2.3
# to 14 if one is; weights off by 1% at 3. A false alarm restarts an engine for nothing, which costs more than the small
# errors that stay below 6.
_ROUNDING_UNITS = 6
_BFLOAT16_ROUNDING = 2**-8
_LARGEST = 0.25  # nats; a model whose log-probabilities spread widely must not make the check meaningless


def make_probe_sequence(vocabulary: int) -> NDArray[np.int32]:
    """Random token ids, [129] int32, each below ``vocabulary``; the same ones at every call."""
    return np.random.default_rng(_SEED).integers(0, vocabulary, _TOKENS).astype(np.int32)


def probe_tolerance(configured: float, *, exact: bool, layers: int, spread: float) -> float:
    """The largest mean absolute difference of log-probabilities, in nats, that correct weights may show.

    With rounding it is min(0.25, 6 * 2^-8 * sqrt(layers) * spread).

    Args:
        configured: ``sync.probe_tolerance``, in nats. Holds as it is unless it is 0.
        exact: learner and engine both compute in float32.
        layers: number of layers of the model.
        spread: standard deviation of the learner's log-probabilities of the sequence, in nats.
    """
    rounding = min(_LARGEST, _ROUNDING_UNITS * _BFLOAT16_ROUNDING * math.sqrt(layers) * spread)
    return configured or (_EXACT if exact else rounding)
