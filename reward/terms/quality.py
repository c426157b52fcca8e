"""The quality of an answer: the weighted terms of its question's topic."""

from __future__ import annotations

import asyncio
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from common.config import ConfigError
from reward.terms.inputs import TermInput
from reward.terms.registry import TERMS
from reward.terms.tools import Tools

_DEFAULT = "default"  # the name of the weights for questions whose topics have none of their own
_BY_DEFAULT: Mapping[str, Mapping[str, float]] = {_DEFAULT: {"similarity": 1.0}}


class Valued(NamedTuple):
    """The terms of one answer.

    Attributes:
        values: of the terms that could be had, by name.
        quality: None where one could not be had.
        never: whether one of them can never be had: its value is nan.
    """

    values: dict[str, float]
    quality: float | None
    never: bool


class QualityTerms:
    """Computes the quality of answers from the terms of their question's topic.

    Args:
        weights: the setting ``reward.terms``: for each topic the positive weight of each of its terms. Without a topic
            "default", that is the similarity alone.
        tools: for terms that need them.
        bounded: whether the quality is cut to [0, 1].

    Raises:
        ConfigError: a term is unknown, or a topic has none that earns.
        FatalError: a term needs a package or a setting that is missing.
    """

    def __init__(self, weights: Mapping[str, Mapping[str, float]], tools: Tools, bounded: bool = True) -> None:
        self._weights = {topic: dict(row) for topic, row in {**_BY_DEFAULT, **weights}.items()}
        self._bounded = bounded
        check_terms(self._weights)
        used = {name for row in self._weights.values() for name in row}
        self._functions = {name: term.load(tools) for name, term in TERMS.items() if name in used}

    @property
    def embeds(self) -> bool:
        """Whether a term of any topic reads embeddings."""
        return any(TERMS[name].embeds for name in self._functions)

    def weights_of(self, topics: Sequence[str]) -> dict[str, float]:
        """The weights of a question's terms by name: those of its first topic that has weights, or of "default"."""
        return choose_weights(self._weights, topics)

    def earns_by_similarity(self, topics: Sequence[str]) -> bool:
        """:func:`earns_by_similarity` for a question of these topics."""
        return earns_by_similarity(self.weights_of(topics))

    def earned_by_final(self, topics: Sequence[str]) -> list[str]:
        """The names of a question's terms by which its final answer adds to the quality."""
        return [name for name in self.weights_of(topics) if TERMS[name].earns and TERMS[name].of_final]

    async def evaluate(self, given: Sequence[TermInput], topics: Sequence[str]) -> list[Valued]:
        """Computes the terms of the K answers to one question, which are those of its topic."""
        weights = self.weights_of(topics)
        columns = await asyncio.gather(*(self._functions[name](given) for name in weights))
        found = []
        for row in zip(*columns, strict=True):
            known = {name: value for name, value in zip(weights, row, strict=True) if value is not None}
            values = {name: value for name, value in known.items() if not math.isnan(value)}
            complete = len(values) == len(weights)
            worth = quality(values, weights, self._bounded) if complete else None
            found.append(Valued(values, worth, never=len(values) < len(known)))
        return found


def choose_weights(weights: Mapping[str, Mapping[str, float]], topics: Sequence[str]) -> dict[str, float]:
    """The weights of a question's terms by name: those of its first topic that has weights, or of "default".

    Args:
        weights: the setting ``reward.terms``.
        topics: of the question.
    """
    known = {**_BY_DEFAULT, **weights}
    return dict(known[next((topic for topic in topics if topic in known), _DEFAULT)])


def earns_by_similarity(terms: Iterable[str]) -> bool:
    """Whether one of these terms adds to the quality and reads embeddings.

    An embedding is much the same in every language, so such a term is to be earned only in the one asked for.
    """
    return any(TERMS[name].earns and TERMS[name].embeds for name in terms)


def quality(values: Mapping[str, float], weights: Mapping[str, float], bounded: bool = True) -> float:
    """clip(sum(w v) / sum(w) - sum(p v), 0, 1): w are the weights of the terms that earn, p of those that cost.

    It is not clipped unless it is to be ``bounded``.
    """
    earning = {name: weight for name, weight in weights.items() if TERMS[name].earns}
    earned = sum(weight * values[name] for name, weight in earning.items()) / sum(earning.values())
    total = earned - sum(weight * values[name] for name, weight in weights.items() if name not in earning)
    return min(1.0, max(0.0, total)) if bounded else total


def check_terms(weights: Mapping[str, Mapping[str, float]]) -> None:
    """Returns if the setting ``reward.terms`` names terms that there are, and for each topic one that earns.

    Raises:
        ConfigError: it does not; the message names the topic.
    """
    for topic, row in weights.items():
        for name in row:
            if name not in TERMS:
                near = difflib.get_close_matches(name, TERMS, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise ConfigError(
                    f"reward.terms.{topic} has an unknown term {name!r}{hint} There are: {', '.join(TERMS)}"
                )
        if not any(TERMS[name].earns for name in row):
            earning = ", ".join(name for name, term in TERMS.items() if term.earns)
            raise ConfigError(f"reward.terms.{topic} needs a term that earns: {earning}")
