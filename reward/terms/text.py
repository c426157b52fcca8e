"""Terms that read an answer's text: verified answers, and repetition. All values are in [0, 1]."""

from __future__ import annotations

import unicodedata

from common.numbers import find_numbers, plain_digits

_GRAM = 10  # characters; long enough that natural text in any script repeats few of them
_BEGIN, _END = "\ue000", "\ue001"  # around a number, so that no other number is found in it; of no meaning in Unicode


def normalised(text: str, language: str = "") -> str:
    """Letters and numbers of a text in one form: NFKC, case folded, numbers by their value; words parted by one space.

    Args:
        language: ISO code of the text's language, which decides what 1.234 means; ``""``: not known.
    """
    plain = plain_digits(text)
    parts, end, is_fraction = list[str](), 0, True
    for number in find_numbers(plain, language):
        between = plain[end : number.start]
        is_fraction = between == "/" and not is_fraction  # 1/2, but of 1/2/2024 no more than the first two
        parts += ["/" if is_fraction else _letters(between), f"{_BEGIN}{number.value}{_END}"]
        end = number.end
    return " ".join("".join([*parts, _letters(plain[end:])]).split())


def _letters(text: str) -> str:
    # The lower case of İ is an i with a dot above it, and that of I an i.
    folded = unicodedata.normalize("NFKC", text).casefold().replace("i\u0307", "i")
    kept = ("L", "M", "N")  # combining marks (M) carry the vowels of some scripts
    return "".join(c if unicodedata.category(c)[0] in kept else " " for c in folded)


def exact(answer: str, accepted: list[str], language: str = "") -> float:
    """1 where the answer equals an accepted one, ignoring case, punctuation, spaces and forms of numbers; otherwise 0.

    Args:
        language: of the answer. An accepted answer may write numbers as that language does, or as English.
    """
    forms = {normalised(text, one) for text in accepted for one in (language, "en")}
    return float(normalised(answer, language) in forms)


def contains(answer: str, accepted: list[str], language: str = "") -> float:
    """1 where an accepted answer occurs in the answer and is not part of a longer word or number; otherwise 0.

    Args:
        language: of the answer. An accepted answer may write numbers as that language does, or as English.
    """
    padded = f" {normalised(answer, language)} "
    forms = {normalised(text, one) for text in accepted for one in (language, "en")}
    return float(any(_occurs_as_a_word(form, padded) for form in forms))


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
    if "/" in (left, right):  # numerator and denominator
        return True
    return left.upper() != left and right.upper() != right


def repetition(answer: str) -> float:
    """How much of an answer repeats itself: max(0, 2 q - 1).

    q is the share of the answer's n-grams of 10 characters that occurred before in it. Natural text has the value 0.
    """
    grams = len(answer) - _GRAM + 1
    if grams < 1:
        return 0.0
    distinct = len({answer[start : start + _GRAM] for start in range(grams)})
    return max(0.0, 2 * (1 - distinct / grams) - 1)
