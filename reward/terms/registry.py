"""All terms of the quality of an answer: their names, whether each earns or costs, and the function behind each.

To add a term, write a function and add it to ``TERMS``. A configuration uses it with the line ``name = 1.0`` in its
table ``[reward.terms."TOPIC"]``; names are checked when the reward process starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from common.answer import Answer
from common.process import FatalError
from reward.terms import text
from reward.terms.choice import choice, offered_letters
from reward.terms.inputs import TermFunction, TermInput
from reward.terms.judge import make_judge
from reward.terms.tools import Tools


@dataclass(frozen=True)
class Term:
    """One term.

    Attributes:
        earns: whether the term's value adds to the quality (True) or is taken from it (False).
        load: makes the function. It is called once, when a process starts that uses the term, and may load what the
            function needs. It raises FatalError where something is missing.
        embeds: whether it reads ``similarity`` or ``vector``.
        of_final: whether the term judges the final answer. Then it is 0 for an answer without one. Other terms are not
            computed for such an answer: its quality is 0 in any case.
    """

    earns: bool
    load: Callable[[Tools], TermFunction]
    embeds: bool = False
    of_final: bool = True


def _each(value: Callable[[TermInput], float | None]) -> Callable[[Tools], TermFunction]:
    """A term that looks at one answer at a time and needs nothing loaded.

    It is computed in a thread, so that a long answer holds up no judge and no other group.
    """

    async def values(given: Sequence[TermInput]) -> list[float | None]:
        return await asyncio.to_thread(lambda: [value(one) for one in given])

    return lambda _: values


def _load_math(tools: Tools) -> TermFunction:
    tools.start_verifier()

    async def values(given: Sequence[TermInput]) -> Sequence[float | None]:
        return await tools.verify_all([(one.text, one.accepted, one.language) for one in given])

    return values


def _load_language_of(part: Callable[[Answer], str]) -> Callable[[Tools], TermFunction]:
    """1 where a part of the answer counts as in the language asked for, as the gate has it; 0 where it is empty."""

    def load(tools: Tools) -> TermFunction:
        async def values(given: Sequence[TermInput]) -> list[float]:
            texts, asked = [part(one.answer) for one in given], [one.answer.asked for one in given]
            return [float(kept) for kept in await asyncio.to_thread(tools.in_language, texts, asked)]

        return values

    return load


def _load_pivot(tools: Tools) -> TermFunction:
    """The calibrated similarity of the answer to a column in a pivot language, whatever its reference is in."""
    column, language = tools.config.pivot, tools.config.pivot_language
    if not column:
        raise FatalError('the term "pivot" of reward.terms needs reward.pivot, the name of a column to compare with')

    async def values(given: Sequence[TermInput]) -> list[float]:
        pivot = given[0].request.extra.get(column, "").strip()
        if not pivot:
            raise ValueError(f"its row has no {column!r}, which reward.pivot names; has the data that column?")
        (vector,) = await tools.embed([pivot], keep=True)
        found = []
        for one in given:
            assert one.vector is not None  # as the term embeds
            found.append(tools.calibrate(float(one.vector @ vector), language, one.language))
        return found

    return values


def _letters_of(one: TermInput) -> str:
    return offered_letters(one.request.messages[-1].content if one.request.messages else "")


TERMS: Mapping[str, Term] = {
    "similarity": Term(earns=True, load=_each(lambda one: one.similarity), embeds=True),
    "contains": Term(earns=True, load=_each(lambda one: text.contains(one.text, one.accepted, one.language))),
    "exact": Term(earns=True, load=_each(lambda one: text.exact(one.text, one.accepted, one.language))),
    "math": Term(earns=True, load=_load_math),
    "choice": Term(earns=True, load=_each(lambda one: choice(one.text, one.accepted, _letters_of(one)))),
    "judge": Term(earns=True, load=make_judge),
    "pivot": Term(earns=True, load=_load_pivot, embeds=True),
    "thought_language": Term(earns=True, load=_load_language_of(lambda answer: answer.thought), of_final=False),
    "answer_language": Term(earns=True, load=_load_language_of(lambda answer: answer.final)),
    "repetition": Term(earns=False, load=_each(lambda one: text.repetition(one.text))),
    "truncation": Term(earns=False, load=_each(lambda one: float(one.answer.truncated))),
}
