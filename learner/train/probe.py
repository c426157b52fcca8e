"""The probe of a weight sync: a fixed sequence, and how far engine and learner may differ on its log-probabilities."""

from __future__ import annotations

import math

import numpy as np

from common.wire import Rollout, Score

_TOKENS = 129
# Rounding errors of bfloat16 add up like a random walk over the layers, in proportion to the spread of the
# log-probabilities. In units of 2^-8 · sqrt(layers) · spread, an engine with the right weights differed from float32 by
# 0.9 to 1.4 with trained models of 4 layers (SGLang and transformers), and by 1.8 to 3.0 with random models of 2 to 24
# layers; a sixth more where the learner rounds too. Weights that were wrong by 5% differed by 14 (all layers wrong) or
# by 2.3 to 14 (one layer wrong); weights wrong by 1% by 3. The limit is 6: a false alarm costs more than the errors
# that remain undetected below it.
_LIMIT, _LARGEST_TOLERANCE = 6 * 2**-8, 0.25
_EXACT_TOLERANCE = 1e-3  # nats, if engine and learner both compute in float32


def probe_rollout(vocabulary: int) -> Rollout:
    """A random sequence that is always the same, as a rollout whose prompt is the first token."""
    ids = np.random.default_rng(0).integers(0, vocabulary, _TOKENS).astype(np.int32)
    zeros = np.zeros(len(ids) - 1, np.float32)
    unused = Score(reward=0, quality=0, similarity=0, compliant=True, detected="")
    return Rollout(
        language="", prompt_ids=ids[:1], response_ids=ids[1:], logprobs=zeros, versions=zeros.astype(np.int32),
        truncated=False, text="", score=unused,
    )  # fmt: skip


def probe_tolerance(layers: int, spread: float, *, exact: bool) -> float:
    """The mean difference between engine and learner, in nats a token, beyond which the weights must be wrong.

    Args:
        layers: of the model.
        spread: standard deviation of the probe's log-probabilities, in nats.
        exact: whether engine and learner both compute in float32.
    """
    return _EXACT_TOLERANCE if exact else min(_LARGEST_TOLERANCE, _LIMIT * math.sqrt(layers) * spread)
