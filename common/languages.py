"""The languages lrpo knows: ISO 639-1 code, English name (as data rows spell it) and native name."""

from __future__ import annotations

import difflib

# code: (English name, native name)
_TABLE: dict[str, tuple[str, str]] = {
    "ar": ("arabic", "العربية"),
    "de": ("german", "Deutsch"),
    "en": ("english", "English"),
    "es": ("spanish", "Español"),
    "fr": ("french", "Français"),
    "hi": ("hindi", "हिन्दी"),
    "id": ("indonesian", "Bahasa Indonesia"),
    "it": ("italian", "Italiano"),
    "ja": ("japanese", "日本語"),
    "ko": ("korean", "한국어"),
    "nl": ("dutch", "Nederlands"),
    "pl": ("polish", "Polski"),
    "pt": ("portuguese", "Português"),
    "ru": ("russian", "Русский"),
    "th": ("thai", "ไทย"),
    "tr": ("turkish", "Türkçe"),
    "vi": ("vietnamese", "Tiếng Việt"),
    "zh": ("chinese", "中文"),
}
_CODE_BY_NAME = {english: code for code, (english, _) in _TABLE.items()}

CODES: tuple[str, ...] = tuple(_TABLE)


def code_of(name: str) -> str:
    """The ISO code of a code or an English name, in any case (``"Chinese"`` and ``"zh"`` give ``"zh"``).

    Raises:
        ValueError: the language is unknown. It never silently becomes English.
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
    """The English name of an ISO code, lower case, as in ``extra_info.language`` of a data row."""
    return _TABLE[code_of(code)][0]


def native_name(code: str) -> str:
    return _TABLE[code_of(code)][1]


def tag(code: str) -> str:
    """The token that asks a warm-started policy to answer in a language: ``<|out_lang_zh|>``."""
    return f"<|out_lang_{code_of(code)}|>"
