"""The languages that lrpo knows, by ISO 639-1 code and English name, as data rows spell them."""

from __future__ import annotations

import difflib

_TABLE: dict[str, str] = {
    "ar": "arabic",
    "de": "german",
    "en": "english",
    "es": "spanish",
    "fr": "french",
    "hi": "hindi",
    "id": "indonesian",
    "it": "italian",
    "ja": "japanese",
    "ko": "korean",
    "nl": "dutch",
    "pl": "polish",
    "pt": "portuguese",
    "ru": "russian",
    "th": "thai",
    "tr": "turkish",
    "vi": "vietnamese",
    "zh": "chinese",
    "bn": "bengali",  # this one and the next two are in mGSM; they come last so that the first 15 keep their order
    "sw": "swahili",
    "te": "telugu",
}
POLICY_CHOOSES = ""  # stands in the place of a requested language where the policy chooses the language itself
_CODE_BY_NAME = {english: code for code, english in _TABLE.items()}

CODES: tuple[str, ...] = tuple(_TABLE)


def code_of(name: str) -> str:
    """The ISO code of a language that is given by code or English name, in any letter case.

    Example:
        >>> code_of("Chinese"), code_of("zh")
        ('zh', 'zh')

    Raises:
        ValueError: the language is unknown. An unknown language never silently becomes English.
    """
    key = name.strip().lower()
    if key in _TABLE:
        return key
    if key in _CODE_BY_NAME:
        return _CODE_BY_NAME[key]
    known = [*_TABLE, *_CODE_BY_NAME]
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"known codes: {' '.join(CODES)}"
    raise ValueError(f"unknown language {name!r}; {hint}")


def english_name(code: str) -> str:
    """The English name of an ISO code in lower case, as ``extra_info.language`` of a data row has it."""
    return _TABLE[code_of(code)]


def tag(code: str) -> str:
    """The token that asks a warm-started policy to answer in a language, for example ``<|out_lang_zh|>``."""
    return f"<|out_lang_{code_of(code)}|>"
