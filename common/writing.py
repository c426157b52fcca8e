"""Writing systems: which script a letter belongs to, which scripts a language is written in, and words in one form.

A script is a small number, and a set of scripts an integer with one bit for each. The names are those with which the
names of Unicode's letters begin. Han characters that simplified Chinese has and Japanese lacks are a script of their
own.
"""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
from babel.core import get_global
from numpy.typing import NDArray

from common.languages import CODES, standard_code
from common.text import normalise

# By the code of ISO 15924 that CLDR uses: the scripts of letters in texts of a language.
_NAMES = {
    "Latn": ("LATIN",), "Cyrl": ("CYRILLIC",), "Grek": ("GREEK",), "Arab": ("ARABIC",), "Hebr": ("HEBREW",),
    "Deva": ("DEVANAGARI",), "Beng": ("BENGALI",), "Guru": ("GURMUKHI",), "Gujr": ("GUJARATI",), "Orya": ("ORIYA",),
    "Taml": ("TAMIL",), "Telu": ("TELUGU",), "Knda": ("KANNADA",), "Mlym": ("MALAYALAM",), "Sinh": ("SINHALA",),
    "Thai": ("THAI",), "Laoo": ("LAO",), "Mymr": ("MYANMAR",), "Khmr": ("KHMER",), "Tibt": ("TIBETAN",),
    "Ethi": ("ETHIOPIC",), "Armn": ("ARMENIAN",), "Geor": ("GEORGIAN",), "Thaa": ("THAANA",), "Syrc": ("SYRIAC",),
    "Hans": ("CJK", "SIMPLIFIED"), "Hant": ("CJK", "SIMPLIFIED"), "Jpan": ("CJK", "HIRAGANA", "KATAKANA"),
    "Kore": ("HANGUL",), "Mong": ("MONGOLIAN",), "Cher": ("CHEROKEE",), "Bopo": ("BOPOMOFO",),
}  # fmt: skip
_ALSO = {  # languages that are also written in scripts that are not the likely one
    "Latn": "az bs kk ku sh sr tg tk tt uz", "Cyrl": "az bs kk ku sh sr tk tt uz", "Arab": "az kk ku ky pa sd tg ug uz",
    "Deva": "sd", "Bopo": "zh",
}  # fmt: skip
_NUMBER = {name: number for number, name in enumerate(dict.fromkeys(n for names in _NAMES.values() for n in names), 1)}
_OTHER = len(_NUMBER) + 1  # a letter of any script that is not listed
KANA = 1 << _NUMBER["HIRAGANA"] | 1 << _NUMBER["KATAKANA"]
WRITTEN_WITHOUT_SPACES = KANA | 1 << _NUMBER["CJK"] | 1 << _NUMBER["SIMPLIFIED"]
_ALIASES = {"IDEOGRAPHIC": "CJK", "KATAKANA-HIRAGANA": "KATAKANA", "HANGZHOU": "CJK", "HALFWIDTH": "KATAKANA"}
_INHERITED = {"COMBINING", "MODIFIER", "FEMININE", "MASCULINE", "MICRO", "DOUBLE-STRUCK", "SCRIPT", "BLACK-LETTER"}

# Scripts that one word may mix have the same group: words are cut only where the group changes.
GROUPS: NDArray[np.int64] = np.arange(_OTHER + 1)
for _name in ("HIRAGANA", "KATAKANA", "SIMPLIFIED"):
    GROUPS[_NUMBER[_name]] = _NUMBER["CJK"]


def normalise_word(word: str) -> str:
    """A word as the language model should read it: in one form, and in lower case where capitals go on inside it.

    Words in capitals are rare in what lid.176 has learned from: it takes upper-case sentences for other languages.
    """
    word = normalise(word).replace("<", "").replace(">", "")
    return word if word[1:] == word[1:].lower() else word.lower()


def _is_simplified(character: str) -> bool:
    """Whether GB 2312, the standard of simplified Chinese, has a character that the Japanese JIS X 0208 lacks."""
    return len(character.encode("gb2312", "ignore")) > 0 and not character.encode("shift_jis", "ignore")


@cache
def _script_table() -> NDArray[np.int64]:
    table = np.zeros(0x110000, np.int64)
    for low, high in ((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)):
        table[low : high + 1] = _NUMBER["CJK"]
    table[[code for code in range(0x4E00, 0xA000) if _is_simplified(chr(code))]] = _NUMBER["SIMPLIFIED"]
    table[0xAC00:0xD7A4] = _NUMBER["HANGUL"]
    for code in [*range(0x3400), *range(0xA000, 0xAC00), *range(0xD7B0, 0xD800), *range(0xFB00, 0x20000)]:
        character = chr(code)
        if unicodedata.category(character)[0] not in "LM":
            continue
        name = unicodedata.name(character, "UNKNOWN").partition(" ")[0]
        name = _ALIASES.get(name, name)
        table[code] = 0 if name in _INHERITED else _NUMBER.get(name, _OTHER)
    return table


def scripts_of(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The script of each code point; 0 for what is neither a letter nor a mark of a script."""
    return _script_table()[codes]


@cache
def scripts_of_language(code: str) -> int:
    """The set of scripts in which a language is written, by CLDR's likely script of the language.

    Of a language that was declared and is none of CLDR's it is not known, and may be any.
    """
    subtags = get_global("likely_subtags")
    likely = (subtags.get(code) or subtags.get(standard_code(code), "")).split("_")
    if likely == [""] and code not in CODES:
        return ~0
    scripts = [likely[1] if len(likely) > 1 else "Latn"]
    scripts += [script for script, languages in _ALSO.items() if code in languages.split()]
    return sum({1 << _NUMBER[name] for script in scripts for name in _NAMES.get(script, ())})
