"""Numbers in words, by the spell-out rules of CLDR (unicode-rbnf)."""

from __future__ import annotations

import unicodedata
from functools import cache

from unicode_rbnf import RbnfEngine

LARGEST = 99

# Where the rules of CLDR are mistaken: in Arabic two begins without a hamza, and eleven is not half feminine.
_CORRECTIONS = {"ar": (("إثن", "اثن"), ("إحدى عشر", "أحد عشر"))}


@cache
def number_word(number: int, language: str) -> str:
    """The cardinal number as it is counted and calculated with, in NFC and without soft hyphens.

    Args:
        number: from 0 to 99.
        language: a language code.

    Raises:
        ValueError: the number is out of range.
    """
    if not 0 <= number <= LARGEST:
        raise ValueError(f"numbers in words are from 0 to {LARGEST}, not {number}")
    text = _engine(language).format_number(number).text
    text = unicodedata.normalize("NFC", text.replace("\u200b", "").replace("\u00ad", ""))
    for mistaken, right in _CORRECTIONS.get(language, ()):
        text = text.replace(mistaken, right)
    return text


@cache
def _engine(language: str) -> RbnfEngine:
    return RbnfEngine.for_language(language)
