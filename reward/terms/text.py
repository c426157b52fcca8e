"""Terms that read an answer's text: verified answers, and repetition. All values are in [0, 1]."""

from __future__ import annotations

import unicodedata

_GRAM = 10  # characters; long enough that natural text in any script repeats few of them


def normalised(text: str) -> str:
    """The letters and digits of a text in one form (NFKC, case folded), words separated by one space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = ("L", "M", "N")  # combining marks (M) carry the vowels of some scripts
    return " ".join("".join(c if unicodedata.category(c)[0] in kept else " " for c in folded).split())


def exact(answer: str, accepted: list[str]) -> float:
    """1 where the answer equals an accepted one, ignoring case, punctuation and spaces; otherwise 0."""
    return float(normalised(answer) in {normalised(text) for text in accepted})


def contains(answer: str, accepted: list[str]) -> float:
    """1 where an accepted answer occurs in the answer and is not part of a longer word or number; otherwise 0."""
    padded = f" {normalised(answer)} "
    return float(any(_occurs_as_a_word(normalised(text), padded) for text in accepted))


def _occurs_as_a_word(text: str, padded: str) -> bool:
    start = padded.find(text) if text else -1
    while start > 0:
        end = start + len(text)
        if not _same_word(padded[start - 1], text[0]) and not _same_word(text[-1], padded[end]):
            return True
        start = padded.find(text, start + 1)
    return False


def _same_word(left: str, right: str) -> bool:
    """Whether two neighbouring characters belong to one word or number.

    Letters without case never do: their scripts write words without spaces, or attach endings to a name.
    """
    return (left.isdigit() and right.isdigit()) or (left.upper() != left and right.upper() != right)


def repetition(answer: str) -> float:
    """How much of an answer repeats itself: max(0, 2 q - 1).

    q is the share of the answer's n-grams of 10 characters that occurred before in it. Natural text has the value 0.
    """
    grams = len(answer) - _GRAM + 1
    if grams < 1:
        return 0.0
    distinct = len({answer[start : start + _GRAM] for start in range(grams)})
    return max(0.0, 2 * (1 - distinct / grams) - 1)
