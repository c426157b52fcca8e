"""What an answer is worth beside its similarity to the reference: verified answers, and penalties. All in [0, 1]."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import TypeAlias

Verifier: TypeAlias = Callable[[str, list[str]], float]  # (answer, accepted answers) -> value

_THOUGHT = re.compile(r"^(?:\s*<think>)?(.*?)(?:</think>|\Z)(.*)", re.DOTALL)
_GRAM = 10  # characters; long enough that natural text in any script repeats few of them


def split_thinking(text: str) -> tuple[str, str]:
    """The thinking part, "" without one, and the answer after it: "" where the thinking never ended."""
    if "<think>" not in text and "</think>" not in text:
        return "", text
    match = _THOUGHT.match(text)
    return (match[1].strip(), match[2].strip()) if match else ("", text)


def normalised(text: str) -> str:
    """Letters and digits of a text in one form (NFKC, case folded), words separated by one space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    marks = ("L", "M", "N")  # combining marks carry the vowels of some scripts
    return " ".join("".join(c if unicodedata.category(c)[0] in marks else " " for c in folded).split())


def exact(answer: str, accepted: list[str]) -> float:
    """1 where the answer is an accepted one, but for case, punctuation and spaces."""
    return float(normalised(answer) in {normalised(text) for text in accepted})


def contains(answer: str, accepted: list[str]) -> float:
    """1 where an accepted answer occurs in the answer, and not inside a longer word or number."""
    spoken = f" {normalised(answer)} "
    return float(any(_stands_in(normalised(text), spoken) for text in accepted))


def _stands_in(text: str, spoken: str) -> bool:
    start = spoken.find(text) if text else -1
    while start > 0:
        end = start + len(text)
        if not _one_word(spoken[start - 1], text[0]) and not _one_word(text[-1], spoken[end]):
            return True
        start = spoken.find(text, start + 1)
    return False


def _one_word(left: str, right: str) -> bool:
    """Whether neighbours belong together. Letters without case are of scripts that join words or add endings."""
    return (left.isdigit() and right.isdigit()) or (left.upper() != left and right.upper() != right)


def repetition(answer: str) -> float:
    """max(0, 2 q - 1), q = the share of an answer's n-grams of 10 characters that occurred before: 0 in normal text."""
    grams = len(answer) - _GRAM + 1
    if grams < 1:
        return 0.0
    distinct = len({answer[start : start + _GRAM] for start in range(grams)})
    return max(0.0, 2 * (1 - distinct / grams) - 1)
