"""Terms that read an answer's text: verified answers, and repetition. All values are in [0, 1]."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from common.numbers import find_numbers, plain_digits
from reward.terms.words import is_word

_GRAM = 10  # characters; long enough that natural text in any script repeats few of them
# Around a number, so that no other number is found in it, and in a fraction; of no meaning in Unicode.
_BEGIN, _END, _SLASH = "\ue000", "\ue001", "\ue002"

# Signs and letters that are one and the same: dashes and minus; relations and arrows in other shapes; and the letters
# that Persian has for Arabic yeh and kaf, and that keyboards mix up.
_SAME_SIGN = str.maketrans(
    {**dict.fromkeys("−‐‑‒–—﹣－", "-"), **dict.fromkeys("≈≃≅≒", "="), **dict.fromkeys("≦⩽", "≤"),
     **dict.fromkeys("≧⩾", "≥"), **dict.fromkeys("⇒⟶⟹➔➜➝➞➡", "→"), "♯": "#"}
)  # fmt: skip
_SAME_LETTER = str.maketrans({**dict.fromkeys("يى", "ی"), "ك": "ک", **dict.fromkeys((_BEGIN, _END, _SLASH), " ")})
_RELATIONS = {"<=>": "↔", "=>": "→", "->": "→", "-->": "→", "<=": "≤", ">=": "≥", "!=": "≠"}
_RELATION = re.compile("<=>|[<>!]=|=>|-{1,2}>|={2,}")
_TAG = re.compile(r"<(/?[^\W\d_][^<>\n]{0,80})>")  # of HTML, whose brackets are no relations
_QUOTED = re.compile(rf"(?m)^[ \t]*+(?:>[ \t]++)++(?=[^\s\d{_BEGIN}])")  # as Markdown marks a quotation

# Symbols that no answer differs by: signs of products, which are written in many ways or not at all, and of
# approximations, cells of tables, degrees, and trade marks.
_NO_SYMBOLS = frozenset("×⋅∙∗∼~|°™®©℠")
# Arrows and geometric shapes count as pictures although Unicode has some of them as signs of mathematics.
_PICTURES = ((0x2190, 0x21FF), (0x25A0, 0x25FF), (0x27F0, 0x27FF), (0x2900, 0x297F), (0x2B00, 0x2BFF))
_VARIANT_MARKS = ((0xFE00, 0xFE0F), (0xE0100, 0xE01EF))  # ask for one shape of a sign, as ❤ in colour
_OPERAND_BEFORE = rf"(?<=[\w{_END})\]}}])"
_PART = re.compile(
    rf"(?P<number>{_BEGIN}[^{_END}]*{_END})"
    r"|(?P<root>[√∛∜])[ \t]*"
    # C++, A+ and C#; but 18+ and "100+ people" are the numbers, and x+y and 5+ 3 are sums.
    rf"|(?P<behind>(?<=[^\W\d_])(?:\+{{1,2}}(?![\w{_BEGIN}(√+-])(?![ \t]*{_BEGIN})|#(?![\w{_BEGIN}])))"
    rf"|(?P<open>(?<={_END})\+(?![\w{_BEGIN}(√+-])(?![ \t]*{_BEGIN}))"
    # The minus of -x, -√2 and -(x + 1); in Guinea-Bissau and x-1 it may be a hyphen, and in "- Paris" a dash.
    rf"|(?P<minus>(?<![\w{_END})\]}}.'’-])-(?=[^\W\d_](?![^\W\d_])|[√∛∜(∞]))"
    r"|(?P<sign>[+±])"
    rf"|(?P<power>{_OPERAND_BEFORE}\^(?=[\w{_BEGIN}(\[{{\\-]))"
    rf"|(?P<other>[^\w\s{_SLASH}]|_)"
)


def normalised(text: str, language: str = "", pictures: bool = True) -> str:
    """Letters, numbers and symbols of a text in one form; words and symbols parted by one space.

    NFKC, case folded, numbers by their value. Punctuation is left out, hyphens too, but not the symbols by which
    expressions differ: + < = > ± √ and others of Unicode's category Sm, the power x^2, the minus of -x, and the ends of
    C# and C++. A sign stands beside what it belongs to, as in -x, √2 and c++, or between spaces, as in x + 1.

    Args:
        language: ISO code of the text's language, which decides what 1.234 means; ``""``: not known.
        pictures: whether emoji, arrows and the like are kept.
    """
    plain = plain_digits(text)
    parts, end, is_fraction = list[str](), 0, True
    for number in find_numbers(plain, language):
        between = plain[end : number.start]
        is_fraction = between == "/" and not is_fraction  # 1/2, but of 1/2/2024 no more than the first two
        parts += [_SLASH if is_fraction else _folded(between), f"{_BEGIN}{number.value}{_END}"]
        end = number.end
    joined = _QUOTED.sub(" ", _TAG.sub(r" \1 ", "".join([*parts, _folded(plain[end:])])))
    joined = _RELATION.sub(lambda match: _RELATIONS.get(match[0], "="), joined)
    placed = _PART.sub(lambda match: _placed(match, pictures), joined)
    return " ".join(placed.split()).strip("= ")


def _folded(text: str) -> str:
    # The lower case of İ is an i with a dot above it, and that of I an i.
    folded = unicodedata.normalize("NFKC", text.translate(_SAME_SIGN)).casefold().replace("i\u0307", "i")
    return folded.translate(_SAME_LETTER)


def _placed(match: re.Match[str], pictures: bool) -> str:
    """A number, mark or sign as it stands in the form: as it is, attached to its operand, apart, or left out."""
    kind, sign = match.lastgroup, match[0][0]
    if kind == "number":
        return match[0]
    if kind == "behind":
        return f"{match[0]} "
    if kind == "root":
        return f" {sign}"
    if kind == "minus":
        following = match.string[match.end()]
        return " -" if not following.isalpha() or following.upper() != following else " "
    if kind == "sign" and not _is_behind_operand(match.string, match.start()):
        return " " if sign == "+" else f" {sign}"
    if kind == "power":
        return f" {sign} "
    if kind == "open" or not _is_kept(sign, pictures):
        return " " if unicodedata.category(sign)[0] != "M" or not _is_variant_mark(sign) else ""
    return sign if unicodedata.category(sign)[0] == "M" else f" {sign} "


def _is_behind_operand(text: str, place: int) -> bool:
    while place and text[place - 1] in " \t":
        place -= 1
    return place > 0 and (text[place - 1].isalnum() or text[place - 1] in f")]}}{_END}")


@cache
def _is_kept(sign: str, pictures: bool) -> bool:
    """Whether a sign that has no place of its own is in the form of a text."""
    category = unicodedata.category(sign)
    if category[0] == "M":  # these carry the vowels of some scripts
        return not _is_variant_mark(sign)
    if _is_picture(sign):
        return pictures
    return category == "Sm" and sign not in _NO_SYMBOLS


def _is_variant_mark(sign: str) -> bool:
    return any(low <= ord(sign) <= high for low, high in _VARIANT_MARKS)


def _is_picture(sign: str) -> bool:
    """Whether a sign is an emoji, an arrow, a bullet or the like."""
    is_one = unicodedata.category(sign) == "So" or any(low <= ord(sign) <= high for low, high in _PICTURES)
    return is_one and sign not in _NO_SYMBOLS


class _Answer:
    """An answer in the forms that accepted ones are compared with."""

    def __init__(self, text: str, language: str) -> None:
        self._text, self._language = text, language
        self._forms: dict[bool, str] = {}

    def form(self, pictures: bool) -> str:
        if pictures not in self._forms:
            self._forms[pictures] = normalised(self._text, self._language, pictures)
        return self._forms[pictures]

    def is_same(self, accepted: str) -> bool:
        """Whether it is this text, which has no letters, numbers and symbols, as "?" and "-"."""
        return _bare(self._text) == _bare(accepted)


def _bare(text: str) -> str:
    return " ".join(_folded(text).split())


def _forms(accepted: list[str], language: str) -> set[tuple[str, bool]]:
    """The forms of the accepted answers, and whether each has pictures: only then does an answer need the same ones.

    Answers are decorated with them.
    """
    forms = {normalised(text, one) for text in accepted for one in (language, "en")} - {""}
    return {(form, any(map(_is_picture, form))) for form in forms}


def exact(answer: str, accepted: list[str], language: str = "") -> float:
    """1 where the answer equals an accepted one, ignoring case, punctuation, spaces and forms of numbers; otherwise 0.

    Symbols count, as in x + 1 and C++, but emoji and arrows only where the accepted answer has some. An accepted answer
    without letters, numbers and symbols, as "?", is compared as it is written.

    Args:
        language: of the answer. An accepted answer may write numbers as that language does, or as English.
    """
    given = _Answer(answer, language)
    if any(form == given.form(pictures) for form, pictures in _forms(accepted, language)):
        return 1.0
    return float(any(given.is_same(text) for text in accepted if not normalised(text, language)))


def contains(answer: str, accepted: list[str], language: str = "") -> float:
    """1 where an accepted answer occurs in the answer and is not part of a longer word or number; otherwise 0.

    What is compared is as for :func:`exact`; :func:`reward.terms.words.is_word` says what parts of a word may stand
    beside it. An accepted answer without letters, numbers and symbols, as "?", must be the whole answer.

    Args:
        language: of the answer. An accepted answer may write numbers as that language does, or as English.
    """
    given = _Answer(answer, language)
    if any(_occurs(form, f" {given.form(pictures)} ", language) for form, pictures in _forms(accepted, language)):
        return 1.0
    return float(any(given.is_same(text) for text in accepted if not normalised(text, language)))


def _occurs(form: str, padded: str, language: str) -> bool:
    start = padded.find(form)
    while start > 0:
        end = start + len(form)
        # A numerator and its denominator belong together, and so does a sign with what it stands at.
        beside = padded[start - 1] in f"{_SLASH}-±√∛∜" or padded[end] in f"{_SLASH}+#"
        if not beside and is_word(padded, start, end, language):
            return True
        start = padded.find(form, start + 1)
    return False


def repetition(answer: str) -> float:
    """How much of an answer repeats itself: max(0, 2 q - 1).

    q is the share of the answer's n-grams of 10 characters that occurred before in it. Natural text has the value 0.
    """
    grams = len(answer) - _GRAM + 1
    if grams < 1:
        return 0.0
    distinct = len({answer[start : start + _GRAM] for start in range(grams)})
    return max(0.0, 2 * (1 - distinct / grams) - 1)
