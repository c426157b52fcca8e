"""Grades answers to benchmark questions: by a judge's label or mark, or by their last number."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from common.endpoint import Failure
from common.languages import count_as_one, english_name
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


def read_label(_: int, said: str) -> str:
    """For ``Endpoint.ask``: the one of ``LABELS`` that a judge names.

    Raises:
        ValueError: it names no label, or several.
    """
    found: list[str] = sorted(set(re.findall(r"\b[A-Z_]{7,}\b", said)).intersection(LABELS))
    if len(found) != 1:
        raise ValueError(f"it has to be one of {', '.join(LABELS)}")
    return found[0]


def last_number(text: str) -> float | None:
    """The last number of a text in digits of any script, with or without separators of thousands; None: no number."""
    plain = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    plain = plain.translate(str.maketrans("٬٫，", ",.,"))
    found = re.findall(r"[-−]?\d+(?:[., \u00a0\u202f]\d+)*", plain)
    if not found:
        return None
    number = found[-1].replace("−", "-")
    if re.fullmatch(r"-?[1-9]\d{0,2}(?:([., \u00a0\u202f])\d{3})(?:\1\d{3})*", number):
        return float(re.sub(r"[., \u00a0\u202f]", "", number))  # 1,000 or 1.000: none of the answers has three decimals
    number = number.rpartition(" ")[2].replace("\u00a0", "").replace("\u202f", "")
    whole, _, decimals = number.replace(",", ".").rpartition(".")
    return float(f"{whole.replace('.', '')}.{decimals}") if whole else float(decimals)


def grade(name: str, rows: Sequence[QuestionRow], said: Sequence[str], judge: Endpoint[str | int] | None) -> list[Item]:
    """The answers with their scores; blocks until the judge has answered.

    Args:
        name: "mGSM", which needs no judge, "CARE-pro" or "CARE".
        said: the answer to each row.

    Raises:
        FatalError: the judge does not answer.
    """
    spoken = LanguageGate().detect(list(said))
    labels: Sequence[str | int | Failure]
    if name == "mGSM":
        right = [last_number(answer) == last_number(row.reference) for row, answer in zip(rows, said, strict=True)]
        labels = ["CORRECT" if one else "INCORRECT" for one in right]
    else:
        assert judge is not None
        form, reading = (_CARE_PRO, read_label) if name == "CARE-pro" else (_CARE, whole_number(1, 10))
        talks = []
        for row, answer in zip(rows, said, strict=True):
            language = english_name(row.language).capitalize()
            shown = form.format(question=row.prompt, reference=row.reference, answer=answer, language=language)
            talks.append([{"role": "user", "content": shown}])
        labels = judge.ask(talks, reading)

    def score(label: str | int | Failure) -> float | None:
        if isinstance(label, Failure):
            return None
        return label / 10 if isinstance(label, int) else float(label == "CORRECT")

    return [
        Item(row.language, score(label), str(label), answer, compliant=count_as_one(language, row.language))
        for row, label, answer, language in zip(rows, labels, said, spoken, strict=True)
    ]
