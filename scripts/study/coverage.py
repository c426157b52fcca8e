"""How often the 95% intervals of ``lrpo compare`` contain the truth, by simulation, beside those of a bootstrap.

``python -m scripts.study.coverage [--trials 500] [--seed 0] [--json]`` draws scores of questions under training
seeds, with effects of the seed, of the question and of both together, whose mean is 0, and computes both intervals of
the mean. The bootstrap draws seeds and questions again, with replacement.
"""

from __future__ import annotations

import json
from typing import Annotated, NamedTuple

import numpy as np
import typer

from scripts.ops.command_line import command
from scripts.study.statistics import Floats, Interval, crossed_interval, percentile_interval

SEEDS = (2, 3, 5, 10)
# Standard deviations of the effects of the seed and of the question. That of both together, with noise, is 0.4.
EFFECTS = ((0.0, 0.0), (0.0, 0.3), (0.02, 0.3), (0.1, 0.3), (0.3, 0.1), (0.1, 0.0))
_NOISE = 0.4
_QUESTIONS = 100
_RESAMPLES = 200


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
    return {
        name: Coverage(
            float(np.mean([low <= 0 <= high for _, low, high in some])),
            float(np.mean([high - low for _, low, high in some])),
        )
        for name, some in found.items()
    }


@command()
def main(
    *,
    trials: Annotated[int, typer.Option(help="Data sets for each number of seeds and size of effects.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the data sets.")] = 0,
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
    if as_json:
        print(json.dumps({"name": "coverage", "rows": rows}))


if __name__ == "__main__":
    main()
