r"""The benchmarks: how each is read, asked, and scored, as published and as it should be.

| benchmark | as published | as it should be |
|---|---|---|
| mmath | MMATH: last box or number of the whole response | the final answer alone, golds and numbers read rightly |
| polymath | PolyMath: first box, numbers up to 0.01% and a factor of 100 | last box |
| mgsm, mgsm-rev2 | AdaMame: first box of answer or thought; lm-eval: last digits | last box, or last number |
| msvamp | MathOctopus: last digits without sign; AdaMame | last box, or last number, as its language writes it |
| global-mmlu-lite, include-lite | lm-eval: log-likelihood of the letter | the letter that the answer settles on |
| mclm | MCLM: math-verify, or one text within the other | as mmath |

"As it should be" reads the final answer and no thought: a thought that never ended is no answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.answer import Answer
from common.numbers import last_number, number_of
from common.process import FatalError
from reward.terms.choice import choice
from reward.terms.math import MathVerifier, last_box
from reward.terms.results import ends_in_box, number_in_box
from scripts.study.benchmarks import published, rows
from scripts.study.benchmarks.rows import LETTERS, BenchmarkRow
from scripts.study.statistics import Floats, Interval, percentile_interval

_CHUNK = 64  # answers that are given to the verifier at a time, which has 40 s for them
_ROUNDS = 5  # in which those of them that the verifier did not get to are given to it
_RESAMPLES = 1000
OURS = "ours"
LIKELIHOOD = "lm-eval (log-likelihood)"


@dataclass(frozen=True)
class Response:
    """A response to a question of a benchmark: as generated, and cut into its parts."""

    row: BenchmarkRow
    raw: str
    answer: Answer


Check = Callable[[str, list[str], str], bool]


class Verifier:
    """Compares formulas in the limited workers of ``reward.terms.math.MathVerifier``, started when first needed.

    Nothing counts as wrong because the workers did not get to it: it is verified again.
    """

    def __init__(self) -> None:
        self._workers: MathVerifier | None = None

    def __call__(self, asked: Sequence[tuple[str, list[str], str]], check: Check | None = None) -> list[float]:
        """1 or 0 for each text, its golds and its language. Blocks; ``check`` is a published rule in place of ours.

        Raises:
            FatalError: the workers did not get to some text, again and again.
        """
        found = [0.0] * len(asked)
        for start in range(0, len(asked), _CHUNK):
            waiting = list(range(start, min(start + _CHUNK, len(asked))))
            for _ in range(_ROUNDS):
                if self._workers is None:
                    self._workers = MathVerifier()
                values = self._workers.verify([asked[n] for n in waiting], check)
                found_now = {n: value for n, value in zip(waiting, values, strict=True) if value is not None}
                for n, value in found_now.items():
                    found[n] = value
                waiting = [n for n in waiting if n not in found_now]
                if not waiting:
                    break
            else:
                raise FatalError(
                    f"{len(waiting)} answers could not be verified in {_ROUNDS} rounds, as the first, which ends with "
                    f"{asked[waiting[0]][0][-80:]!r}. Is the machine overloaded? The responses are kept: run the same "
                    "command again"
                )
        return found

    def close(self) -> None:
        """Ends the workers."""
        if self._workers is not None:
            self._workers.close()


Score = Callable[[Sequence[Response], Verifier], list[float]]  # [n] each 0 or 1
Weights = Mapping[tuple[str, str], float]  # language, group -> weight of the mean of its questions


def _math(responses: Sequence[Response], verifier: Verifier) -> list[float]:
    return verifier([(one.answer.final, [one.row.answer], one.row.language) for one in responses])


def _number(responses: Sequence[Response], verifier: Verifier) -> list[float]:
    """Whether a box holds the number, or, where there is no box, whether the text ends with it."""
    found, formulas = [0.0] * len(responses), []
    for n, one in enumerate(responses):
        gold, box = number_of(one.row.answer, "en"), last_box(one.answer.final)
        if gold is None:
            raise FatalError(f"{one.row.place}: the answer {one.row.answer!r} is no number")
        if box is None:
            said = not ends_in_box(one.answer.final) and last_number(one.answer.final, one.row.language) == gold
            found[n] = float(said)
        elif numbers := {number_in_box(box, language) for language in (one.row.language, "en")} - {None}:
            found[n] = float(gold in numbers)
        else:  # a formula, as \frac{36}{2}
            formulas.append(n)
    asked = [(responses[n].answer.final, [responses[n].row.answer], responses[n].row.language) for n in formulas]
    for n, value in zip(formulas, verifier(asked), strict=True):
        found[n] = value
    return found


def _letter(responses: Sequence[Response], _: Verifier) -> list[float]:
    return [choice(one.answer.final, [one.row.answer], LETTERS[: len(one.row.choices)]) for one in responses]


def _mmath(responses: Sequence[Response], verifier: Verifier) -> list[float]:
    asked = [(f"${published.answer_mmath(one.raw)}$", [one.row.answer], "") for one in responses]
    return verifier(asked, published.equal_formulas)


def _polymath(responses: Sequence[Response], verifier: Verifier) -> list[float]:
    given = [published.answer_polymath(one.raw) for one in responses]
    golds = [one.row.answer for one in responses]
    close = [
        False if text is None else published.numbers_close_polymath(text, gold)
        for text, gold in zip(given, golds, strict=True)
    ]
    formulas = [n for n, one in enumerate(close) if one is None]
    asked = [(f"${given[n]}$", [golds[n]], "") for n in formulas]
    equal = dict(zip(formulas, verifier(asked, published.equal_formulas), strict=True))
    return [equal[n] if one is None else float(one) for n, one in enumerate(close)]


def _adamame(responses: Sequence[Response], verifier: Verifier) -> list[float]:
    boxes = [(n, box) for n, one in enumerate(responses) for box in published.boxes_adamame(one.raw) if box]
    asked = [(box, [responses[n].row.answer], "") for n, box in boxes]
    found = [0.0] * len(responses)
    for (n, _), value in zip(boxes, verifier(asked, published.equal_formulas), strict=True):
        found[n] = max(found[n], value)
    return found


def _mclm(responses: Sequence[Response], verifier: Verifier) -> list[float]:
    return verifier([(one.raw, [one.row.answer], "") for one in responses], published.equal_mclm)


def _mathoctopus(responses: Sequence[Response], _: Verifier) -> list[float]:
    return [float(published.right_mathoctopus(one.raw, one.row.answer)) for one in responses]


def _harness(responses: Sequence[Response], _: Verifier) -> list[float]:
    return [float(published.right_harness_mgsm(one.raw, one.row.answer)) for one in responses]


# -- means over questions, languages and groups --------------------------------------------------------------------


def over_questions(counts: Mapping[tuple[str, str], int]) -> Weights:
    """Every language weighs the same, and within one every question."""
    of_language: defaultdict[str, int] = defaultdict(int)
    for (language, _), count in counts.items():
        of_language[language] += count
    return {key: count / of_language[key[0]] / len(of_language) for key, count in counts.items()}


def over_sources(counts: Mapping[tuple[str, str], int]) -> Weights:
    """M-Thinker's mean of MMATH: every language weighs the same, and within one every source, however small it is."""
    groups: defaultdict[str, int] = defaultdict(int)
    for language, _ in counts:
        groups[language] += 1
    return {key: 1 / groups[key[0]] / len(groups) for key in counts}


def by_difficulty(counts: Mapping[tuple[str, str], int]) -> Weights:
    """PolyMath's DW-Acc: (low + 2 medium + 4 high + 8 top) / 15 within a language.

    Levels that are not there, as with a limit of questions, leave the others their proportions.
    """
    level = {"low": 1, "medium": 2, "high": 4, "top": 8}
    totals: defaultdict[str, int] = defaultdict(int)
    for language, group in counts:
        totals[language] += level[group]
    return {key: level[key[1]] / totals[key[0]] / len(totals) for key in counts}


@dataclass(frozen=True)
class Stratum:
    """The questions of one language and group.

    Attributes:
        values: [questions] the mean of a question's responses.
        ids: [questions] what numbers a question in its group, in all languages alike.
    """

    values: Floats
    ids: Sequence[str]


def weighted_mean(
    strata: Mapping[tuple[str, str], Stratum], weights: Weights, generator: np.random.Generator
) -> Interval:
    """A weighted mean of the means of strata, with the 95% interval of a bootstrap over questions.

    A question and its translations are one question: it is drawn once for all languages that ask it. Languages that
    share none of a group's questions are drawn each by itself, and so are groups.

    Args:
        strata: by language and group.
    """
    estimates: NDArray[np.float64] = np.zeros(1 + _RESAMPLES)
    for keys in _with_shared_questions(strata):
        number = {id: n for n, id in enumerate(dict.fromkeys(id for key in keys for id in strata[key].ids))}
        drawn = generator.multinomial(len(number), np.full(len(number), 1 / len(number)), _RESAMPLES)
        for key in keys:
            values, columns = strata[key].values, [number[id] for id in strata[key].ids]
            times = drawn[:, columns]  # [resamples, questions] how often each was drawn
            count = times.sum(1)
            # Of a language with few of the questions none may be drawn.
            resampled = np.where(count, times @ values / np.maximum(count, 1), values.mean())
            estimates += weights[key] * np.concatenate([[values.mean()], resampled])
    return percentile_interval(estimates)


def _with_shared_questions(strata: Mapping[tuple[str, str], Stratum]) -> list[list[tuple[str, str]]]:
    """The strata of each group, those together that have a question in common, or are linked by others that have."""
    found: list[tuple[str, set[str], list[tuple[str, str]]]] = []  # group, ids, strata
    for key, stratum in strata.items():
        ids, keys = {*stratum.ids}, [key]
        apart = []
        for group, others, linked in found:
            if group == key[1] and not ids.isdisjoint(others):
                ids, keys = ids | others, [*linked, *keys]
            else:
                apart.append((group, others, linked))
        found = [*apart, (key[1], ids, keys)]
    return [keys for _, _, keys in found]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        read: its rows of a source, in the languages that are named, or in all.
        ours: scores responses as it should be.
        published: source -> scores responses as published.
        means: name -> the weights of a mean; the first one is the headline.
        samples: responses to a question, at this temperature and top_p, of at most so many tokens, unless told.
    """

    read: Callable[[str, Collection[str]], list[BenchmarkRow]]
    ours: Score
    published: Mapping[str, Score]
    means: Mapping[str, Callable[[Mapping[tuple[str, str], int]], Weights]]
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 4096


_QUESTIONS = {"questions": over_questions}
_WORDS = {"AdaMame": _adamame}
BENCHMARKS: Mapping[str, Benchmark] = {
    "mmath": Benchmark(
        rows.read_mmath, _math, {"MMATH": _mmath}, {"sources": over_sources, **_QUESTIONS}, 4, 0.6, 0.95, 32768
    ),
    "polymath": Benchmark(
        rows.read_polymath, _math, {"PolyMath": _polymath}, {"DW-Acc": by_difficulty, **_QUESTIONS}, 1, 0.0, 1.0, 32768
    ),
    "mgsm": Benchmark(rows.read_mgsm, _number, {**_WORDS, "lm-eval (flexible)": _harness}, _QUESTIONS),
    "mgsm-rev2": Benchmark(rows.read_mgsm, _number, {**_WORDS, "lm-eval (flexible)": _harness}, _QUESTIONS),
    "msvamp": Benchmark(rows.read_msvamp, _number, {"MathOctopus": _mathoctopus, **_WORDS}, _QUESTIONS),
    "global-mmlu-lite": Benchmark(rows.read_global_mmlu, _letter, {}, _QUESTIONS),
    "include-lite": Benchmark(rows.read_include, _letter, {}, _QUESTIONS),
    "mclm": Benchmark(rows.read_mclm, _math, {"MCLM": _mclm}, _QUESTIONS, 1, 0.0, 1.0, 32768),
}
