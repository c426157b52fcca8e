"""The quality of an answer: the weighted terms of its question's topic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.config.reward import Term
from reward.terms.registry import TERMS, TermInput

_DEFAULT = "default"  # the name of the weights for questions whose topics have none of their own


class QualityTerms:
    """Computes the quality of answers from the terms of their question's topic.

    Args:
        weights: the setting ``reward.terms``: for each topic the positive weight of each of its terms. Without a topic
            "default", that is the similarity alone.

    Raises:
        FatalError: a term needs a package that is not installed.
    """

    def __init__(self, weights: Mapping[str, Mapping[Term, float]]) -> None:
        self._weights: dict[str, dict[str, float]] = {_DEFAULT: {"similarity": 1.0}}
        self._weights |= {topic: {str(name): one for name, one in row.items()} for topic, row in weights.items()}
        used = {name for row in self._weights.values() for name in row}
        self._functions = {name: term.load() for name, term in TERMS.items() if name in used}

    def weights_of(self, topics: Sequence[str]) -> dict[str, float]:
        """The weights of a question's terms by name: those of its first topic that has weights, or of "default"."""
        return self._weights[next((topic for topic in topics if topic in self._weights), _DEFAULT)]

    def evaluate(self, given: TermInput, topics: Sequence[str]) -> tuple[dict[str, float], float]:
        """Computes the terms of one answer.

        Returns:
            The value of each term of the question's topic in [0, 1] by name, and the quality in [0, 1].
        """
        weights = self.weights_of(topics)
        values = {name: self._functions[name](given) for name in weights}
        return values, quality(values, weights)


def quality(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """clip(sum(w v) / sum(w) - sum(p v), 0, 1): w are the weights of the terms that earn, p of those that cost."""
    earning = {name: weight for name, weight in weights.items() if TERMS[name].earns}
    earned = sum(weight * values[name] for name, weight in earning.items()) / sum(earning.values())
    cost = sum(weight * values[name] for name, weight in weights.items() if name not in earning)
    return min(1.0, max(0.0, earned - cost))
