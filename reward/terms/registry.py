"""All terms of the quality of an answer: their names, whether each earns or costs, and the function behind each.

To add a term, write its function, add it to ``TERMS``, and add its name to ``Term`` in ``common/config/reward.py``,
which may not import this package. A test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from reward.terms import text
from reward.terms.math import MathVerifier


@dataclass(frozen=True)
class TermInput:
    """What a term may read of one answer.

    Attributes:
        text: the answer, without header and thinking part.
        accepted: the answers that count as right; at least one.
        similarity: the calibrated similarity of the answer to its reference, in [0, 1].
        truncated: whether generation stopped at the token limit.
    """

    text: str
    accepted: list[str]
    similarity: float
    truncated: bool


TermFunction: TypeAlias = Callable[[TermInput], float]  # the value of a term for one answer, in [0, 1]


@dataclass(frozen=True)
class Term:
    """One term.

    Attributes:
        earns: whether the term's value adds to the quality (True) or is taken from it (False).
        load: makes the function. It is called once, when a process starts that uses the term, and may load what the
            function needs. It raises FatalError where a package is missing.
    """

    earns: bool
    load: Callable[[], TermFunction]


def _load_math() -> TermFunction:
    verify = MathVerifier()
    return lambda given: verify(given.text, given.accepted)


TERMS: Mapping[str, Term] = {
    "similarity": Term(earns=True, load=lambda: lambda given: given.similarity),
    "contains": Term(earns=True, load=lambda: lambda given: text.contains(given.text, given.accepted)),
    "exact": Term(earns=True, load=lambda: lambda given: text.exact(given.text, given.accepted)),
    "math": Term(earns=True, load=_load_math),
    "repetition": Term(earns=False, load=lambda: lambda given: text.repetition(given.text)),
    "truncation": Term(earns=False, load=lambda: lambda given: float(given.truncated)),
}
