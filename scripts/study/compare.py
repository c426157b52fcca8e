"""Trains a set of configurations with several seeds each, scores them, and says which differences are more than chance.

    python -m scripts.study.compare --out runs/study --seeds 0,1,2 \\
        --base "configs/lrpo.toml configs/models/qwen2.5-1.5b.toml" \\
        lrpo= grpo="--router.mode monolingual" uniform="--router.mode uniform" \\
        --evaluate "--care-pro care_pro.jsonl --mgsm mgsm.jsonl --judge MODEL@URL"

An arm is NAME=TOML files and flags, which come after those of ``--base``; the others are compared with the first one.
A run that has finished (``OUT/NAME-SEED/summary.json``) is not trained again, and its scores are not made again.
``--runs`` compares finished runs, ``--scores`` files of scripts.study.evaluate, given as NAME=FILE,FILE with the seeds
in the same order for every arm; then nothing is trained.

Scored questions are paired by question and seed, and a run's own evaluations by seed. The 95% intervals hold for other
seeds and other questions, with as few as two seeds (``scripts.study.statistics``). p is that of the paired t test over
seeds, adjusted for the number of arms compared by Holm's method; g is the effect in standard deviations over seeds.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from common.config import load
from common.process import FatalError
from scripts.ops.command_line import command, files_first
from scripts.ops.local_run import run_all
from scripts.study.statistics import Floats, Interval, crossed_interval, holm, paired_test, without_nan

Scores = dict[str, Floats]  # metric -> [seeds, questions]

_OWN = ("reward_after", "heldout_after", "compliance_after")  # of summary.json


def compare(arms: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """A row for each metric and arm: its mean and, but for the first arm, its paired difference to that one.

    A difference comes with the p-value and effect size of a paired t test over seeds, and the p-value adjusted for all
    arms that are compared in this metric; these are nan with one seed.

    Raises:
        FatalError: two arms answered different numbers of questions, or have different numbers of seeds.
    """
    first, base = next(iter(arms.items()))
    rows = []
    for metric in base:
        of_metric: list[dict[str, Any]] = []
        for name, scores in arms.items():
            if metric not in scores or scores[metric].shape != base[metric].shape:
                shapes = [base[metric].shape, scores[metric].shape if metric in scores else None]
                raise FatalError(f"{metric}: {first} and {name} cannot be paired, (seeds, questions) are {shapes}")
            values = scores[metric]
            row: dict[str, Any] = {
                "metric": metric,
                "arm": name,
                "seeds": len(values),
                "mean": crossed_interval(values),
            }
            row["by_seed"] = np.nanmean(values, 1).tolist()
            if name != first:
                row["difference"] = crossed_interval(values - base[metric])
                row["p"], row["effect"] = paired_test(np.nanmean(values - base[metric], 1))
            of_metric.append(row)
        compared = [row for row in of_metric if "difference" in row]
        for row, adjusted in zip(compared, holm([row["p"] for row in compared]), strict=True):
            row["p_adjusted"] = adjusted
        rows += of_metric
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of ``compare`` for people."""
    lines = [f"{'metric':<18} {'arm':<18} seeds  mean [95%]                 difference to the first arm"]
    for row in rows:
        line = f"{row['metric']:<18} {row['arm']:<18} {row['seeds']:<5}  {_text(row['mean'])}"
        if "difference" in row:
            _, low, high = row["difference"]
            line += f"  {_text(row['difference'])}  p {row['p_adjusted']:.3f}  g {row['effect']:+.2f}"
            line += "  more than chance" if low > 0 or high < 0 else ""
        lines.append(line)
    if rows and rows[0]["seeds"] == 1:
        lines.append("With one seed the intervals hold for other questions, but say nothing of other seeds.")
    return "\n".join(lines)


def _text(one: Interval) -> str:
    return f"{one[0]:8.3f} [{one[1]:.3f}, {one[2]:.3f}]".ljust(26)


def of_runs(runs: Sequence[Path]) -> Scores:
    """A run's own evaluations, one value a seed.

    Raises:
        FatalError: a run has not finished.
    """
    try:
        summaries = [json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in runs]
    except (OSError, ValueError) as error:
        raise FatalError(f"no finished run: {error}") from None
    values = {metric: [one[metric] for one in summaries] for metric in _OWN}
    return {metric: np.array(some, np.float64)[:, None] for metric, some in values.items() if None not in some}


def of_scores(files: Sequence[Path]) -> Scores:
    """Percentages of each set, by seed and question.

    Raises:
        FatalError: a file was not written by scripts.study.evaluate, or the files differ in sets or questions.
    """
    try:
        items = [json.loads(file.read_text(encoding="utf-8"))["items"] for file in files]
        found = {name: [[item["score"] for item in one[name]] for one in items] for name in items[0]}
        return {name: 100 * np.array(some, np.float64) for name, some in found.items()}  # None becomes nan
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise FatalError(f"cannot compare {', '.join(map(str, files))}: {error}") from None


def train(
    name: str, settings: list[str], *, seeds: Sequence[str], actors: int, evaluate_flags: str, out: Path
) -> Scores:
    """One arm: trains and scores every seed, unless that is done. Blocks as long as that takes.

    Raises:
        ConfigError: a setting is wrong.
        ChildFailed: a process of a run failed.
    """
    runs = [out / f"{name}-{seed}" for seed in seeds]
    for run, seed in zip(runs, seeds, strict=True):
        wanted = [*settings, "--run.dir", str(run), "--run.seed", seed]
        load(wanted)  # so that a wrong flag is an error before hours of training
        if not (run / "summary.json").exists():
            run_all(wanted, run, actors)
    if not evaluate_flags:
        return of_runs(runs)
    from scripts.study import evaluate  # transformers takes seconds to import, and only this needs it

    files = [run / "scores.json" for run in runs]
    for run, file in zip(runs, files, strict=True):
        if not file.exists():
            evaluate.main([str(run), "--out", str(file), *shlex.split(evaluate_flags)])
    return of_runs(runs) | of_scores(files)


def arm_of(text: str) -> tuple[str, str]:
    """Name and definition of an arm NAME=DEFINITION.

    Raises:
        FatalError: it does not have this form.
    """
    name, equals, rest = text.partition("=")
    if not (name and equals):
        raise FatalError(f"an arm is NAME=files and flags, not {text!r}")
    return name, rest


@command()
def main(
    arms: Annotated[
        list[str],
        typer.Argument(metavar="NAME=...", help="Files and flags; with --runs or --scores the files to read."),
    ],
    *,
    base: Annotated[str, typer.Option(help="Files and flags of all arms.")] = "",
    seeds: Annotated[str, typer.Option(help="Seeds of each arm, separated by commas.")] = "0,1,2",
    actors: Annotated[int, typer.Option(help="Actors of each run.")] = 1,
    evaluate_flags: Annotated[str, typer.Option("--evaluate", help="Flags of scripts.study.evaluate.")] = "",
    runs: Annotated[bool, typer.Option("--runs", help="Arms are finished runs: NAME=DIR,DIR.")] = False,
    scores: Annotated[
        bool, typer.Option("--scores", help="Arms are files of scripts.study.evaluate: NAME=FILE,FILE.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Directory of the runs and of comparison.json.")] = Path("runs/compare"),
    as_json: Annotated[bool, typer.Option("--json", help="The last line is JSON.")] = False,
) -> None:
    named = dict(map(arm_of, arms))
    if runs or scores:
        read = of_runs if runs else of_scores
        found = {name: read([Path(part) for part in text.split(",")]) for name, text in named.items()}
    else:
        flags = {name: [*shlex.split(base), *shlex.split(text)] for name, text in named.items()}
        found = {
            name: train(
                name, files_first(some), seeds=seeds.split(","), actors=actors, evaluate_flags=evaluate_flags, out=out
            )
            for name, some in flags.items()
        }
    rows = compare(found)
    out.mkdir(parents=True, exist_ok=True)
    shown = [{key: without_nan(value) for key, value in row.items()} for row in rows]
    (out / "comparison.json").write_text(json.dumps(shown, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(table(rows))
    if as_json:
        print(json.dumps({"name": "compare", "rows": shown}, allow_nan=False))


if __name__ == "__main__":
    main()
