"""Trains a set of configurations with several seeds each, scores them, and says which differences are more than chance.

    python -m scripts.study.compare --out runs/study --seeds 0,1,2 \\
        --base "configs/lrpo.toml configs/models/qwen2.5-1.5b.toml" \\
        lrpo= grpo="--router.mode monolingual" uniform="--router.mode uniform" \\
        --evaluate "--care-pro care_pro.jsonl --mgsm mgsm.jsonl --judge MODEL@URL"

An arm is NAME=TOML files and flags, which come after those of ``--base``; the others are compared with the first one.
A run that has finished (``OUT/NAME-SEED/summary.json``) is not trained again, and its scores are not made again. If it
was trained with other settings or questions, or scored with other flags, that is an error.
``--runs`` compares finished runs, ``--scores`` files of scripts.study.evaluate, given as NAME=FILE,FILE with the seeds
in the same order for every arm; then nothing is trained.

Scored questions are paired by question and seed, and a run's own evaluations by seed. The 95% intervals hold for other
seeds and other questions, with as few as two seeds (``scripts.study.statistics``); a question and its translations, if
they have one id, count as one. p is that of the paired t test over seeds, adjusted for the number of arms compared by
Holm's method; g is the effect in standard deviations over seeds. A difference is more than chance where that p is below
0.05 and the interval does not hold 0. The rewards of arms whose ``reward`` sections differ are on different scales, and
have no difference: compare their scores.
"""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from common.config import load
from common.process import FatalError
from learner.resume import Change
from scripts.ops.command_line import command, files_first, languages_flag
from scripts.ops.finished_run import check_settings, read_summary
from scripts.ops.local_run import run_all
from scripts.study.iterate.record import digest_of_source
from scripts.study.statistics import Floats, Interval, holm, paired_test, seed_means, translated_interval, without_nan

_LEVEL = 0.05  # of the adjusted p-value, below which a difference is more than chance
_SCORES_FILE, _QUESTIONS_FILE = "scores.json", "questions.json"  # beside summary.json; the latter has digests
_GATE = ("reward.gate_", "reward.near_languages", "reward.language_model")
_TRAINED, _HELDOUT = ("data.train", "data.pass_rate"), ("data.heldout",)
# Of summary.json -> what the settings begin with that define the metric, besides how many questions are asked.
_OWN = {
    "reward_after": ("reward.", *_TRAINED),
    "heldout_after": ("reward.", *_HELDOUT),
    "compliance_after": (*_GATE, *_TRAINED),
}
# Flags that say how runs are trained and scored, and mean nothing for finished ones, by the parameters of the command.
_OF_TRAINING = {"base": "--base", "seeds": "--seeds", "actors": "--actors", "evaluate_flags": "--evaluate"}


@dataclass(frozen=True)
class Measured:
    """What an arm has of one metric.

    Attributes:
        values: [seeds, questions]; nan where an answer has no score.
        questions: [questions] what marks each question, so that nothing else is paired with it.
        ids: [questions] what numbers each question, in all languages alike.
        defined_by: [seeds] the settings that define what a value is; empty where it is the same for all runs.
    """

    values: Floats
    questions: Sequence[str] = ("",)
    ids: Sequence[str] = ("",)
    defined_by: Sequence[Mapping[str, Any]] = ()


Arm = Mapping[str, Measured]  # by metric


def compare(arms: Mapping[str, Arm]) -> list[dict[str, Any]]:
    """A row for each metric and arm: its mean and, but for the first arm, its paired difference to that one.

    A difference comes with the p-value and effect size of a paired t test over seeds, the p-value adjusted for all arms
    that are compared in this metric, and whether it is more than chance; these are nan and None with one seed. An arm
    whose values are by other definitions than those of the first arm has no difference: ``defined_otherwise`` lists
    the settings in which they differ. One whose runs lack one of their own figures has no row there. A metric that the
    first arm lacks has rows of those that have it, with ``first_lacks`` in the place of a difference.

    Raises:
        FatalError: two arms answered different questions, or have different numbers of seeds.
    """
    first, base = next(iter(arms.items()))
    rows = []
    for metric in dict.fromkeys(metric for arm in arms.values() for metric in arm):
        of_first = base.get(metric)
        of_metric: list[dict[str, Any]] = []
        for name, arm in arms.items():
            own = arm.get(metric)
            if own is None and (metric in _OWN or of_first is None):  # as without held-out questions
                continue
            if of_first is not None:
                own = _paired(metric, first, of_first, name, own)
            assert own is not None, "an arm that cannot be paired is an error"
            row: dict[str, Any] = {
                "metric": metric,
                "arm": name,
                "seeds": len(own.values),
                "mean": translated_interval(own.values, own.ids),
            }
            row["by_seed"] = seed_means(own.values).tolist()
            if of_first is None:
                row["first_lacks"] = True
            elif name != first:
                row["defined_otherwise"] = _differing(of_first.defined_by, own.defined_by)
                if not row["defined_otherwise"]:
                    differences = own.values - of_first.values
                    row["difference"] = translated_interval(differences, of_first.ids)
                    by_seed = seed_means(differences)
                    row["p"], row["effect"] = paired_test(by_seed)
                    row["paired_seeds"] = int((~np.isnan(by_seed)).sum())
            of_metric.append(row)
        compared = [row for row in of_metric if "difference" in row]
        for row, adjusted in zip(compared, holm([row["p"] for row in compared]), strict=True):
            row["p_adjusted"] = adjusted
            _, low, high = row["difference"]
            row["more_than_chance"] = None if np.isnan(adjusted) else adjusted < _LEVEL and (low > 0 or high < 0)
        rows += of_metric
    return rows


def _paired(metric: str, first: str, of_first: Measured, name: str, other: Measured | None) -> Measured:
    """What the other arm has, if it can be paired with what the first one has."""
    if other is None or other.values.shape != of_first.values.shape:
        shapes = [of_first.values.shape, None if other is None else other.values.shape]
        raise FatalError(f"{metric}: {first} and {name} cannot be paired, (seeds, questions) are {shapes}")
    if [*other.questions] != [*of_first.questions]:
        differs = [one != two for one, two in zip(of_first.questions, other.questions, strict=True)]
        raise FatalError(
            f"{metric}: {first} and {name} cannot be paired: {sum(differs)} of {len(differs)} questions differ, the "
            f"first is number {differs.index(True)} (from 0). Score both with the same files, in the same order"
        )
    return other


def _differing(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where definitions differ, seed by seed. A setting that only one version of the code knows is no difference."""
    return sorted({key for a, b in zip(one, other, strict=True) for key in a.keys() & b.keys() if a[key] != b[key]})


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of ``compare`` for people."""
    lines = [f"{'metric':<18} {'arm':<18} seeds  mean [95%]                 difference to the first arm"]
    for row in rows:
        line = f"{row['metric']:<18} {row['arm']:<18} {row['seeds']:<5}  {_text(row['mean'])}"
        if "difference" in row:
            line += f"  {_text(row['difference'])}"
            line += "" if np.isnan(row["p_adjusted"]) else f"  p {row['p_adjusted']:.3f}"
            line += "" if np.isnan(row["effect"]) else f"  g {row['effect']:+.2f}"
            line += "  more than chance" if row["more_than_chance"] else ""
            if row["paired_seeds"] < row["seeds"]:
                line += f"  (of {row['paired_seeds']} seeds: the others have no score in common)"
        elif row.get("defined_otherwise"):
            line += f"  not comparable: {', '.join(row['defined_otherwise'])}"
        elif row.get("first_lacks"):
            line += "  the first arm has none"
        lines.append(line.rstrip())
    if rows and rows[0]["seeds"] == 1:
        lines.append(
            "With one seed the intervals hold for other questions, but say nothing of other seeds: no difference can "
            "be called more than chance."
        )
    if any(row.get("defined_otherwise") for row in rows):
        lines.append(
            "Where the settings that define a run's own figure differ from those of the first arm, it is on another "
            "scale or about other questions: compare scores (--evaluate)."
        )
    return "\n".join(lines)


def _text(one: Interval) -> str:
    mean, low, high = one
    return (f"{mean:8.3f}" + ("" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]")).ljust(26)


def check_seeds(arms: Mapping[str, Sequence[Path]]) -> None:
    """Refuses finished runs that would be paired with runs of another seed. A run that does not tell its own may pass.

    Raises:
        FatalError: this is so.
    """
    first = next(iter(arms))
    seeds = {name: [_seed_of(run) for run in runs] for name, runs in arms.items()}
    for name, own in seeds.items():
        for one, two, run_one, run_two in zip(seeds[first], own, arms[first], arms[name], strict=False):
            if None not in (one, two) and one != two:
                raise FatalError(
                    f"{run_one} of {first} has the seed {one} and {run_two} of {name}, which it would be paired with, "
                    f"the seed {two}: give the runs of each arm in the same order of seeds"
                )


def _seed_of(run: Path) -> int | None:
    seed: int | None = ((read_summary(run) or {}).get("config") or {}).get("run", {}).get("seed")
    return seed


def of_runs(runs: Sequence[Path]) -> dict[str, Measured]:
    """A run's own evaluations, one value a seed.

    Raises:
        FatalError: a run has not finished.
    """
    summaries = []
    for run in runs:
        if (summary := read_summary(run)) is None:
            raise FatalError(f"no finished run: {run} has no whole summary.json")
        summaries.append(summary)
    found = {}
    for metric, begins in _OWN.items():
        values = [one.get(metric) for one in summaries]
        if None not in values:
            defined_by = [_definition(one.get("config", {}), begins) for one in summaries]
            found[metric] = Measured(np.array(values, np.float64)[:, None], defined_by=defined_by)
    return found


def _definition(config: Mapping[str, Mapping[str, Any]], begins: tuple[str, ...]) -> dict[str, Any]:
    """The settings of a run that decide what an answer earns and which questions are asked, as far as they begin so."""
    reward, learner = dict(config.get("reward", {})), config.get("learner", {})
    for name in ("gated", "bounded"):  # None is what RewardConfig makes of it
        if name in reward and reward[name] is None:
            reward[name] = not reward.get("function")
    reward["judges"] = sorted({judge.partition("@")[0] for judge in reward.get("judges", ())})  # wherever they are
    data = {**config.get("data", {})}
    for name in ("train", "heldout"):
        data[name] = Path(data.get(name) or "").name  # wherever it lies
    named = {f"reward.{name}": value for name, value in reward.items()}
    named = {key: value for key, value in named.items() if not Change(key, None, None).is_harmless}
    named |= {f"data.{name}": value for name, value in data.items()}
    kept = {key: value for key, value in named.items() if key.startswith(begins)}
    return kept | {f"learner.{name}": learner[name] for name in ("evaluate_questions",) if name in learner}


def of_scores(files: Sequence[Path]) -> dict[str, Measured]:
    """Percentages of each set, by seed and question.

    Raises:
        FatalError: a file was not written by scripts.study.evaluate, or the files differ in sets or questions.
    """
    listed = ", ".join(map(str, files))
    try:
        items = [json.loads(file.read_text(encoding="utf-8"))["items"] for file in files]
        scores = {name: [[item["score"] for item in one[name]] for one in items] for name in items[0]}
        found = {name: 100 * np.array(some, np.float64) for name, some in scores.items()}  # None becomes nan
        marks = {name: [[item.get("question") for item in one[name]] for one in items] for name in items[0]}
        ids = {name: [item.get("id") or f"item {n}" for n, item in enumerate(some)] for name, some in items[0].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise FatalError(f"cannot compare {listed}: {error}") from None
    for name, by_file in marks.items():
        if None in by_file[0] or any(one != by_file[0] for one in by_file):
            if any(None in one for one in by_file):
                raise FatalError(
                    f"cannot compare {listed}: an earlier version wrote them, without what marks each question, so "
                    "nobody can tell whether these are the same: score again"
                )
            raise FatalError(f"cannot compare {listed}: their questions of {name} are not the same, in the same order")
    if others := {name for one in items for name in one} - found.keys():
        raise FatalError(f"cannot compare {listed}: {files[0]} lacks the sets {', '.join(sorted(others))}")
    return {name: Measured(values, marks[name][0], ids[name]) for name, values in found.items()}


@dataclass(frozen=True)
class Run:
    """A run that is trained, or has been.

    Attributes:
        settings: files and flags.
        questions: digests of the rows of data.train and data.heldout, as far as there are any.
    """

    directory: Path
    settings: list[str]
    questions: Mapping[str, str]


def plan(
    definitions: Mapping[str, Sequence[str]], seeds: Sequence[str], evaluate_flags: Sequence[str], out: Path
) -> dict[str, list[Run]]:
    """The runs of each arm. What is there already is of these settings, questions and flags.

    Args:
        definitions: files and flags of each arm.

    Raises:
        ConfigError: a setting is wrong: now, and not after hours of training.
        FatalError: a run was trained with other settings or questions, or scored with other flags; or the questions
            cannot be read, or the flags are no good.
    """
    planned: dict[str, list[Run]] = {name: [] for name in definitions}
    digests: dict[str, str] = {}  # by source, each of which is read once
    for name, words in definitions.items():
        for seed in seeds:
            directory = out / f"{name}-{seed}"
            settings = [*words, "--run.dir", str(directory), "--run.seed", seed]
            config = load(settings)
            sources = {"data.train": config.data.train, "data.heldout": config.data.heldout}
            for source in sources.values():
                if source and source not in digests:
                    digests[source] = digest_of_source(source)
            questions = {key: digests[source] for key, source in sources.items() if source}
            if read_summary(directory) is not None:
                check_settings(directory, config)
                _check_questions(directory, questions)
            if evaluate_flags:
                _check_scores(directory / _SCORES_FILE, evaluate_flags)
            planned[name].append(Run(directory, settings, questions))
    runs = [run for some in planned.values() for run in some]
    if evaluate_flags and not all((run.directory / _SCORES_FILE).exists() for run in runs):
        _check_flags(evaluate_flags, out)
    return planned


def _check_questions(directory: Path, questions: Mapping[str, str]) -> None:
    try:
        before = json.loads((directory / _QUESTIONS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # trained by an earlier version, or by another command
        return
    if changed := [key for key, digest in questions.items() if before.get(key, digest) != digest]:
        raise FatalError(
            f"{directory} holds a finished run of other rows of {' and '.join(changed)}: give the rows as they were, "
            f"choose another --out, or remove {directory} to train it anew"
        )


def _check_scores(file: Path, flags: Sequence[str]) -> None:
    if not file.exists():
        return
    try:
        made_with = json.loads(file.read_text(encoding="utf-8")).get("flags")
    except (OSError, ValueError, AttributeError) as error:
        raise FatalError(f"cannot read {file}: {error}; remove it to score again") from None
    if made_with != [*flags]:
        told = "flags that it does not name" if made_with is None else f"the flags {shlex.join(made_with)}"
        raise FatalError(f"{file} was made with {told}: give --evaluate the same, or remove the file to score again")


def train(runs: Sequence[Run], evaluate_flags: Sequence[str], actors: int) -> Arm:
    """One arm: trains and scores every seed, unless that is done. Blocks as long as that takes.

    Raises:
        ChildFailed: a process of a run failed.
    """
    for run in runs:
        if read_summary(run.directory) is None:
            run.directory.mkdir(parents=True, exist_ok=True)
            (run.directory / _QUESTIONS_FILE).write_text(json.dumps(run.questions, indent=1) + "\n", encoding="utf-8")
            run_all(run.settings, run.directory, actors)
    directories = [run.directory for run in runs]
    if not evaluate_flags:
        return of_runs(directories)
    for directory in directories:
        if not (directory / _SCORES_FILE).exists():
            _score(directory, evaluate_flags)
    return of_runs(directories) | of_scores([directory / _SCORES_FILE for directory in directories])


def _check_flags(flags: Sequence[str], out: Path) -> None:
    """Reads the flags of --evaluate and the files that they name.

    Raises:
        FatalError: they cannot be used.
    """
    from scripts.study import evaluate  # transformers takes seconds to import, and only this needs it

    if any(flag.partition("=")[0] == "--out" for flag in flags):
        raise FatalError("--evaluate: the scores of a run are written beside its summary, so leave out --out")
    try:
        evaluate.main([str(out), "--out", str(out / _SCORES_FILE), *flags, "--check"])
    except SystemExit as stopped:
        if isinstance(stopped.code, str):
            raise FatalError(f"--evaluate: {stopped.code.removeprefix('error: ')}") from None
        raise FatalError("--evaluate takes flags of scripts.study.evaluate; see above") from None


def _score(run: Path, flags: Sequence[str]) -> None:
    """Writes the scores of a run, with the flags that they were made with; at once or not at all."""
    from scripts.study import evaluate  # transformers takes seconds to import, and only this needs it

    partial = (run / _SCORES_FILE).with_suffix(".partial")
    evaluate.main([str(run), "--out", str(partial), *flags])
    scores = json.loads(partial.read_text(encoding="utf-8")) | {"flags": [*flags]}
    partial.write_text(json.dumps(scores, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, run / _SCORES_FILE)


def arm_of(text: str) -> tuple[str, str]:
    """Name and definition of an arm NAME=DEFINITION.

    Raises:
        FatalError: it does not have this form.
    """
    name, equals, rest = text.partition("=")
    if not (name and equals):
        raise FatalError(f"an arm is NAME=files and flags, not {text!r}")
    return name, rest


def _is_given(context: typer.Context, parameter: str) -> bool:
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def _each_once(what: str, given: Iterable[str]) -> list[str]:
    """What was given, without spaces.

    Raises:
        FatalError: something was given twice, which would count as two.
    """
    names = [one.strip() for one in given]
    if again := [name for name, count in Counter(names).items() if count > 1 or not name]:
        raise FatalError(f"{what} {again[0]!r} is given twice" if again[0] else f"{what} is empty")
    return names


@command()
def main(
    context: typer.Context,
    arms: Annotated[
        list[str],
        typer.Argument(metavar="NAME=...", help="Files and flags; with --runs or --scores the files to read."),
    ],
    *,
    base: Annotated[str, typer.Option(help="Files and flags of all arms.")] = "",
    seeds: Annotated[str, typer.Option(help="Seeds of each arm, separated by commas.")] = "0,1,2",
    actors: Annotated[int, typer.Option(min=1, help="Actors of each run.")] = 1,
    evaluate_flags: Annotated[str, typer.Option("--evaluate", help="Flags of scripts.study.evaluate.")] = "",
    runs: Annotated[bool, typer.Option("--runs", help="Arms are finished runs: NAME=DIR,DIR.")] = False,
    scores: Annotated[
        bool, typer.Option("--scores", help="Arms are files of scripts.study.evaluate: NAME=FILE,FILE.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Directory of the runs and of comparison.json.")] = Path("runs/compare"),
    as_json: Annotated[bool, typer.Option("--json", help="The last line is JSON.")] = False,
) -> None:
    pairs = [arm_of(arm) for arm in arms]
    _each_once("the arm", (name for name, _ in pairs))
    found: dict[str, Arm]
    if runs or scores:
        if runs and scores:
            raise FatalError("give either --runs or --scores: an arm is finished runs, or files of scores")
        if useless := [flag for name, flag in _OF_TRAINING.items() if _is_given(context, name)]:
            what = "--runs compares finished runs" if runs else "--scores compares files of scores"
            raise FatalError(f"{what} and trains none: {', '.join(useless)} would have no effect")
        files = {
            name: [*map(Path, _each_once(f"of {name}, the file", text.split(",")))] for name, text in pairs
        }  # fmt: skip
        read = of_runs if runs else of_scores
        found = {name: read(some) for name, some in files.items()}
        if runs:
            check_seeds(files)
    else:
        of_all = [*shlex.split(base), *languages_flag()]  # which the command line had, as no configuration is read yet
        definitions = {name: files_first([*of_all, *shlex.split(text)]) for name, text in pairs}
        scored_with = shlex.split(evaluate_flags)
        planned = plan(definitions, _each_once("the seed", seeds.split(",")), scored_with, out)
        found = {name: train(some, scored_with, actors) for name, some in planned.items()}
    rows = compare(found)
    out.mkdir(parents=True, exist_ok=True)
    shown = [{key: without_nan(value) for key, value in row.items()} for row in rows]
    (out / "comparison.json").write_text(json.dumps(shown, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(table(rows))
    if as_json:
        print(json.dumps({"name": "compare", "rows": shown}, allow_nan=False))


if __name__ == "__main__":
    main()
