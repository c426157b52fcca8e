"""Text in one form, so that what looks the same is the same."""

from __future__ import annotations

import unicodedata
from functools import cache

# Compatibility forms that are the same letter in another shape; others, as Thai's sara am, keep their own meaning.
_SHAPES = {"<wide>", "<narrow>", "<font>", "<initial>", "<medial>", "<final>", "<isolated>", "<circle>", "<square>"}
_SHAPED_RANGES = ((0x2100, 0x214F), (0x2460, 0x24FF), (0x3200, 0x33FF), (0xFB50, 0xFDFF), (0xFE70, 0xFFEF),
                  (0x1D400, 0x1D7FF), (0x1EE00, 0x1EEFF), (0x1F100, 0x1F1FF))  # fmt: skip
# Tatweel, and the marks of vowels that Arabic and Hebrew texts mostly leave out.
_OPTIONAL_MARKS = ((0x0610, 0x061A), (0x0640, 0x0640), (0x064B, 0x065F), (0x0670, 0x0670), (0x06D6, 0x06DC),
                   (0x06DF, 0x06E8), (0x06EA, 0x06ED), (0x0591, 0x05BD), (0x05BF, 0x05C7))  # fmt: skip


def normalise(text: str) -> str:
    """The text in one form: composed (NFC), in ordinary width and shape, without characters that nobody sees.

    Format characters (soft hyphen, zero-width space and joiners, direction marks), tatweel, and the marks of Arabic and
    Hebrew vowels go.
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).translate(_replacements()))


@cache
def _replacements() -> dict[int, str | None]:
    shapes: dict[int, str | None] = {
        code: unicodedata.normalize("NFKC", chr(code))
        for low, high in _SHAPED_RANGES
        for code in range(low, high + 1)
        if unicodedata.decomposition(chr(code)).partition(" ")[0] in _SHAPES
    }
    marks = dict.fromkeys(code for low, high in _OPTIONAL_MARKS for code in range(low, high + 1))
    hidden = dict.fromkeys(code for code in range(0xE0080) if unicodedata.category(chr(code)) == "Cf")
    return shapes | marks | hidden
