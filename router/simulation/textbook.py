"""Textbook contextual bandits, for comparison: they share no code with the router's beliefs.

Each language has a linear model of the reward of its own (disjoint models, as in LinUCB, arXiv 1003.0146). Features are
a constant and one indicator each for topic, region and the question's language. The reward of an answer is what was
earned, 0 for an answer in another language. There is no exploration beside the algorithm's own. K_on answers are in the
question's language, as with the router.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.config import RouterConfig
from router.drawing import best
from router.modes import fixed_languages
from router.observations import Array, Context, Integers, Names, Observation
from router.router import Draw

_PRECISION = 1.0  # of the prior of each coefficient
_FEATURES = 46  # a constant, 6 topics, 24 regions and 15 languages


class Linear:
    """Ridge regression for each language; what is drawn is up to the subclass.

    Args:
        config: says K, K_on and the mode.
        languages: the L codes that can be drawn.
        seed: of the draws.
        scale: of the standard deviations in draws and bounds, in rewards.
        keep: the share of its weight that an observation keeps with each step; 1 never forgets.
    """

    def __init__(
        self, config: RouterConfig, languages: Sequence[str], seed: int, steps: int, *, scale: float, keep: float
    ) -> None:
        self._config, self._languages, self._scale, self._keep = config, list(languages), scale, keep
        self._arm = {language: arm for arm, language in enumerate(languages)}
        self._random = np.random.default_rng(seed)
        self._features: dict[str, int] = {"": 0}
        shape = (len(languages), _FEATURES)
        self._precision, self._sums = np.zeros((*shape, _FEATURES)), np.zeros(shape)
        self._solve()

    def _solve(self) -> None:
        self._covariance = np.linalg.inv(self._precision + _PRECISION * np.eye(_FEATURES))
        self._mean = (self._covariance @ self._sums[:, :, None])[:, :, 0]

    def _x(self, contexts: Sequence[Context]) -> Array:
        """The features of each context: [C, features]."""
        x = np.zeros((len(contexts), _FEATURES))
        for row, (language, topics, regions) in zip(x, contexts, strict=True):
            names = ["", *(f"topic:{t}" for t in topics), *(f"region:{r}" for r in regions), f"question:{language}"]
            row[[self._features.setdefault(name, len(self._features)) for name in names]] = 1
        return x

    def _scores(self, contexts: Sequence[Context]) -> tuple[Array, Array]:
        """The mean and the scaled standard deviation of each language's reward: both [C, L]."""
        x = self._x(contexts)
        variance = ((x @ self._covariance) * x).sum(2).T
        return x @ self._mean.T, self._scale * np.sqrt(variance)

    def _choose(self, mean: Array, deviation: Array, draws: int) -> Integers:
        """The arms that are drawn: [C, draws]."""
        raise NotImplementedError

    def distribution(self, question_language: str, topics: Names, regions: Names) -> Array:
        """The shares of the languages among draws for a question: [L]."""
        raise NotImplementedError

    def route(self, contexts: Sequence[Context]) -> list[Draw]:
        """Draws for many questions. Propensities are not kept."""
        fixed = [fixed_languages(self._config, context.language, context.topics) for context in contexts]
        arms = self._choose(*self._scores(contexts), self._config.rollouts).tolist()
        drawn = [[self._languages[arm] for arm in row] for row in arms]
        return [Draw((first + rest)[: self._config.rollouts], [], 0) for first, rest in zip(fixed, drawn, strict=True)]

    def observe(self, observations: Sequence[Observation]) -> None:
        """Takes what was scored for one step, and learns from it."""
        self._precision *= self._keep
        self._sums *= self._keep
        if not observations:
            return
        x = self._x([one.context for one in observations])
        count, total = np.zeros((2, len(observations), len(self._languages)))
        for row, one in enumerate(observations):
            for language, reward in zip(one.languages, one.rewards, strict=True):
                arm = self._arm[language]
                count[row, arm] += 1
                total[row, arm] += reward
        self._precision += (count.T[:, None] * x.T) @ x
        self._sums += total.T @ x
        self._solve()


class LinearThompson(Linear):
    """Linear Thompson sampling (Agrawal and Goyal, arXiv 1209.3352), with a sample for each rollout."""

    def _choose(self, mean: Array, deviation: Array, draws: int) -> Integers:
        noise = self._random.standard_normal((draws, *mean.shape))
        chosen: Integers = (mean + deviation * noise).argmax(2).T
        return chosen

    def distribution(self, question_language: str, topics: Names, regions: Names) -> Array:
        mean, deviation = self._scores([Context.of(question_language, topics, regions)])
        shares: Array = best(mean, deviation**2)[0]
        return shares


class LinUcb(Linear):
    """LinUCB: the highest mean plus scaled standard deviation, with ties at random, for all draws of a question."""

    def _choose(self, mean: Array, deviation: Array, draws: int) -> Integers:
        bound = mean + deviation + 1e-9 * self._random.random(mean.shape)
        return np.repeat(bound.argmax(1)[:, None], draws, axis=1)

    def distribution(self, question_language: str, topics: Names, regions: Names) -> Array:
        mean, deviation = self._scores([Context.of(question_language, topics, regions)])
        shares: Array = np.eye(mean.shape[1])[(mean + deviation).argmax(1)][0]
        return shares
