"""The detectors by which answers are diagnosed: the language gate, langdetect, lingua.

Figures can be compared only where they come from the same detector. So each detector comes with the definitions of
those who publish with it (``common/diagnostics.py``):

    gate        lid.176 as the language gate reads it (``reward/gate.py``); our own definitions
    langdetect  PolyMath's and M-Thinker's consistency; TRIT and mCoT use it, too
    lingua      AdaMame's consistency, pass rates and code switching; SP3F uses it, too

langdetect and lingua are packages of their own: ``pip install "lrpo[detectors]"``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, Literal, NoReturn, Protocol, TypeAlias

from common.answer import Answer
from common.diagnostics import consistent_polymath, lines_pass_adamame, part_adamame, words_pass, words_pass_adamame
from common.languages import code_of
from common.process import FatalError
from common.prose import judged_words
from common.wire import PartLanguages
from reward.gate import ComplianceGate

DetectorName: TypeAlias = Literal["gate", "langdetect", "lingua"]

# The languages among which AdaMame's metrics.py chooses for MGSM. Its list for MSVAMP lacks four of the ten languages
# of MSVAMP (bn, de, ru, sw), so that no answer in them is ever consistent there.
ADAMAME_MGSM = ("bn", "de", "en", "es", "fr", "ja", "ko", "ru", "sw", "te", "th", "zh")
ADAMAME_MSVAMP = ("ar", "en", "es", "fr", "ja", "ko", "pt", "th", "vi", "zh")

_TRADITIONAL = "zh-tw"  # langdetect's label
_SEED = 42  # of langdetect, which is random; M-Thinker sets the same one
# A line with fewer letters passes in any language, because that of "Schritt 1" or "OK" cannot be told. Letters of
# scripts without case count twice, because words in these scripts are shorter.
_LINE_LETTERS = 20


class Detector(Protocol):
    """Finds out which languages thoughts and answers are in."""

    name: DetectorName

    def knows(self, language: str) -> bool:
        """Whether a text in this language could be found to be in it."""

    def parts(self, texts: Sequence[str], asked: Sequence[str]) -> list[PartLanguages | None]:
        """Diagnoses texts, each by the language asked for; ``""`` is none, and such a text is in no language.

        Returns:
            For each text its languages; None where the detector does not know the language asked for.
        """


def diagnose(detector: Detector, answers: Sequence[Answer]) -> list[tuple[PartLanguages | None, PartLanguages | None]]:
    """The languages of each answer's thought and of its final answer, judged by the language asked for.

    Returns:
        For each answer a pair. That of the thought is None where there is none, and both are where the detector does
        not know the language.
    """
    with_thought = [number for number, answer in enumerate(answers) if answer.thought]
    texts = [*(answer.final for answer in answers), *(answers[number].thought for number in with_thought)]
    asked = [*(answer.asked for answer in answers), *(answers[number].asked for number in with_thought)]
    found = detector.parts(texts, asked)
    thoughts = dict(zip(with_thought, found[len(answers) :], strict=True))
    return [(thoughts.get(number), final) for number, final in enumerate(found[: len(answers)])]


def make_detector(
    name: DetectorName, gate: ComplianceGate, languages: Collection[str] = (), seed: int | None = _SEED
) -> Detector:
    """A detector by name.

    Args:
        gate: of the detector ``gate``.
        languages: codes, among which lingua chooses; ``ADAMAME_MGSM`` where there are none.
        seed: of langdetect; None leaves it random, as PolyMath's, TRIT's and mCoT's code does.

    Raises:
        FatalError: the package is not installed.
    """
    if name == "gate":
        return GateDetector(gate)
    return Langdetect(seed) if name == "langdetect" else Lingua(languages or ADAMAME_MGSM)


class GateDetector:
    """The language gate, by which a text is in a language where :meth:`ComplianceGate.in_language` says so.

    Lines of 20 letters or more are judged. A text switches between languages where more than ``reward.gate_share`` of
    it is foreign even to the language that most of it is in. An empty text is in no language and passes in nothing. One
    that passes because it is short (``reward.gate_short``) passes by lines, too, and does not switch.
    """

    name: DetectorName = "gate"

    def __init__(self, gate: ComplianceGate) -> None:
        self._gate = gate

    def knows(self, language: str) -> bool:
        return self._gate.knows(language)

    def parts(self, texts: Sequence[str], asked: Sequence[str]) -> list[PartLanguages | None]:
        judged = self._gate.judge(texts, asked)
        consistent = [self._gate.passes(*one) for one in zip(texts, asked, judged, strict=True)]
        lines = [[line for line in text.split("\n") if _is_long(line)] for text in texts]
        single = {n for n, text in enumerate(texts) if "\n" not in text.strip()}  # lines that are judged already
        elsewhere = {n for n, one in enumerate(judged) if not (one.matches or consistent[n])}
        failing = {n for n in single & elsewhere if lines[n] and judged[n].language not in ("", asked[n])}
        accepted = single | {n for n, one in enumerate(judged) if consistent[n] and not one.matches}
        failing |= self._foreign_lines([[] if n in accepted else some for n, some in enumerate(lines)], asked)
        # A text that does not match is judged again, by the language that most of it is in.
        doubtful = [n for n in sorted(elsewhere) if judged[n].language]
        again = self._gate.judge([texts[n] for n in doubtful], [judged[n].language for n in doubtful])
        switching = {n for n, one in zip(doubtful, again, strict=True) if not one.matches}
        found: list[PartLanguages | None] = []
        for n, (text, code) in enumerate(zip(texts, asked, strict=True)):
            if code and not self.knows(code):
                found.append(None)
                continue
            by_lines = bool(text.strip() and code) and n not in failing
            found.append(
                PartLanguages(
                    consistent=consistent[n],
                    lines=by_lines,
                    words=words_pass(text, code) if by_lines else None,
                    switches=n in switching,
                )
            )
        return found

    def _foreign_lines(self, lines: Sequence[Sequence[str]], asked: Sequence[str]) -> set[int]:
        """The numbers of the texts with a line that is taken for another language and that the gate does not accept."""
        flat = [(n, line) for n, some in enumerate(lines) for line in some]
        best = self._gate.detect([line for _, line in flat], [asked[n] for n, _ in flat])
        doubtful = [(n, line) for (n, line), code in zip(flat, best, strict=True) if code not in ("", asked[n])]
        judged = self._gate.judge([line for _, line in doubtful], [asked[n] for n, _ in doubtful])
        return {n for (n, _), one in zip(doubtful, judged, strict=True) if not one.matches}


class Langdetect:
    """langdetect 1.0.9, with 55 languages: consistency as PolyMath defines it, lines and words as AdaMame does.

    PolyMath and M-Thinker take Chinese for consistent only where langdetect finds zh-cn. Text in traditional
    characters, which it labels zh-tw, is not; by lines and words it is Chinese as any other.

    Not for several threads at a time: the seed belongs to the package.
    """

    name: DetectorName = "langdetect"

    def __init__(self, seed: int | None = _SEED) -> None:
        try:
            import langdetect
        except ImportError:
            _refuse("langdetect")
        self._package: Any = langdetect
        self._package.DetectorFactory.seed = seed
        self._package.detector_factory.init_factory()
        self._known = frozenset(map(code_of, self._package.detector_factory._factory.get_lang_list()))

    def knows(self, language: str) -> bool:
        return language in self._known

    def languages(self, text: str) -> list[str]:
        """The languages that langdetect finds, as PolyMath and M-Thinker read its labels, the most probable one first.

        Codes, but for Chinese in traditional characters, which stays ``zh-tw`` and so is not ``zh``.

        Raises:
            ValueError: it finds none, as in a text without letters.
        """
        return [label if label == _TRADITIONAL else code_of(label) for label in self._labels(text)]

    def _labels(self, text: str) -> list[str]:
        """
        Raises:
            ValueError: it finds none.
        """
        try:
            return [str(one.lang) for one in self._package.detect_langs(text)]
        except self._package.LangDetectException as error:
            raise ValueError(str(error)) from None

    def _best(self, text: str) -> str:
        return next(iter(self._all(text)), "")

    def _all(self, text: str) -> list[str]:
        try:
            return [code_of(label) for label in self._labels(text)]
        except ValueError:
            return []

    def parts(self, texts: Sequence[str], asked: Sequence[str]) -> list[PartLanguages | None]:
        return [self._part(text, code) for text, code in zip(texts, asked, strict=True)]

    def _part(self, text: str, code: str) -> PartLanguages | None:
        if code and not self.knows(code):
            return None
        lines = bool(code) and lines_pass_adamame(text, code, self._best)
        return PartLanguages(
            consistent=bool(code) and consistent_polymath(text, code, self.languages),
            lines=lines,
            words=words_pass_adamame(text, code) if lines else None,
            switches=part_adamame(text, code, self._best, self._all).switches,
        )


class Lingua:
    """lingua 2: a thought or answer as AdaMame diagnoses it.

    Args:
        languages: codes, among which lingua chooses. Those that lingua does not know are left out.
    """

    name: DetectorName = "lingua"

    def __init__(self, languages: Collection[str]) -> None:
        try:
            import lingua
        except ImportError:
            _refuse("lingua-language-detector")
        of_code: dict[str, Any] = {}
        for language in lingua.Language.all():
            with suppress(ValueError):  # lid.176 does not know it, so nobody can ask for it
                of_code.setdefault(code_of(language.iso_code_639_1.name.lower()), language)
        chosen = {code: of_code[code] for code in dict.fromkeys(languages) if code in of_code}
        if len(chosen) < 2:
            raise FatalError(
                f"lingua needs two languages to choose among, and of {sorted(languages)} knows {[*chosen]}"
            )
        self._known = frozenset(chosen)
        self._code_of = {language: code for code, language in chosen.items()}
        self._detector: Any = lingua.LanguageDetectorBuilder.from_languages(*chosen.values()).build()

    def knows(self, language: str) -> bool:
        return language in self._known

    def best(self, text: str) -> str:
        """The code of the most probable language; ``""`` where lingua cannot tell."""
        return self._code_of.get(self._detector.detect_language_of(text), "")

    def languages(self, text: str) -> list[str]:
        """The codes of the passages in which lingua divides a text by language."""
        return [self._code_of[one.language] for one in self._detector.detect_multiple_languages_of(text)]

    def parts(self, texts: Sequence[str], asked: Sequence[str]) -> list[PartLanguages | None]:
        return [
            part_adamame(text, code, self.best, self.languages) if not code or self.knows(code) else None
            for text, code in zip(texts, asked, strict=True)
        ]


def _is_long(line: str) -> bool:
    count = 0
    for character in judged_words(line):
        if character.isalpha():
            count += 1 if character.lower() != character.upper() else 2
            if count >= _LINE_LETTERS:
                return True
    return False


def _refuse(package: str) -> NoReturn:
    raise FatalError(
        f'the detector needs the package {package}: pip install "lrpo[detectors]", or choose "gate"'
    ) from None
