"""What of an answer is judged: one place that decides which text is scored and which text the language gate reads.

An answer that arrives from an actor may begin with a header (in which the policy names the language it chose), may
contain a thinking part, may be longer than anything worth reading, and may hold characters that no encoding has. This
module turns it into an :class:`Answer`; all later steps read only that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from common.header import Header
from common.languages import POLICY_CHOOSES, code_of

GateSpan: TypeAlias = Literal["all", "thinking", "answer"]  # which part of an answer the language gate reads

ODDITIES = ("unencodable", "over_long")  # counters of answers with lone surrogates, and of those cut for their length

_MAX_CHARACTERS = 100_000  # the part of an answer beyond this many characters is neither scored nor read by the gate
_THOUGHT = re.compile(r"^(?:\s*<think>)?(.*?)(?:</think>|\Z)(.*)", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """One answer of a request, cut into what the terms, the embedder and the language gate read.

    Attributes:
        text: what is scored, without header and thinking part; empty when the answer has no content.
        gate_text: what the language gate reads.
        asked: the code of the language that the answer should be in. Where the policy chose the language, the one that
            its header names; ``""`` where that header names none.
        truncated: whether generation stopped at the token limit.
        selection: ``{"selection": 1.0}`` where the policy chose the language and the header is well formed,
            ``{"selection": 0.0}`` where it is not, and empty where the language was asked for.
        oddities: the names in ``ODDITIES`` that hold for this answer.
    """

    text: str
    gate_text: str
    asked: str
    truncated: bool = False
    selection: dict[str, float] = field(default_factory=dict)
    oddities: tuple[str, ...] = ()


def read_answer(raw: str, language: str, truncated: bool, header: Header, gate_span: GateSpan) -> Answer:
    """Cuts one answer into its parts.

    Args:
        raw: the answer as the engine wrote it.
        language: a language code or English name, or ``POLICY_CHOOSES`` where the policy chose the language.
        truncated: whether generation stopped at the token limit.
        header: reads the header of an answer whose language the policy chose.
        gate_span: which part the language gate reads: the whole text after the header, the thinking part alone, or
            the answer after it.

    Raises:
        ValueError: the language is unknown.
    """
    text = replace_surrogates(raw)
    found = (text != raw, len(text) > _MAX_CHARACTERS)
    oddities = tuple(name for name, is_odd in zip(ODDITIES, found, strict=True) if is_odd)
    text = text[:_MAX_CHARACTERS].strip()
    asked, selection = language, dict[str, float]()
    if language == POLICY_CHOOSES:
        asked, well_formed, end = header.parse(text)
        text, selection = text[end:].strip(), {"selection": float(well_formed)}
    thinking, answer = split_thinking(text)
    gate_text = {"all": text, "thinking": thinking, "answer": answer}[gate_span]
    return Answer(answer, gate_text, asked and code_of(asked), truncated, selection, oddities)


def split_thinking(text: str) -> tuple[str, str]:
    """Separates the thinking part of a text from the answer after it, at the tags ``<think>`` and ``</think>``.

    Returns:
        The thinking part, ``""`` where there is none, and the answer, ``""`` where the thinking part never ended.
    """
    if "<think>" not in text and "</think>" not in text:
        return "", text
    match = _THOUGHT.match(text)
    return (match[1].strip(), match[2].strip()) if match else ("", text)


def replace_surrogates(text: str) -> str:
    """The text with a question mark in place of each lone surrogate, because UTF-8 cannot encode those."""
    return text.encode("utf-8", "replace").decode()
