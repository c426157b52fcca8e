"""Symbols among words: the variables and units that stand in texts of every language, as in 答えは 5 cm です or x = 5.

They are Latin and Greek letters, one or two at a time. In a formula with delimiters ``common/prose.py`` leaves them
out. Here they are found outside of any, in texts of languages that are not written in their script; in others they
cannot be told from words.

What a Korean text adds to a word in brackets to say how it is written in Chinese characters is no word either, as in
세종대왕(世宗大王).
"""

from __future__ import annotations

import re

import numpy as np

from common.text import normalise
from common.writing import scripts_of, scripts_of_language

_LETTER = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u03ff\u1e00-\u1fff"  # Latin and Greek
# Words with nothing but white space and punctuation between them: several of these are a phrase, and no symbols, also
# where it is spelled out, as t-h-i-s.
_PHRASE = re.compile(rf"[{_LETTER}]+(?:[\s.,;:!?'’·・、。，_-]+[{_LETTER}]+)*")
_WORD = re.compile(rf"[{_LETTER}]+")
_LONGEST = 2  # letters of a symbol
# Words of English that are no longer than symbols.
_ENGLISH = re.compile("a[hmnst]|b[ey]|do|go|h[ei]|i[fnst]|m[ey]|no|o[fhknr]|so|to|u[ps]|we", re.IGNORECASE)
# A word in Hangul and, in brackets directly behind it, Chinese characters.
_GLOSS = re.compile("([\uac00-\ud7a3]+)\\(([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+)\\)")
_MOST = 3  # letters of symbols that stand side by side, as "cm x": the language of so few cannot be told


def without_symbols(text: str, language: str) -> str:
    """The text, in one form, with a space for each lone word of one or two letters in a foreign script.

    A Korean one is without Chinese characters in brackets, if these are no more than the letters of the word before.

    Args:
        language: the code of the language that the text should be in; with ``""`` no script is foreign.
    """
    wanted = scripts_of_language(language) if language else 0
    if not wanted or (text.isascii() and wanted & scripts_of_language("en")):
        return text
    text = normalise(text)
    if language == "ko":
        text = _GLOSS.sub(lambda found: found[1] if len(found[2]) <= len(found[1]) else found[0], text)

    def kept(match: re.Match[str]) -> str:
        words = _WORD.findall(match[0])
        if any(len(word) > _LONGEST or _ENGLISH.fullmatch(word) for word in words):
            return match[0]
        letters = "".join(words)
        if len(letters) > _MOST:
            return match[0]
        scripts = scripts_of(np.array([ord(letter) for letter in letters], np.int64))
        return " " if (((1 << scripts) & wanted) == 0)[scripts > 0].any() else match[0]

    return _PHRASE.sub(kept, text)
