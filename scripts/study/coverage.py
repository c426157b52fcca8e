"""How often the 95% intervals of ``lrpo compare`` and ``lrpo bench`` contain the truth, by simulation, beside others.

``python -m scripts.study.coverage [--trials 500] [--seed 0] [--json]`` draws scores of questions under training
seeds, with effects of the seed, of the question and of both together, whose mean is 0, and computes both intervals of
the mean. The bootstrap draws seeds and questions again, with replacement.

Then it draws right and wrong answers to questions that are asked in several languages, the same in all, and computes
the interval of the mean over languages as ``lrpo bench`` does, and as if every language had questions of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
import typer

from scripts.ops.command_line import command
from scripts.study.benchmarks.scoring import Stratum, weighted_mean
from scripts.study.statistics import Floats, Interval, crossed_interval, percentile_interval

SEEDS = (2, 3, 5, 10)
# Standard deviations of the effects of the seed and of the question. That of both together, with noise, is 0.4.
EFFECTS = ((0.0, 0.0), (0.0, 0.3), (0.02, 0.3), (0.1, 0.3), (0.3, 0.1), (0.1, 0.0))
_NOISE = 0.4
_QUESTIONS = 100
_RESAMPLES = 200
LANGUAGES = (1, 3, 10)
# Standard deviations of the difficulty of a question, which all languages share; an answer's own luck has 1.
DIFFICULTIES = (0.0, 0.5, 1.0, 2.0)


class Coverage(NamedTuple):
    """Share of the intervals that contain the truth, and their mean width."""

    share: float
    width: float


def bootstrap_interval(values: Floats, random: np.random.Generator) -> Interval:
    """The mean of values [seeds, questions], with the interval of a bootstrap over both."""
    rows, columns = values.shape
    estimates = [float(values.mean())]
    for _ in range(_RESAMPLES):
        part = values[np.ix_(random.integers(0, rows, rows), random.integers(0, columns, columns))]
        estimates.append(float(part.mean()))
    return percentile_interval(np.array(estimates))


def coverage(seeds: int, effects: tuple[float, float], trials: int, random: np.random.Generator) -> dict[str, Coverage]:
    """The coverage of both kinds of interval.

    Args:
        effects: standard deviations of the effects of the seed and of the question.
        trials: how many data sets are drawn.
    """
    found: dict[str, list[Interval]] = {"ours": [], "bootstrap": []}
    of_seed, of_question = effects
    for _ in range(trials):
        values = random.normal(0, _NOISE, (seeds, _QUESTIONS))
        values += random.normal(0, of_seed, (seeds, 1)) + random.normal(0, of_question, (1, _QUESTIONS))
        found["ours"].append(crossed_interval(values))
        found["bootstrap"].append(bootstrap_interval(values, random))
    return {name: _coverage(some, truth=0.0) for name, some in found.items()}


def bench_coverage(
    languages: int, difficulty: float, trials: int, random: np.random.Generator, questions: int = _QUESTIONS
) -> dict[str, Coverage]:
    """The coverage of the interval of a benchmark's mean over languages, which is 1/2.

    Args:
        difficulty: standard deviation of what makes a question hard in all languages.
        trials: how many data sets are drawn.
        questions: in each language.
    """
    keys = [(f"language {number}", "") for number in range(languages)]
    weights = dict.fromkeys(keys, 1 / languages)
    found: dict[str, list[Interval]] = {"together": [], "apart": []}
    for _ in range(trials):
        luck = random.normal(0, 1, (languages, questions)) + random.normal(0, difficulty, questions)
        right = (luck > 0).astype(np.float64)
        for how, some in found.items():
            strata = {
                key: Stratum(values, [f"{n} {key if how == 'apart' else ''}" for n in range(questions)])
                for key, values in zip(keys, right, strict=True)
            }
            some.append(weighted_mean(strata, weights, random))
    return {how: _coverage(some, truth=0.5) for how, some in found.items()}


def _coverage(intervals: Sequence[Interval], truth: float) -> Coverage:
    return Coverage(
        float(np.mean([low <= truth <= high for _, low, high in intervals])),
        float(np.mean([high - low for _, low, high in intervals])),
    )


@command()
def main(
    *,
    trials: Annotated[int, typer.Option(min=1, help="Data sets for each number of seeds and size of effects.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the data sets.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The last line is JSON.")] = False,
) -> None:
    random, rows = np.random.default_rng(seed), []
    print("seeds  effect of seed, question   ours: share, width   bootstrap: share, width")
    for seeds in SEEDS:
        for effects in EFFECTS:
            one = coverage(seeds, effects, trials, random)
            texts = [f"{found.share:.3f}  {found.width:.3f}" for found in one.values()]
            print(
                f"{seeds:>5}  {effects[0]:.2f}, {effects[1]:.2f}                 {'         '.join(texts)}", flush=True
            )
            rows.append({"seeds": seeds, "effects": effects, **{name: found._asdict() for name, found in one.items()}})
    benchmarks = []
    print("\nlanguages  difficulty of a question   together: share, width   each language apart: share, width")
    for languages in LANGUAGES:
        for difficulty in DIFFICULTIES:
            both = bench_coverage(languages, difficulty, trials, random)
            texts = [f"{one.share:.3f}  {one.width:.3f}" for one in both.values()]
            print(f"{languages:>9}  {difficulty:.2f}                       {'           '.join(texts)}", flush=True)
            benchmarks.append(
                {"languages": languages, "difficulty": difficulty} | {how: one._asdict() for how, one in both.items()}
            )
    if as_json:
        print(json.dumps({"name": "coverage", "rows": rows, "benchmarks": benchmarks}))


if __name__ == "__main__":
    main()
