"""The schedule of AdaMame (arXiv 2606.15080) over the run, from the parts that adamame.py gives.

With x the share of the run that is over, K answers to a question and n of them in the language of this one:

    reward = acc · a · q
    a = 1 + (K / n − 1) (1 + cos πx) / 2           rarity, which falls from K / n to 1
    q = 1 + B max((1 − cos πx) / 2, 0.1) · match   alignment with the question's language, which rises to 1 + B

B = 2, so the reward is in [0, 1.2 K].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.train.step_reward import Step

Floats = NDArray[np.float64]

_BONUS, _LEAST = 2.0, 0.1  # B, and the share of it that holds from the beginning


def rarity_and_alignment(step: Step, state: dict[str, Any]) -> tuple[Floats, dict[str, Any]]:
    """The reward of the paper's README, with both factors."""
    answers = np.bincount(step.group)[step.group]  # K, of each answer's group
    falling = (1 + np.cos(np.pi * step.progress)) / 2
    rarity = 1 + (answers / step.parts["same"] - 1) * falling
    return alignment(step, state)[0] * rarity, state


def alignment(step: Step, state: dict[str, Any]) -> tuple[Floats, dict[str, Any]]:
    """What the published launchers run (``adamame_align``): the rarity is off, a = 1."""
    rising = max((1 - np.cos(np.pi * step.progress)) / 2, _LEAST)
    return step.parts["acc"] * (1 + _BONUS * rising * step.parts["match"]), state
