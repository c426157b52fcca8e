"""Where a word begins and ends, so that a name is not found in another word: مصر (Egypt) in المصرف (the bank).

Letters of scripts with capitals belong to one word where they stand side by side. Of the scripts without capitals some
are written without spaces, and in Korean particles are attached to a name, so there a name is found anywhere. In
Arabic, Hebrew and the scripts of India words have spaces, but what other languages write as words of their own is
attached to a name: before it in Arabic and Hebrew, behind it in all of them.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

_ARABIC, _HEBREW, _INDIC = "Arabic", "Hebrew", "Indic"
_SCRIPTS = (
    (0x0590, 0x05FF, _HEBREW), (0x0600, 0x06FF, _ARABIC), (0x0750, 0x077F, _ARABIC), (0x08A0, 0x08FF, _ARABIC),
    (0x0900, 0x0DFF, _INDIC),
)  # fmt: skip
_LONGEST = 24  # characters of what is attached
# Yeh and kaf stand here in their Persian form, as reward/terms/text.py compares them.
_BEFORE = {  # and, so, by, like, to, the, and their combinations
    _ARABIC: re.compile("ا?[وف]?(?:[بکل]?(?:ال)?|لل)"),
    _HEBREW: re.compile("[והבכלמש]{0,4}"),
    _INDIC: re.compile(""),
}
_BEFORE_PERSIAN = re.compile("و|ن?می|به?|بی|هم|نا|در|از")  # where a text leaves out the space or has a joiner
_BEHIND_ARABIC = re.compile("[اة]|هم?ا?|هن|کم?|نا|ی|یة|یا|یه|یی?ن|یون|ون|ان|ات")  # of cases, persons, plurals
_BEHIND_HEBREW = re.compile("[הוי]|ים|ות|ית|יה|יים|יות|נו|[םןך]|כם|הם")
_ARABIC_LANGUAGES = frozenset(["", "ar", "arz"])
_MOST_LETTERS = {_ARABIC: 4, _HEBREW: 4, _INDIC: 6}  # of endings, in languages that have many; vowel signs not counted
# Endings in scripts of India that begin with a vowel sign; any other one goes on with the name's last syllable.
_VOWEL_ENDINGS = re.compile(
    "े|ों|ें|ो|ः"  # Hindi, Marathi and Sanskrit
    "|ा(?:त(?:ील|ून|ले)?|चा|चे|चि|ची|च्या|ला|ने|हून|वर|साठी|शी|कडे|मध्ये|न्त)"  # Marathi, after the vowel of the oblique case
    "|ां(?:ना|नी|चा|चे|चि|ची|च्या|त|वर|साठी)"
    "|ে(?:র|ই|ও|রা|রও|রই|তে|দের|ৰ)?"  # Bengali and Assamese
    "|ੇ|ે|ો"  # Punjabi and Gujarati
    "|[ේෙි](?:න්|හි|ක්)?(?:ය|යි|ද)?"  # Sinhala
)
_MYANMAR_ENDINGS = re.compile("[့း]")


def is_word(text: str, start: int, end: int, language: str) -> bool:
    """Whether what stands at a place of a text is no part of a longer word.

    Args:
        text: as :func:`reward.terms.text.normalised` has it, with a space at both ends.
        start: where the word begins, at least 1.
        end: where it ends, before the last character.
        language: ISO code of the text's language, which decides what may be attached; ``""``: not known.
    """
    return _begins(text, start, language) and _ends(text, end, language)


def _begins(text: str, start: int, language: str) -> bool:
    first, before = text[start], text[start - 1]
    if _both_cased(before, first):
        return False
    script = _script(first)
    if script is None or _script(before) != script:
        return True
    begin = start
    while start - begin < _LONGEST and _script(text[begin - 1]) == script:
        begin -= 1
    attached = text[begin:start]
    if _BEFORE[script].fullmatch(attached):
        return True
    return script == _ARABIC and language not in _ARABIC_LANGUAGES and bool(_BEFORE_PERSIAN.fullmatch(attached))


def _ends(text: str, end: int, language: str) -> bool:
    last, script = text[end - 1], _script(text[end - 1])
    stop = end
    while stop - end < _LONGEST and _is_mark(text[stop]):
        stop += 1
    if stop > end and script is None:
        # A stress mark, as in Москва́, changes no word; in scripts without capitals a mark is a vowel or a tone.
        if _is_cased(last) or unicodedata.category(last)[0] == "M":
            return not _both_cased(last, text[stop])
        return bool(_MYANMAR_ENDINGS.fullmatch(text[end:stop]))
    if script is None or (stop == end and _script(text[end]) != script):
        return not _both_cased(last, text[end])
    while stop - end < _LONGEST and (_script(text[stop]) == script):
        stop += 1
    attached = text[end:stop]
    if _is_mark(attached[0]):
        return bool(_VOWEL_ENDINGS.fullmatch(attached))
    if script == _ARABIC and language in _ARABIC_LANGUAGES:
        return bool(_BEHIND_ARABIC.fullmatch(attached))
    if script == _HEBREW and language != "yi":
        return bool(_BEHIND_HEBREW.fullmatch(attached))
    return sum(not _is_mark(c) for c in attached) <= _MOST_LETTERS[script]


@cache
def _script(letter: str) -> str | None:
    """The script of a letter or mark, where it is one of those whose words have attached parts."""
    if unicodedata.category(letter)[0] not in "LM":
        return None
    return next((name for low, high, name in _SCRIPTS if low <= ord(letter) <= high), None)


@cache
def _is_mark(letter: str) -> bool:
    return unicodedata.category(letter)[0] == "M"


def _is_cased(letter: str) -> bool:
    return letter.upper() != letter


def _both_cased(left: str, right: str) -> bool:
    return _is_cased(left) and _is_cased(right)
