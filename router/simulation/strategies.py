"""The strategies that are compared: the router in its settings, and greedy and optimistic variants of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from router.observations import Array, Context
from router.router import Router


class Greedy(Router):
    """Draws the language with the highest mean worth, except for the share epsilon of exploration."""

    bonus = 0.0  # standard deviations that are added to the mean

    def _chances(self, contexts: Sequence[Context]) -> Array:
        mean, variance = self._beliefs.worth(contexts, self._config.compliance_weight)
        optimistic = mean + self.bonus * np.sqrt(variance) + 1e-12 * self._random.random(mean.shape)  # ties at random
        chosen: Array = np.eye(mean.shape[1])[optimistic.argmax(1)]
        return chosen


class Ucb(Greedy):
    """Draws the language with the highest upper confidence bound, two standard deviations above the mean."""

    bonus = 2.0


# By name the class and its settings in the section `router`.
STRATEGIES: dict[str, tuple[type[Router], dict[str, Any]]] = {
    "posterior": (Router, {}),  # the defaults
    "no-own-row": (Router, {"question_language": False}),
    "greedy": (Greedy, {}),
    "ucb": (Ucb, {}),
    "pooled": (Router, {"credit": "pooled"}),
    "reference": (Router, {"credit": "reference"}),
    "sharp-pooled": (Router, {"credit": "pooled", "temperature": 0.2, "temperature_min": 0.2, "ema": 0.3}),
    "sharp-reference": (Router, {"credit": "reference", "temperature": 0.1, "temperature_min": 0.1}),
    "uniform": (Router, {"mode": "uniform"}),
    "monolingual": (Router, {"mode": "monolingual"}),
    "input_dominant": (Router, {"mode": "input_dominant"}),
    "english_dominant": (Router, {"mode": "english_dominant"}),
}
FIXED = ("uniform", "monolingual", "input_dominant", "english_dominant")
