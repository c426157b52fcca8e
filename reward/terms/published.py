"""Scoring functions of published recipes, exactly as their code has them, also where that is wrong.

A recipe under configs/recipes/ uses the gate and math-verify of this project; its ``…_as_published`` uses these.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from reward.terms.math import last_box

# The languages that a text is in, the likeliest first; ValueError where it has none.
Detect = Callable[[str], list[str]]

_FORMULAS = re.compile(r"\$\$.*?\$\$|\\\(.*?\\\)|\\\[.*?\\\]", re.DOTALL), re.compile(r"\$[^$]*\$", re.DOTALL)
_SHORT = 15  # characters

_REPLACED = (
    ("\n", ""), (r"\!", ""), (r"\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), (r"\left", ""), (r"\right", ""),
    (r"^{\circ}", ""), (r"^\circ", ""), (r"\$", ""),
)  # fmt: skip
_UNIT = re.compile(r"\\text\{ ")
_FRACTION = re.compile(r"(-?\d+)/(-?\d+)")


def langdetect_languages() -> Detect:
    """langdetect as M-Thinker calls it: with the seed 42 before each call, so that a text has one result.

    Raises:
        ImportError: langdetect is not installed.
    """
    import langdetect

    def languages(text: str) -> list[str]:
        langdetect.DetectorFactory.seed = 42
        try:
            found = langdetect.detect_langs(text)
        except langdetect.LangDetectException as error:
            raise ValueError(str(error)) from None
        return ["zh" if one.lang == "zh-cn" else one.lang for one in found]

    return languages


def without_formulas(text: str) -> str:
    r"""The text without ``$$…$$``, ``\(…\)``, ``\[…\]``, and then without ``$…$`` (M-Thinker)."""
    for pattern in _FORMULAS:
        text = pattern.sub("", text)
    return text


def is_consistent(text: str, language: str, detect: Detect) -> bool:
    """M-Thinker's ``whether_cons``: exactly one language is found, the one asked for, formulas apart.

    A text of at most 15 characters is consistent whatever it says, so an answer that is one formula is in every
    language.
    """
    words = without_formulas(text).strip()
    if len(words) <= _SHORT:
        return True
    try:
        return detect(words) == [language]
    except ValueError:
        return False


def normalised_formula(text: str) -> str:
    """The normal form of a formula by which MATH (arXiv 2103.03874) compares answers as texts."""
    for old, new in _REPLACED:
        text = text.replace(old, new)
    if len(parts := _UNIT.split(text)) == 2:
        text = parts[0]
    text = text.replace(r"\%", "").replace("%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    if text[0] == ".":
        text = f"0{text}"
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:
        text = right
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac([^{])\{", r"\\frac{\1}{", text)
    text = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
    if text == "0.5":
        text = r"\frac{1}{2}"
    whole = _FRACTION.fullmatch(text)
    return rf"\frac{{{int(whole[1])}}}{{{int(whole[2])}}}" if whole else text


def boxed_equals(text: str, accepted: list[str]) -> bool:
    r"""Whether the last ``\boxed`` of a text has the same normal form as an accepted answer (M-Thinker, MATH)."""
    box = last_box(text)
    return box is not None and normalised_formula(box) in map(normalised_formula, accepted)
