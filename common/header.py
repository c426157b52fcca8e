"""The header of an answer whose language the policy chose: its first words, which name the language it thinks in."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from common.languages import code_of


class Choice(NamedTuple):
    """What a header says."""

    language: str  # ISO code; "" where the header names no language that may be chosen
    well_formed: bool  # whether the header is exactly as the template writes it
    end: int  # length of the header in characters; 0 where the answer has none


class Header:
    """Writes headers exactly as the template says, and reads them tolerantly.

    When reading, letter case and white space do not matter, English names count as well as codes, and the closing part
    of the template may be missing.

    Args:
        template: text with ``{code}`` where the language goes, and more text before and after it.
        languages: the languages that may be chosen. Any other counts as none.

    Example:
        >>> Header("<lang_select>\\n{code}\\n</lang_select>\\n", ["en", "zh"]).parse("<Lang_Select> Chinese <think>…")
        Choice(language='zh', well_formed=False, end=23)
    """

    def __init__(self, template: str, languages: Collection[str]) -> None:
        self._template, self._languages = template, frozenset(languages)
        before, after = (re.escape(part.strip()) for part in template.split("{code}"))
        self._pattern = re.compile(rf"\s*{before}\s*([^\W_]+)(?:\s*{after})?", re.IGNORECASE)

    def text(self, code: str) -> str:
        """The header that names this language."""
        return self._template.replace("{code}", code)

    def parse(self, text: str) -> Choice:
        """Reads the header at the beginning of an answer."""
        match = self._pattern.match(text)
        if match is None:
            return Choice("", False, 0)
        try:
            code = code_of(match[1])
        except ValueError:
            code = ""
        if code not in self._languages:
            return Choice("", False, match.end())
        return Choice(code, text.startswith(self.text(code).rstrip()), match.end())
