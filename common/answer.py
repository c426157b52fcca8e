"""What an answer consists of: one place that decides what of it is shown, judged for its language, and rewarded.

An answer that arrives from an engine may begin with a header (in which the policy names the language it chose), may
contain a thought, may be longer than anything worth reading, and may hold characters that no encoding has. This module
turns it into an :class:`Answer`. Language gate, terms, embedder, evaluation and text samples read only that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from common.header import Header
from common.languages import POLICY_CHOOSES, code_of

GateSpan: TypeAlias = Literal["all", "thinking", "answer"]  # which parts of an answer must be in its language

ODDITIES = ("unencodable", "over_long")  # counters of answers with lone surrogates, and of those cut for their length

_MAX_CHARACTERS = 100_000  # of thought and final answer together; what is over is not read
_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Answer:
    """One answer, cut into its parts. All parts are stripped of white space at both ends.

    Attributes:
        header: what the answer begins with where the policy chose its language; ``""`` where it has none.
        thought: the thought, without its tags; ``""`` where there is none.
        final: the answer after the thought: what terms and embedder read, and nothing else. Empty where the answer has
            no content, and where its thought never ended, because a thought is no answer.
        thought_closed: whether the thought ended; True where there is none.
        asked: the code of the language that the answer should be in. Where the policy chose the language, the one that
            its header names; ``""`` where that header names none.
        truncated: whether generation stopped at the token limit.
        selection: ``{"selection": 1.0}`` where the policy chose the language and the header is well formed,
            ``{"selection": 0.0}`` where it is not, and empty where the language was asked for.
        oddities: the names in ``ODDITIES`` that hold for this answer.
    """

    header: str
    thought: str
    final: str
    thought_closed: bool
    asked: str
    truncated: bool = False
    selection: dict[str, float] = field(default_factory=dict)
    oddities: tuple[str, ...] = ()

    def judged(self, span: GateSpan, final_too: bool) -> list[str]:
        """The texts that must be in the language asked for, each by itself. A text without content is in none.

        Args:
            span: "all" are the final answer and, where there is one, the thought; "thinking" is the thought alone, also
                where there is none, and "answer" the final answer alone.
            final_too: adds the final answer to the span "thinking": similarity may be earned only in the language
                asked for.
        """
        thought = [self.thought] if span == "thinking" or (span == "all" and self.thought) else []
        final = [self.final] if span != "thinking" or final_too else []
        return thought + final


def read_answer(
    raw: str, language: str, truncated: bool = False, header: Header | None = None, thinking_opened: bool = False
) -> Answer:
    """Cuts one answer into its parts.

    The final answer is what follows the last ``</think>``. It is empty where another ``<think>`` follows it, or where
    the thought that the template opened has no end.

    Of more than 100,000 characters the end of the final answer is read, because results stand there, and as much of the
    beginning of the thought as there is room for.

    Args:
        raw: the answer as the engine wrote it.
        language: a language code or English name, or ``POLICY_CHOOSES`` where the policy chose the language.
        truncated: whether generation stopped at the token limit.
        header: reads the header of an answer whose language the policy chose.
        thinking_opened: whether the prompt ended with ``<think>``.

    Raises:
        ValueError: the language is unknown, or the policy chose it and there is no ``header`` to read.
    """
    text = replace_surrogates(raw)
    found = (text != raw, len(text) > _MAX_CHARACTERS)
    oddities = tuple(name for name, is_odd in zip(ODDITIES, found, strict=True) if is_odd)
    text = text.strip()
    asked, selection, named = language, dict[str, float](), ""
    if language == POLICY_CHOOSES:
        if header is None:
            raise ValueError("the policy chose the language, and no header is known that could name it")
        asked, well_formed, end = header.parse(text)
        text, named, selection = text[end:].strip(), text[:end].strip(), {"selection": float(well_formed)}
    before, tag, after = text.rpartition(_CLOSE)
    thought, final = (before, after) if tag else (text, "") if thinking_opened else ("", text)
    unfinished = _OPEN in final
    if unfinished:
        thought, final = f"{thought}\n{final}", ""
    final = final.strip()[-_MAX_CHARACTERS:]
    thought = thought.replace(_OPEN, "").replace(_CLOSE, "").strip()[: _MAX_CHARACTERS - len(final)]
    return Answer(
        header=named,
        thought=thought.strip(),
        final=final.strip(),
        thought_closed=not unfinished and (bool(tag) or not thinking_opened),
        asked=asked and code_of(asked),
        truncated=truncated,
        selection=selection,
        oddities=oddities,
    )


def replace_surrogates(text: str) -> str:
    """The text with a question mark in place of each lone surrogate, because UTF-8 cannot encode those."""
    return text.encode("utf-8", "replace").decode()
