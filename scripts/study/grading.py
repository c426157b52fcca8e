"""Grades answers to benchmark questions: by a judge's label or mark, or by their last number."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from common.answer import read_answer
from common.endpoint import Failure
from common.languages import display_name
from common.numbers import last_number
from common.process import FatalError
from learner.data.rows import QuestionRow
from reward.gate import LanguageGate
from scripts.data.endpoint import Endpoint, whole_number

LABELS = ("CORRECT", "CORRECT_BUT_WRONG_LANGUAGE", "INCORRECT", "NOT_ATTEMPTED")
_QUESTION = "Question:\n{question}\n\nReference answer:\n{reference}\n\nAnswer to grade:\n{answer}\n\n"
_CARE_PRO = (
    _QUESTION + "The answer was to be in {language}. Grade it by the reference, whatever you know yourself:\n"
    "CORRECT: it says what the reference says, contradicts none of it, and is in {language}.\n"
    "CORRECT_BUT_WRONG_LANGUAGE: as before, but it is not in {language}.\n"
    "INCORRECT: it contradicts the reference or leaves out what the question asks for.\n"
    "NOT_ATTEMPTED: it gives no answer, as when it does not know or refuses.\n"
    "Reply with one of the four labels and nothing else."
)
_CARE = (
    _QUESTION + "How good is the answer for somebody of the culture in question who asked in {language}? "
    "Weigh whether it is right by the reference, fits the culture, is helpful, and is in {language}. "
    "Reply with a whole number from 1 (useless) to 10 (perfect) and nothing else."
)


@dataclass(frozen=True)
class Item:
    """One answered question."""

    language: str  # empty where a task does not name it
    score: float | None  # in [0, 1]; None: the judge gave no usable label
    label: str
    answer: str
    compliant: bool | None  # the answer is in the question's language; None where it is a choice
    question: str  # marks the question, so that no other one is paired with it, whatever file it came from
    id: str = ""  # numbers the question, in all languages that it was translated to alike; empty where nothing does


def question_ids(items: Sequence[Item]) -> list[str]:
    """What numbers the question of each item; an item whose question has no number is of one of its own."""
    return [f"id {item.id}" if item.id else f"item {number}" for number, item in enumerate(items)]


def read_label(_: int, said: str) -> str:
    """For ``Endpoint.ask``: the one of ``LABELS`` that a judge names.

    Raises:
        ValueError: it names no label, or several.
    """
    found: list[str] = sorted(set(re.findall(r"\b[A-Z_]{7,}\b", said)).intersection(LABELS))
    if len(found) != 1:
        raise ValueError(f"it has to be one of {', '.join(LABELS)}")
    return found[0]


def ask_judge_first(name: str, rows: Sequence[QuestionRow], judge: Endpoint[str | int]) -> None:
    """Asks the judge about one answer, the first reference itself, and returns if it can be asked; blocks.

    Args:
        name: "CARE-pro" or "CARE".

    Raises:
        FatalError: the judge does not answer.
    """
    found = _judge(name, rows[:1], [rows[0].reference], judge)[0]
    if isinstance(found, Failure):
        print(f"the judge has no label for the first reference of {name} itself: {found}", file=sys.stderr)


def _judge(
    name: str, rows: Sequence[QuestionRow], finals: Sequence[str], judge: Endpoint[str | int]
) -> Sequence[str | int | Failure]:
    """The judge's label or mark of each final answer."""
    form, reading = (_CARE_PRO, read_label) if name == "CARE-pro" else (_CARE, whole_number(1, 10))
    talks = []
    for row, answer in zip(rows, finals, strict=True):
        language = display_name(row.language)
        shown = form.format(question=row.prompt, reference=row.reference, answer=answer, language=language)
        talks.append([{"role": "user", "content": shown}])
    return judge.ask(talks, reading)


def grade(
    name: str,
    rows: Sequence[QuestionRow],
    said: Sequence[str],
    judge: Endpoint[str | int] | None,
    thinking_opened: bool = False,
) -> list[Item]:
    """The answers with their scores; blocks until the judge has answered.

    Args:
        name: "mGSM", which needs no judge, "CARE-pro" or "CARE".
        said: the answer to each row.
        thinking_opened: whether the prompts ended with ``<think>``.

    Raises:
        FatalError: the judge does not answer, or a reference of mGSM has no number.
    """
    # A thought is no answer; what a judge sees and what is counted is the part after it.
    cut = [
        read_answer(text, row.language, thinking_opened=thinking_opened) for text, row in zip(said, rows, strict=True)
    ]
    finals = [one.final for one in cut]
    judged = LanguageGate().judge(finals, [row.language for row in rows])
    labels: Sequence[str | int | Failure]
    if name == "mGSM":
        labels = []
        for row, final in zip(rows, finals, strict=True):
            wanted = last_number(row.reference, "en")
            if wanted is None:
                raise FatalError(f"{row.place}: the reference {row.reference!r} has no number")
            labels.append("CORRECT" if last_number(final, row.language) == wanted else "INCORRECT")
    else:
        assert judge is not None
        labels = _judge(name, rows, finals, judge)

    def score(label: str | int | Failure) -> float | None:
        if isinstance(label, Failure):
            return None
        return label / 10 if isinstance(label, int) else float(label == "CORRECT")

    marks = [mark(row.language, row.prompt, row.reference) for row in rows]
    return [
        Item(row.language, score(label), str(label), answer, one.matches, question, row.id)
        for row, label, answer, one, question in zip(rows, labels, said, judged, marks, strict=True)
    ]


def mark(*parts: str) -> str:
    """Twelve digits that tell a question from others by its parts."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
