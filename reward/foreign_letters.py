"""How many letters of a text are in another language than the one asked for: an estimate for texts that mix languages.

Nothing is decided here: ``reward/gate.py`` says how much of a text may be foreign, and what follows. The estimate of a
text depends on nothing but the text and the language asked for.

Letters of a script that the language is not written in are foreign. The others are read in passages of about ten and
of about thirty letters. Where few or most of them are foreign by a quick count, that is the estimate. Elsewhere the
text is taken for a mixture of languages, whose shares are those that make the passages most probable.

Names and single words say little of their language, and lid.176 takes most of them for a language of which it has seen
much. So a text of a few letters is in the language asked for unless another one is far more likely.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.writing import KANA, WRITTEN_WITHOUT_SPACES, scripts_of_language
from reward.lid import LanguageModel, Units, sum_rows

# Language asked for -> the columns of the model's languages that count as it, its own first.
Families: TypeAlias = Mapping[str, list[int]]


class _Scale(NamedTuple):
    """How long passages are, and how much of what they show at that length may be mistakes; all in letters."""

    passage: int  # about how long a passage is
    doubt: float  # how many letters of each foreign language may be mistakes
    doubt_share: float  # the same as a share of the text, where that is less


# Short passages show every other word in another language, and long ones a sentence of another language for certain.
# The values were found on mixtures and honest paragraphs of the Universal Declaration of Human Rights in 21 languages.
_SHORT, _LONG = _Scale(10, 14.0, 0.12), _Scale(30, 10.0, 0.10)
_SURELY = 0.75  # where the quick count has this share of a text foreign, that is the estimate
# Below these shares, by a quick count of short and of long passages, that is the estimate, too.
_QUICK_SHORT, _QUICK_LONG = 0.3, 0.05
_ROUNDS = 20  # of expectation maximisation
_CANDIDATES = 12  # most foreign languages that a text may be a mixture with
_EXPECTED = 8.0  # letters of the language asked for that are added to those of a text, as what is expected of it
# Training examples: lid.176 hardly trusts languages of which it has seen fewer.
_RAREST, _RARE, _COMMON = 1e3, 1e4, 1e5
# Where more than this share of a text is foreign by its long passages, these are no mistakes, even if each of them
# seems to be in a language of its own.
_TOGETHER = 0.25
_CLAUSE, _WITHOUT_KANA = 8, 0.02  # letters of a clause of Japanese, and the share of such clauses that have no kana
_UNTOLD = 3.5  # letters: the language of fewer cannot be told
_LEAST = 1e-6  # least probability of the language asked for in a passage
# In a sentence or two names are much of the text, so that shares cannot be estimated. A text of fewer letters than
# _SENTENCE is taken to be in the language that the model finds in the whole of it. The exception is a text whose
# beginning or end, of _CLEAR_END letters or more, is in another language with the probability _CLEARLY.
_SENTENCE, _CLEAR_END, _CLEARLY = 80, 20, 0.7
# A text of fewer letters than _FEW is in the language asked for unless another one is e^_WORD times as likely, or for
# several words e^_WORDS times: a word is often a name, while the words of a sentence show their language. The values
# were chosen by tests/reward/test_short_texts.py, which says how often that is right, by language.
_FEW, _WORD, _WORDS = 20, 6.0, 2.0
# White space, and punctuation but the apostrophe.
_BETWEEN_WORDS = re.compile(r"[\s!-&(-/:-@\[-`{-~\u2010-\u2015\u2026]+")


class ForeignLetters:
    """Estimates the foreign letters of texts, many at a time. It keeps nothing between two calls.

    Args:
        model: gives the probabilities of languages.
        share: of letters that may be foreign, in [0, 1). Texts of which clearly less or more is foreign are estimated
            roughly.
    """

    def __init__(self, model: LanguageModel, share: float) -> None:
        self._model, self._share = model, share
        self._scripts = np.array([scripts_of_language(code) for code in model.languages])

    def count(
        self,
        units: Units,
        texts: Sequence[str],
        asked: Sequence[str],
        families: Families,
        letters: NDArray[np.int64],
        allowed: NDArray[np.bool_],
        whole: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """How many letters of each text are foreign; 0 where no language was asked for.

        Args:
            units: of the texts, as ``LanguageModel.read`` gives them.
            texts: [n] the texts that were read.
            asked: [n] the language asked for; ``""`` is none.
            families: of every language in ``asked``.
            letters: [n] letters of each text.
            allowed: [n, L] the model's languages that a text may be in.
            whole: [n] the model's column of the language that each text as a whole is in, -1 where that is uncertain.

        Returns:
            [n]
        """
        found = self._estimated(units, asked, families, letters, allowed)
        for row in np.flatnonzero((whole >= 0) & (letters < _SENTENCE) & (found > self._share * letters)).tolist():
            family, mine = families[asked[row]], units.owner == row
            elsewhere = (units.scripts[mine] & ~scripts_of_language(asked[row])) != 0
            if whole[row] in family:
                is_own = not self._ends_in_another(units, row, family)
            else:
                is_own = letters[row] < _FEW and self._may_be_own(units, row, texts[row], family, allowed[row])
            if is_own:
                found[row] = units.letters[mine][elsewhere].sum()
        return found

    def _may_be_own(self, units: Units, row: int, text: str, family: list[int], allowed: NDArray[np.bool_]) -> bool:
        """Whether no other language is so much more likely that a short text has to be in it.

        Compared are likelihoods, as far as they can be had: the model's probabilities, divided by the square root of
        how often it has seen a language. Others are the languages in the scripts of the text that the model knows well.
        """
        mine = units.owner == row
        scripts = np.bitwise_or.reduce(units.scripts[mine])
        if scripts & WRITTEN_WITHOUT_SPACES:  # a name cannot be told from a sentence
            return False
        found = self._model.log_probabilities(units.sums[mine].sum(0)[None], units.counts[mine].sum()[None])[0]
        found -= np.log(np.maximum(self._model.frequencies, _RAREST)) / 2
        others = allowed & (self._model.frequencies >= _COMMON) & ((scripts & ~self._scripts) == 0)
        others[family] = False
        ahead = found[others].max(initial=-np.inf) - found[family].max(initial=-np.inf)
        words = sum(any(map(str.isalpha, word)) for word in _BETWEEN_WORDS.split(text))
        return bool(ahead <= (_WORD if words <= 1 else _WORDS))

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

    def _estimated(
        self,
        units: Units,
        asked: Sequence[str],
        families: Families,
        letters: NDArray[np.int64],
        allowed: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """As :meth:`count`, for texts of any length alike."""
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
            self._mixed(passages, chance, _SHORT, unclear, asked, families, allowed),
            self._mixed(longer, chance_of_longer, _LONG, unclear, asked, families, allowed),
        )
        # Foreign passages that each seem to be in a language of their own vanish from the mixture.
        known = {
            code: bool((self._model.frequencies[columns[:1]] >= _COMMON).all()) for code, columns in families.items()
        }
        together = (letters >= _LONG.passage) & (in_longer > _TOGETHER * letters) & [known[code] for code in asked]
        estimated = np.where(together, np.maximum(estimated, in_longer - foreign), estimated)
        return np.where(unclear, foreign + estimated, settled)

    def _expect(self, passages: Passages, chance: NDArray[np.float64], count: int) -> NDArray[np.float64]:
        """The quick count: the expected foreign letters of each text if its foreign share were the largest allowed one.

        Where that gives less than this share, the most probable share is less, too, because the likelihood of a mixture
        is concave. All other languages count as one here, so the count errs on the high side.
        """
        other = self._share * (1 - chance)
        expected = passages.letters * other / (other + (1 - self._share) * chance + np.finfo(np.float64).tiny)
        return np.bincount(passages.owner, expected, count).astype(np.float64)

    def _chance(self, passages: Passages, asked: Sequence[str], families: Families) -> NDArray[np.float64]:
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

    def _mixed(
        self,
        passages: Passages,
        chance: NDArray[np.float64],
        scale: _Scale,
        unclear: NDArray[np.bool_],
        asked: Sequence[str],
        families: Families,
        allowed: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """The expected foreign letters of the unclear texts, by :func:`_estimate_mixture`; 0 for the others."""
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
        result[texts] = _estimate_mixture(chance[rows] * trust[owner], others, weights, owner, scale)
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


def _estimate_mixture(
    in_language: NDArray[np.float64],
    others: NDArray[np.floating],
    weights: NDArray[np.float64],
    owner: NDArray[np.int64],
    scale: _Scale,
) -> NDArray[np.float64]:
    """The expected number of foreign letters of each text, as a mixture of languages.

    The shares of a text's languages are those that make its passages most probable, by expectation maximisation on the
    model's probabilities (Saerens, Latinne and Decaestecker 2002, "Adjusting the outputs of a classifier to new a
    priori probabilities"). Single passages are often mistaken, each for another language. Every foreign language
    therefore loses a few letters in each round, so that small shares vanish (Figueiredo and Jain 2002, "Unsupervised
    learning of finite mixture models"), and the language asked for is given a few.

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
