"""Which terms the model of :mod:`router.posterior` has, and which of them apply to a context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from router.observations import Array, Context, Integers

SHARED, TOPIC, REGION, OWN, PAIR = range(5)  # kinds of terms
Pair: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]  # the topics and the regions of a question


class Layout:
    """The places of the terms. R joint rows, Q question languages, Z pairs, C contexts.

    Args:
        rows: the names of the joint rows, "topic:NAME" and "region:NAME", without the shared one, which is row 0.
        contexts: those that were observed.
        own_language: whether the language of the question has terms.

    Attributes:
        rows: the place of each joint row but the shared one.
        questions: the place of each language of questions, among Q.
        pairs: the place of each combination of topics and regions, among Z.
        weights: [Z, R] of the joint rows in each pair. A topic among n weighs 1 / n; likewise a region.
        rest: [Z, 5] the weights of the variances, by kind, that make up the variance of each pair's own term. It stands
            for the interaction of topic and region, and for topics and regions that are not among the joint rows.
        kind: [R + Q] the kind of each joint term.
        pair_of: [C] the pair of each context.
        question_of: [C] the question language of each context; Q for none.
    """

    def __init__(self, rows: Sequence[str], contexts: Sequence[Context], own_language: bool) -> None:
        self.rows = {name: place for place, name in enumerate(rows, start=1)}
        speaking = dict.fromkeys(context.language for context in contexts) if own_language else {}
        self.questions = {language: place for place, language in enumerate(filter(None, speaking))}
        keys: list[Pair] = [(context.topics, context.regions) for context in contexts]
        self.pairs = {pair: place for place, pair in enumerate(dict.fromkeys(keys))}
        self.weights, self.rest = self.of(list(self.pairs))
        kinds = [SHARED, *(TOPIC if name.startswith("topic:") else REGION for name in rows)]
        self.kind = np.array(kinds + [OWN] * len(self.questions), np.intp)
        self.pair_of = np.array([self.pairs[key] for key in keys], np.intp)
        none = len(self.questions)
        self.question_of: Integers = np.array([self.questions.get(one.language, none) for one in contexts], np.intp)

    def of(self, pairs: Sequence[Pair]) -> tuple[Array, Array]:
        """``weights`` and ``rest`` of any pairs, observed or not."""
        weights, rest = np.zeros((len(pairs), len(self.rows) + 1)), np.zeros((len(pairs), 5))
        weights[:, 0] = 1
        for row, others, (topics, regions) in zip(weights, rest, pairs, strict=True):
            for kind, what, names in ((TOPIC, "topic:", topics), (REGION, "region:", regions)):
                for name in names:
                    place = self.rows.get(what + name)
                    if place is None:
                        others[kind] += 1 / len(names) ** 2
                    else:
                        row[place] = 1 / len(names)
            others[PAIR] = bool(topics) and bool(regions)
        return weights, rest

    def features(self, contexts: Sequence[Context]) -> Features:
        """What applies to each of C contexts, observed or not."""
        pair = np.array([self.pairs.get(one[1:], -1) for one in contexts], np.intp)
        known = pair >= 0
        joint, rest = np.zeros((len(contexts), len(self.kind))), np.empty((len(contexts), 5))
        weights = joint[:, : self.weights.shape[1]]
        weights[known], rest[known] = self.weights[pair[known]], self.rest[pair[known]]
        if not known.all():
            weights[~known], rest[~known] = self.of([contexts[new][1:] for new in np.flatnonzero(~known).tolist()])
        question = np.array([self.questions.get(one.language, -1) for one in contexts], np.intp)
        joint[(question >= 0).nonzero()[0], self.weights.shape[1] + question[question >= 0]] = 1
        unmet = (question < 0) & [one.language != "" for one in contexts]
        return Features(joint, rest, pair, unmet)


class Features(NamedTuple):
    """The terms that apply to contexts.

    Attributes:
        joint: [C, R + Q] the weights of the joint terms.
        rest: [C, 5] as :attr:`Layout.rest`.
        pair: [C] the index of each context's pair; -1 where it was never observed.
        unmet: [C] whether the context has a language of which there is no term.
    """

    joint: Array
    rest: Array
    pair: Integers
    unmet: NDArray[np.bool_]


def rows_of(context: Context) -> list[str]:
    """The names of a context's topic and region rows."""
    return [*(f"topic:{name}" for name in context.topics), *(f"region:{name}" for name in context.regions)]
