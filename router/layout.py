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
    """The indices of the terms; the shape suffixes are those of :mod:`router.regression`.

    Args:
        rows: the names of the joint rows, "topic:NAME" and "region:NAME", without the shared one, which is row 0.
        contexts: those that were observed.
        own_language: whether the language of the question has terms.

    Attributes:
        rows: the index of each joint row but the shared one, among R.
        questions: the index of each language of questions, among Q.
        pairs: the index of each combination of topics and regions, among Z.
        row_weights_Z_R: of the joint rows in each pair. A topic among n weighs 1 / n; likewise a region.
        pair_variance_weights_Z_V: the weights of the variances, by kind, that make up the variance of each pair's own
            term. It stands for the interaction of topic and region, and for topics and regions that are not among the
            joint rows.
        kind_J: the kind of each joint term.
        pair_C: the pair of each context.
        question_C: the question language of each context; Q for none.
    """

    def __init__(self, rows: Sequence[str], contexts: Sequence[Context], own_language: bool) -> None:
        self.rows = {name: index for index, name in enumerate(rows, start=1)}
        languages = dict.fromkeys(context.language for context in contexts) if own_language else {}
        self.questions = {language: index for index, language in enumerate(filter(None, languages))}
        keys: list[Pair] = [(context.topics, context.regions) for context in contexts]
        self.pairs = {pair: index for index, pair in enumerate(dict.fromkeys(keys))}
        self.row_weights_Z_R, self.pair_variance_weights_Z_V = self.weights_of(list(self.pairs))
        kinds = [SHARED, *(TOPIC if name.startswith("topic:") else REGION for name in rows)]
        self.kind_J = np.array(kinds + [OWN] * len(self.questions), np.intp)
        self.pair_C = np.array([self.pairs[key] for key in keys], np.intp)
        none = len(self.questions)
        self.question_C: Integers = np.array([self.questions.get(one.language, none) for one in contexts], np.intp)

    def weights_of(self, pairs: Sequence[Pair]) -> tuple[Array, Array]:
        """``row_weights_Z_R`` and ``pair_variance_weights_Z_V`` of any pairs, observed or not."""
        row_weights_Z_R, pair_variance_weights_Z_V = (
            np.zeros((len(pairs), len(self.rows) + 1)),
            np.zeros((len(pairs), 5)),
        )
        row_weights_Z_R[:, 0] = 1
        for row_weights, variance_weights, (topics, regions) in zip(
            row_weights_Z_R, pair_variance_weights_Z_V, pairs, strict=True
        ):
            for kind, prefix, names in ((TOPIC, "topic:", topics), (REGION, "region:", regions)):
                for name in names:
                    row = self.rows.get(prefix + name)
                    if row is None:
                        variance_weights[kind] += 1 / len(names) ** 2
                    else:
                        row_weights[row] = 1 / len(names)
            variance_weights[PAIR] = bool(topics) and bool(regions)
        return row_weights_Z_R, pair_variance_weights_Z_V

    def features(self, contexts: Sequence[Context]) -> Features:
        """What applies to each of C contexts, observed or not."""
        pair_C = np.array([self.pairs.get(one[1:], -1) for one in contexts], np.intp)
        known_C = pair_C >= 0
        weights_C_J, variance_weights_C_V = np.zeros((len(contexts), len(self.kind_J))), np.empty((len(contexts), 5))
        rows = self.row_weights_Z_R.shape[1]
        weights_C_R = weights_C_J[:, :rows]
        weights_C_R[known_C] = self.row_weights_Z_R[pair_C[known_C]]
        variance_weights_C_V[known_C] = self.pair_variance_weights_Z_V[pair_C[known_C]]
        if not known_C.all():
            new = [contexts[index][1:] for index in np.flatnonzero(~known_C).tolist()]
            weights_C_R[~known_C], variance_weights_C_V[~known_C] = self.weights_of(new)
        question_C = np.array([self.questions.get(one.language, -1) for one in contexts], np.intp)
        weights_C_J[(question_C >= 0).nonzero()[0], rows + question_C[question_C >= 0]] = 1
        has_new_language_C = (question_C < 0) & [one.language != "" for one in contexts]
        return Features(weights_C_J, variance_weights_C_V, pair_C, has_new_language_C)


class Features(NamedTuple):
    """The terms that apply to contexts.

    Attributes:
        weights_C_J: the weights of the joint terms.
        pair_variance_weights_C_V: as :attr:`Layout.pair_variance_weights_Z_V`.
        pair_C: the index of each context's pair; -1 where it was never observed.
        has_new_language_C: whether the context has a language of which there is no term.
    """

    weights_C_J: Array
    pair_variance_weights_C_V: Array
    pair_C: Integers
    has_new_language_C: NDArray[np.bool_]


def rows_of(context: Context) -> list[str]:
    """The names of a context's topic and region rows."""
    return [*(f"topic:{name}" for name in context.topics), *(f"region:{name}" for name in context.regions)]
