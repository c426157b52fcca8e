"""Trains a set of configurations with several seeds each, scores them, and says which differences are more than chance.

    python -m scripts.study.compare --out runs/study --seeds 0,1,2 --base configs/qwen2.5-1.5b.toml \\
        lrpo= grpo="--router.mode monolingual" uniform="--router.mode uniform" \\
        --evaluate "--care-pro care_pro.jsonl --mgsm mgsm.jsonl --judge MODEL@URL"

An arm is NAME=TOML files and flags, on top of ``--base``; the first arm is what the others are compared with. A run
that has finished (``OUT/NAME-SEED/summary.json``), and its scores, are not made again. ``--runs`` compares finished
runs, ``--scores`` files of scripts.study.evaluate, as NAME=FILE,FILE of seeds in one order; then nothing is trained.

Scored questions are paired by question and seed, and resampled over both; a run's own evaluation is paired by seed.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import load
from common.process import FatalError
from scripts.command import parser, plain_errors
from scripts.data.calibration_report import Interval, interval
from scripts.ops.supervise import run_all
from scripts.study.evaluate import evaluate

Floats = NDArray[np.float64]
Scores = dict[str, Floats]  # metric -> [seeds, questions]

_RESAMPLES = 2000
_OWN = ("reward_after", "heldout_after", "compliance_after")  # of summary.json


def bootstrap(values: Floats, seed: int = 0) -> Interval:
    """Mean of [seeds, questions] and its 95% interval, resampling seeds and questions; nan is no value."""
    random = np.random.default_rng(seed)
    rows, columns = values.shape
    estimates = [float(np.nanmean(values))]
    for _ in range(_RESAMPLES):
        part = values[np.ix_(random.integers(0, rows, rows), random.integers(0, columns, columns))]
        estimates.append(float(np.nanmean(part)) if np.isfinite(part).any() else float("nan"))
    return interval(estimates)


def compare(arms: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """A row for each metric and arm: mean, and paired difference to the first arm where all seeds and questions match.

    Raises:
        FatalError: two arms answered different numbers of questions, or have different numbers of seeds.
    """
    first, base = next(iter(arms.items()))
    rows = []
    for metric in base:
        for name, scores in arms.items():
            if metric not in scores or scores[metric].shape != base[metric].shape:
                shapes = [base[metric].shape, scores[metric].shape if metric in scores else None]
                raise FatalError(f"{metric}: {first} and {name} cannot be paired, (seeds, questions) are {shapes}")
            values = scores[metric]
            row: dict[str, Any] = {"metric": metric, "arm": name, "seeds": len(values), "mean": bootstrap(values)}
            row["by_seed"] = np.nanmean(values, 1).tolist()
            if name != first:
                row["difference"] = bootstrap(values - base[metric])
            rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"{'metric':<18} {'arm':<18} seeds  mean [95%]                 difference to the first arm"]
    for row in rows:
        line = f"{row['metric']:<18} {row['arm']:<18} {row['seeds']:<5}  {_text(row['mean'])}"
        if "difference" in row:
            _, low, high = row["difference"]
            clear = "" if low <= 0 <= high else "  more than chance"
            line += f"  {_text(row['difference'])}{clear}"
        lines.append(line)
    return "\n".join(lines)


def _text(one: Interval) -> str:
    return f"{one[0]:8.3f} [{one[1]:.3f}, {one[2]:.3f}]".ljust(26)


def of_runs(runs: Sequence[Path]) -> Scores:
    """A run's own evaluations, one value a seed.

    Raises:
        FatalError: a run has not finished.
    """
    try:
        told = [json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in runs]
    except (OSError, ValueError) as error:
        raise FatalError(f"no finished run: {error}") from None
    values = {metric: [one[metric] for one in told] for metric in _OWN}
    return {metric: np.array(some, np.float64)[:, None] for metric, some in values.items() if None not in some}


def of_scores(files: Sequence[Path]) -> Scores:
    """Percentages of each set, by seed and question.

    Raises:
        FatalError: a file is none of scripts.study.evaluate, or the files differ in sets or questions.
    """
    try:
        items = [json.loads(file.read_text(encoding="utf-8"))["items"] for file in files]
        found = {name: [[item["score"] for item in one[name]] for one in items] for name in items[0]}
        return {name: 100 * np.array(some, np.float64) for name, some in found.items()}  # None becomes nan
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise FatalError(f"cannot compare {', '.join(map(str, files))}: {error}") from None


def train(name: str, settings: list[str], args: argparse.Namespace) -> Scores:
    """One arm: every seed trained and scored, unless that is done."""
    runs = [args.out / f"{name}-{seed}" for seed in args.seeds.split(",")]
    for run, seed in zip(runs, args.seeds.split(","), strict=True):
        wanted = [*settings, "--run.dir", str(run), "--run.seed", seed]
        load(wanted)  # a wrong flag is an error before hours of training
        if not (run / "summary.json").exists():
            run_all(wanted, run, args.actors)
    if not args.evaluate:
        return of_runs(runs)
    files = [run / "scores.json" for run in runs]
    for run, file in zip(runs, files, strict=True):
        if not file.exists():
            flags = parser(evaluate, None).parse_args([str(run), "--out", str(file), *shlex.split(args.evaluate)])
            evaluate(**vars(flags))
    return of_runs(runs) | of_scores(files)


def main(arguments: list[str] | None = None) -> None:
    made = argparse.ArgumentParser(prog="python -m scripts.study.compare", description=(__doc__ or "").split("\n")[0])
    made.add_argument("arms", nargs="+", metavar="NAME=…", help="files and flags; with --runs, --scores: what to read")
    made.add_argument("--base", default="", help="files and flags of all arms")
    made.add_argument("--seeds", default="0,1,2", help="of each arm")
    made.add_argument("--actors", type=int, default=1, help="of each run")
    made.add_argument("--evaluate", default="", help="flags of scripts.study.evaluate, without --out")
    made.add_argument("--runs", action="store_true", help="arms are finished runs: NAME=DIR,DIR")
    made.add_argument("--scores", action="store_true", help="arms are files of scripts.study.evaluate: NAME=FILE,FILE")
    made.add_argument("--out", type=Path, default=Path("runs/compare"), help="runs, and comparison.json")
    made.add_argument("--json", action="store_true", help="the last line is JSON")
    args = made.parse_args(arguments)
    with plain_errors():
        named = dict(map(arm_of, args.arms))
        if args.runs or args.scores:
            reading = of_runs if args.runs else of_scores
            arms = {name: reading([Path(part) for part in text.split(",")]) for name, text in named.items()}
        else:
            flags = {name: [*shlex.split(args.base), *shlex.split(text)] for name, text in named.items()}
            arms = {name: train(name, _files_first(some), args) for name, some in flags.items()}
        rows = compare(arms)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "comparison.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    if args.json:
        print(json.dumps({"name": "compare", "rows": rows}))


def arm_of(text: str) -> tuple[str, str]:
    name, equals, rest = text.partition("=")
    if not (name and equals):
        raise FatalError(f"an arm is NAME=files and flags, not {text!r}")
    return name, rest


def _files_first(words: list[str]) -> list[str]:
    """Files go before all flags, wherever they were given."""
    return sorted(words, key=lambda word: word.startswith("--") or not word.endswith(".toml"))


if __name__ == "__main__":
    main()
