"""Diagnostics as the field reports them: language consistency, accuracy, both at once, LCPR, code switching, pass@k.

Pure functions; a detector of languages is always an argument, because figures compare within one detector only
(``reward/detectors.py`` has three). Where the published code computes something else than one would wish, a function
with the publication in its name computes it as published, and one without computes it as it should be.

    LC       share of answers whose thought and answer are both in the language asked for
    Acc      share of right answers
    LC&Acc   share of answers that are both, which is not the product
    LPR      line pass rate: share of texts without a line in another language
    WPR      word pass rate: share, among the texts that pass by lines, of those without a word of another script
    LCPR     language confusion pass rate: harmonic mean of LPR and WPR
    switch   share of texts that hold two languages or more

Sources: M-Thinker (arXiv 2510.07300, ``whether_cons``) and PolyMath (arXiv 2504.18428, ``run_eval.py``) for LC, Acc
and LC&Acc; MMATH (arXiv 2505.19126, ``calculate_lcr.py``) for its LCR; Marchisio et al. 2024, "Understanding and
mitigating language confusion in LLMs" (arXiv 2406.20052), and AdaMame (arXiv 2606.15080, ``metrics.py``) for LPR, WPR,
LCPR and the code-switching rate; Chen et al. 2021 (arXiv 2107.03374) for pass@k.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.config.reward import ACCURACY_PARTS
from common.prose import judged_words
from common.wire.groups import PartLanguages, Score
from common.writing import scripts_of, scripts_of_language

Detect = Callable[[str], str]  # the code of the language that a text is most probably in; "" for none
DetectAll = Callable[[str], Sequence[str]]  # the codes of all languages that a detector finds in a text

RIGHT = 0.5  # a term or part of at least this counts as right, where nobody has said another value

_CLOSE = "</think>"
_FEW = 15  # characters: a shorter text passes every check of M-Thinker and PolyMath
_LATIN = frozenset(["de", "en", "es", "fr", "id", "it", "pt", "sw", "tr", "vi"])  # AdaMame's lists
_NOT_LATIN = frozenset(["ar", "bn", "hi", "ja", "ko", "ru", "te", "th", "zh"])
_WORD = re.compile(r"[^\W\d_]+")
_LATIN_WORD = re.compile(r"[a-zA-Z]{2,}")

_DISPLAYED = re.compile(r"\$\$.*?\$\$|\\\(.*?\\\)|\\\[.*?\\\]", re.DOTALL)
_INLINE = re.compile(r"\$[^$]*\$")
_MATHEMATICS = (  # in AdaMame's order; each becomes a space
    re.compile(r"\$\$.*?\$\$", re.DOTALL),
    re.compile(r"\\\[.*?\\\]", re.DOTALL),
    re.compile(r"\$[^$]+?\$"),
    re.compile(r"\\\(.*?\\\)", re.DOTALL),
    re.compile(r"\\begin\{[^}]+\}.*?\\end\{[^}]+\}", re.DOTALL),
    re.compile(r"\\[a-zA-Z]+\{[^}]*\}"),
    re.compile(r"(?<!\w)[\d+\-*/=^.,()\[\]{}%_]+(?!\w)"),
)


@dataclass(frozen=True)
class Sample:
    """What is known of one answer.

    Attributes:
        thought: languages of the thought; None where the answer has none.
        answer: languages of the final answer; None where no detector told them.
        right: None where nobody could tell, or where nothing says so, see :func:`is_right`.
        tokens: of the whole response.
    """

    thought: PartLanguages | None
    answer: PartLanguages | None
    right: bool | None
    tokens: int

    @property
    def consistent(self) -> bool:
        """Whether thought and answer are both in the language asked for, as far as there are any."""
        return all(part.consistent for part in (self.thought, self.answer) if part is not None)


def summarise(samples: Sequence[Sample]) -> dict[str, float]:
    """The figures of some answers; a figure that no answer has is left out.

    Returns:
        ``lc``, ``lc_thought``, ``lc_answer``, ``accuracy``, ``lc_accuracy`` (of the answers of which is known whether
        they are right), of each part ``lpr_PART``, ``wpr_PART``, ``lcpr_PART`` and ``switching_PART``, all in [0, 1];
        and ``tokens``, the mean length. Thoughts count where there are any.
    """
    if not samples:
        return {}
    figures = {"tokens": float(np.mean([one.tokens for one in samples]))}
    judged = [one for one in samples if one.right is not None]
    if judged:
        figures["accuracy"] = _share(bool(one.right) for one in judged)
    detected = [one for one in samples if one.answer is not None]
    if detected:
        figures["lc"] = _share(one.consistent for one in detected)
    if both := [one for one in detected if one.right is not None]:
        figures["lc_accuracy"] = _share(bool(one.right) and one.consistent for one in both)
    for name in ("thought", "answer"):
        parts = [part for one in detected if (part := getattr(one, name)) is not None]
        if parts:
            lines, words = pass_rates(parts)
            figures |= {
                f"lc_{name}": _share(part.consistent for part in parts),
                f"lpr_{name}": lines,
                f"wpr_{name}": words,
                f"lcpr_{name}": harmonic_mean(lines, words),
                f"switching_{name}": _share(part.switches for part in parts),
            }
    return figures


def is_right(quality: float, parts: Mapping[str, float], least: float | None = None) -> bool | None:
    """Whether an answer with this quality, and these terms or parts of its reward, counts as right.

    The first of ``ACCURACY_PARTS`` that there is decides: it must be at least ``least``. Where there is none the
    quality decides if somebody has said from what on, and otherwise nothing: the similarity of a wrong answer to the
    reference may have any value.

    Args:
        least: what somebody has said; None: :data:`RIGHT` of a part, and no value of a quality.

    Returns:
        None where nothing tells.
    """
    name = next((name for name in ACCURACY_PARTS if name in parts), None)
    if name is not None:
        return parts[name] >= (RIGHT if least is None else least)
    return None if least is None else quality >= least


def solves(score: Score, *, least: float | None = None, gated: bool) -> bool | None:
    """Whether an answer is right and, where the gate is on, in its language: else it earns nothing, however right.

    The reward itself does not tell: it may be made of more than being right, and go beyond 1.

    Args:
        score: of an answer that could be scored.
        least: see :func:`is_right`.
        gated: ``reward.gated``, as ``RewardConfig.is_gated`` has it.

    Returns:
        None where nothing tells whether it is right.
    """
    right = is_right(score.quality, score.terms, least)
    return right if right is None else right and (score.compliant or not gated)


def pass_rates(parts: Sequence[PartLanguages]) -> tuple[float, float]:
    """LPR and WPR of some texts; WPR is 0 where none passes by lines, as in AdaMame."""
    words = [part.words for part in parts if part.words is not None]
    return _share(part.lines for part in parts), _share(words) if words else 0.0


def harmonic_mean(first: float, second: float) -> float:
    """2ab / (a + b), and 0 where both are 0: LCPR of LPR and WPR."""
    return 2 * first * second / (first + second) if first + second > 0 else 0.0


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k answers is right, of n sampled ones of which c are: 1 - C(n - c, k) / C(n, k).

    It is the unbiased estimator of Chen et al. 2021. As AdaMame and others compute pass@k, with n = k, it is whether
    any answer is right.

    Raises:
        ValueError: k is not in [1, n], or c not in [0, n].
    """
    if not 1 <= k <= n or not 0 <= c <= n:
        raise ValueError(f"pass@{k} needs at least {k} answers, and not more right ones than answers: {c} of {n}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


# -- which languages a text is in ----------------------------------------------------------------------------------


def words_pass(text: str, language: str) -> bool:
    """Whether no word of a text is in a script that the language is not written in.

    Code and formulas are left out, but for the words in formulas. A single letter of another script is a symbol, as x
    or π, unless it is of a script whose words may be so short, as Chinese.
    """
    wanted = scripts_of_language(language)
    if not wanted or not _foreign_letters(set(text), wanted):  # which is quickly told, and true of most texts
        return True
    for word in _WORD.findall(judged_words(text)):
        foreign = _foreign_letters(word, wanted)
        if foreign > 1 or (foreign and not _is_alphabetic(word)):
            return False
    return True


def _foreign_letters(letters: Iterable[str], wanted: int) -> int:
    scripts = scripts_of(np.array([ord(letter) for letter in letters], np.int64))
    return int(((scripts > 0) & ((1 << scripts) & wanted == 0)).sum())


def _is_alphabetic(word: str) -> bool:
    """Whether a word is of a script with case, in which one letter alone is a symbol."""
    return word.lower() != word.upper()


# -- as published --------------------------------------------------------------------------------------------------


def without_formulas_polymath(text: str) -> str:
    r"""The text without ``$$…$$``, ``\(…\)``, ``\[…\]`` and then ``$…$``, as PolyMath and M-Thinker cut it.

    The order matters: a single $ before a formula takes the text up to the next one with it.
    """
    return _INLINE.sub("", _DISPLAYED.sub("", text))


def consistent_polymath(text: str, language: str, detect_all: DetectAll, *, stripped: bool = False) -> bool:
    """Whether a part is in its language by PolyMath's rule, which M-Thinker rewards and reports.

    A part of at most 15 characters outside formulas passes, in whatever language it is; another one passes where the
    detector (langdetect) finds the language and no second one. So an answer that is one formula is in every language.

    Args:
        detect_all: raises ValueError where it finds nothing, which is then not consistent.
        stripped: count the characters without white space at the ends, as M-Thinker's reward does and its evaluation
            does not.
    """
    plain = without_formulas_polymath(text)
    if len(plain.strip() if stripped else plain) <= _FEW:
        return True
    try:
        return list(detect_all(plain)) == [language]
    except ValueError:
        return False


def consistent_mthinker(raw: str, language: str, detect_all: DetectAll) -> bool:
    """LC of M-Thinker: exactly one ``</think>``, and both parts by :func:`consistent_polymath`.

    Args:
        raw: the whole response, with the tags.
    """
    parts = raw.split(_CLOSE)
    return len(parts) == 2 and all(consistent_polymath(part, language, detect_all) for part in parts)


def parts_mmath(raw: str) -> tuple[str, str]:
    """Thought and answer as MMATH's LCR cuts them: at the last ``</think>``; without one both are the whole text."""
    before, found, after = raw.rpartition(_CLOSE)
    return (before.replace(_CLOSE, " ").strip(), after.strip()) if found else (raw.strip(), raw.strip())


def lcr_mmath(samples: Iterable[tuple[str, str, str]]) -> tuple[float, float]:
    """MMATH's thinking and answering LCR: shares over the samples of all languages together.

    Args:
        samples: of each answer the language of the question, and those detected in thought and answer (fastText's
            best of lid.176, of the text with spaces for line ends). An empty detection does not count.

    Returns:
        0 where nothing counts.
    """
    rates = []
    every = list(samples)
    for part in (1, 2):
        counted = [(one[0], one[part]) for one in every if one[part]]
        rates.append(_share(asked == found for asked, found in counted) if counted else 0.0)
    return rates[0], rates[1]


def without_mathematics_adamame(text: str) -> str:
    r"""The text without formulas, environments, commands with braces, bare numbers and signs, as AdaMame cuts it."""
    for pattern in _MATHEMATICS:
        text = pattern.sub(" ", text)
    return text.strip()


def lines_pass_adamame(text: str, language: str, detect: Detect) -> bool:
    """AdaMame's line level: no line, mathematics removed, that the detector takes for another language.

    An empty text passes, and so does a line that the detector cannot tell.

    Args:
        detect: lingua among AdaMame's languages, see ``reward/detectors.py``.
    """
    lines = (without_mathematics_adamame(line) for line in text.split("\n"))
    return all(detect(line) in ("", language) for line in lines if line)


def words_pass_adamame(text: str, language: str) -> bool:
    """AdaMame's word level: in a language without Latin script no two Latin letters in a row; in one with it no other.

    A language that is in neither of its lists passes. A single π fails in Spanish.
    """
    plain = without_mathematics_adamame(text)
    if language in _NOT_LATIN:
        return not _LATIN_WORD.search(plain)
    if language in _LATIN:
        return all(not c.isalpha() or ord(c) <= 0x24F or 0x1E00 <= ord(c) <= 0x1EFF for c in plain)
    return True


def switches_adamame(text: str, detect_all: DetectAll) -> bool:
    """AdaMame's code switching: at least two languages in the text without mathematics; an empty one has none."""
    plain = without_mathematics_adamame(text)
    return bool(plain) and len(set(detect_all(plain))) >= 2


def part_adamame(text: str, language: str, detect: Detect, detect_all: DetectAll) -> PartLanguages:
    """A thought as AdaMame diagnoses it. The trap: an empty thought passes by lines and by words."""
    lines = lines_pass_adamame(text, language, detect)
    return PartLanguages(
        consistent=detect(text) == language,
        lines=lines,
        words=words_pass_adamame(text, language) if lines else None,
        switches=switches_adamame(text, detect_all),
    )


def pass_rates_adamame(by_question: Sequence[Sequence[PartLanguages]]) -> tuple[float, float]:
    """AdaMame's LPR and WPR: means over questions of the rates of their answers.

    A question none of whose answers passes by lines does not count for WPR, so with several answers a question this
    is not the rate over all answers, which :func:`pass_rates` gives.
    """
    rates = [pass_rates(parts) for parts in by_question]
    lines, words = [one[0] for one in rates], [one[1] for one in rates if one[0]]
    return float(np.mean(lines)), float(np.mean(words)) if words else 0.0


def _share(values: Iterable[bool]) -> float:
    return float(np.mean(list(values)))
