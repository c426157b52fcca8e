"""Multiple choice: the letter of the option that an answer settles on."""

from __future__ import annotations

import re
import unicodedata

_BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\text\s*\{)?\s*\(?([A-Z])\)?\s*\.?\s*\}")
# A capital letter of its own: scripts without spaces may stand right beside it, Latin letters and digits may not.
_LETTER = re.compile(r"(?<![A-Za-z0-9À-ɏ'’])([A-Z])(?![A-Za-z0-9À-ɏ'’])")
_OPTION = re.compile(r"\s*\(?([A-Z])(?:[).:]|\s|$)")  # what an accepted answer begins with
# Cyrillic and Greek capitals that a policy writes for the Latin ones that they look like.
_LOOK_ALIKE = str.maketrans("АВСЕНΑΒΕΗ", "ABCEHABEH")


def chosen_letter(answer: str) -> str:
    """The option that an answer names last, "A" to "Z"; one in ``\\boxed{}`` comes first. ``""`` where there is none.

    Full-width and circled letters count as the letters that they are, and so does an answer of one small letter.
    """
    text = unicodedata.normalize("NFKC", answer).translate(_LOOK_ALIKE).strip()
    alone = text.strip("()[].:* ")
    if len(alone) == 1:
        return alone.upper() if "A" <= alone.upper() <= "Z" else ""
    found = _BOXED.findall(text) or _LETTER.findall(text)
    return str(found[-1]) if found else ""


def choice(answer: str, accepted: list[str]) -> float:
    """1 where the answer settles on the letter of an accepted one, as "B", "(B)" or "B. Paris"; otherwise 0."""
    letters = {found[1] for one in accepted if (found := _OPTION.match(one))}
    return float(chosen_letter(answer) in letters)
