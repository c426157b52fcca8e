"""How much rewards vary beyond what languages and contexts explain: between answers, and between questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from router.observations import Array, Context

_GUESS = 0.25  # both standard deviations, until some rewards were seen
_STEADY = 0.97  # the share of its evidence that an estimate keeps with each update
_USUAL = 20  # rollouts after which a language's own noise on a topic counts half
_LEAST = 1e-6  # variance of the noise, where rewards never differ
_EVERYWHERE = ""


class Noise:
    """The variances of quality and of compliance, which are the first index of every array.

    Args:
        arms: L.
    """

    def __init__(self, arms: int) -> None:
        self._arms = arms
        self._answers: dict[str, Array] = {}  # by topic, squares and their degrees of freedom: [2, 2, L]
        self._questions = np.full((2, 2), [_GUESS**2, 1.0])  # squares and their number

    @property
    def answers(self) -> Array:
        """The variance of the answers to one question in one language: [2]."""
        squares, number = self._of(_EVERYWHERE).sum(2).T
        variance: Array = np.maximum((squares + _GUESS**2) / (number + 1), _LEAST)
        return variance

    @property
    def questions(self) -> Array:
        """The variance of the ease of questions of one context: [2]."""
        variance: Array = self._questions[:, 0] / self._questions[:, 1]
        return variance

    def weights(self, table: int, contexts: Sequence[Context]) -> Array:
        """The usual variance of answers divided by that of each language on each context's topics: [C, L]."""
        usual = self.answers[table]
        squares, number = self._of(_EVERYWHERE)[table]
        by_arm = (squares + _USUAL * usual) / (number + _USUAL)
        by_topics: dict[tuple[str, ...], Array] = {}
        for context in contexts:
            if context.topics not in by_topics:
                squares, number = sum((self._of(name)[table] for name in context.topics), np.zeros((2, self._arms)))
                by_topics[context.topics] = (squares + _USUAL * by_arm) / (number + _USUAL)
        each = np.array([by_topics[context.topics] for context in contexts])
        ratio: Array = np.clip(usual / np.maximum(each, _LEAST), 0.1, 10)
        return ratio

    def fade(self) -> None:
        """Lets old evidence count less; once for each update."""
        for seen in self._answers.values():
            seen *= _STEADY
        self._questions *= _STEADY

    def learn(
        self, table: int, contexts: Sequence[Context], squares: Array, freedom: Array, easy: Array, size: Array
    ) -> None:
        """Adds what a batch tells.

        Args:
            table: quality or compliance.
            contexts: C of them.
            squares: [C, L] sums of squared deviations from the means of their questions.
            freedom: [C, L] their degrees of freedom.
            easy: the mean residual of each question.
            size: the number of answers of each question; none is 0.
        """
        both = np.stack([squares, freedom], axis=1)  # [C, 2, L]
        self._of(_EVERYWHERE)[table] += both.sum(0)
        by_topics = {topics: place for place, topics in enumerate(dict.fromkeys(one.topics for one in contexts))}
        seen = np.zeros((len(by_topics), *both.shape[1:]))
        np.add.at(seen, [by_topics[one.topics] for one in contexts], both)
        for topics, place in by_topics.items():
            for topic in topics:
                self._of(topic)[table] += seen[place]
        beyond = float((easy**2 - self.answers[table] / size).sum())
        self._questions[table] += [max(beyond, 0.0) + _LEAST, len(easy)]

    def _of(self, topic: str) -> Array:
        return self._answers.setdefault(topic, np.zeros((2, 2, self._arms)))

    def state(self) -> dict[str, Any]:
        """The whole state, as values of JSON."""
        answers = {topic: seen.tolist() for topic, seen in self._answers.items()}
        return {"answers": answers, "questions": self._questions.tolist()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues from a :meth:`state`."""
        self._answers = {topic: np.array(seen) for topic, seen in state["answers"].items()}
        self._questions = np.array(state["questions"])
