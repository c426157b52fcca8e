"""How published recipes compare answers, exactly as their code does it, also where that is wrong.

A recipe under configs/recipes/ verifies answers with math-verify; what is named ``…AsPublished`` there compares them as
texts. ``common/diagnostics.py`` and ``reward/detectors.py`` have the published ways to tell languages.
"""

from __future__ import annotations

import re

_REPLACED = (
    ("\n", ""), (r"\!", ""), (r"\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), (r"\left", ""), (r"\right", ""),
    (r"^{\circ}", ""), (r"^\circ", ""), (r"\$", ""),
)  # fmt: skip
_UNIT = re.compile(r"\\text\{ ")
_FRACTION = re.compile(r"(0|-?[1-9]\d*)/(0|-?[1-9]\d*)")


def normalised_formula(text: str) -> str:
    """The normal form of a formula by which MATH (arXiv 2103.03874) compares answers as texts."""
    for old, new in _REPLACED:
        text = text.replace(old, new)
    if len(parts := _UNIT.split(text)) == 2:
        text = parts[0]
    text = text.replace(r"\%", "").replace(r"\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    if text[0] == ".":
        text = f"0{text}"
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:
        text = right
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text).replace(" ", "")
    text = _with_braces(text)
    if text == "0.5":
        text = r"\frac{1}{2}"
    whole = _FRACTION.fullmatch(text)
    return rf"\frac{{{whole[1]}}}{{{whole[2]}}}" if whole else text


def _with_braces(text: str) -> str:
    r"""``\frac12`` and ``\frac1{2}`` as ``\frac{1}{2}``; as it is where a fraction has no two parts."""
    first, *rest = text.split(r"\frac")
    for number, part in enumerate(rest):
        if part.startswith("{"):
            continue
        if len(part) < 2:
            return text
        rest[number] = f"{{{part[0]}}}{part[1:]}" if part[1] == "{" else f"{{{part[0]}}}{{{part[1]}}}{part[2:]}"
    return r"\frac".join([first, *rest])


def boxed_equals(text: str, accepted: list[str]) -> bool:
    r"""Whether the last ``\boxed`` of a text has the same normal form as an accepted answer (M-Thinker, MATH)."""
    box = _last_box(text)
    return box is not None and normalised_formula(box) in map(normalised_formula, accepted)


def _last_box(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}``, or what follows the last ``\boxed `` up to a dollar sign.

    None for a box that is not closed. An ``\fbox`` is looked for where there is no box, and then not read.
    """
    if r"\boxed " in text:
        return text.rpartition(r"\boxed ")[2].partition("$")[0]
    start, depth = text.rfind(r"\boxed"), 0
    for brace in re.compile("[{}]").finditer(text, max(start, 0)):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            begun = start >= 0 and text.startswith(r"\boxed{", start)
            return text[start + len(r"\boxed{") : brace.start()] if begun else None
    return None
