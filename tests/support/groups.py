"""What tests make groups of: what benchmarks do, and a generator that is seeded for every test."""

from __future__ import annotations

import random

import numpy as np

from scripts.bench.support.groups import LANGUAGES, part_languages, question, random_rollout, work

__all__ = ["LANGUAGES", "part_languages", "question", "random_rollout", "seeded_generator", "work"]


def seeded_generator() -> np.random.Generator:
    """A generator whose seed is drawn from ``random``, which is seeded for every test (tests/conftest.py)."""
    return np.random.default_rng(random.getrandbits(64))
