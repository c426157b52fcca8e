"""Runs a study on the offline world, or on your own model and data: arms x worlds x seeds, with tables and a picture.

    lrpo study router [--seeds 0,1,2,3,4] [--regimes region,one-language,equal] [--arms ours,uniform] [--out DIR]
    lrpo study router --base "configs/lrpo.toml configs/models/qwen2.5-1.5b.toml my-data.toml" --best-language en

``router`` compares ways to choose the languages of the rollouts. ``mechanism`` changes one setting of learned routing
at a time. All arms of a seed and a world have the same questions, the same warm-started policy, equally many steps and
rollouts. In the world ``region`` a question's region and topic decide which languages know its answer; in
``one-language`` one language knows all; in ``equal`` each question has three languages of its own, and nothing tells
them. The arm ``best-fixed`` draws the one language that knows most of the trained questions, which is hindsight.

Seeds are the outermost loop, so the study is balanced whenever it is stopped; the same command goes on, in the middle
of a run as well. ``OUT/results.json`` has a record for each finished run: its figures, a hash of its settings, the
version of the code. ``--report`` only reads it. With ``--base`` nothing is prepared: its files and flags name the model
and the data.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from common.config import load
from common.process import FatalError
from scripts.ops import dry_run
from scripts.ops.command_line import command
from scripts.ops.local_run import run_all
from scripts.study.compare import files_first
from scripts.study.studies.arms import BEST_FIXED, Name, arms_of
from scripts.study.studies.figures import MEANING, best_language, read_figures, read_knowledge, settings_hash
from scripts.study.studies.report import draw, tables
from scripts.world import demo
from scripts.world.settings import Knowledge

_ROOT = Path(__file__).parents[3]
_CONFIGS = [str(_ROOT / "configs" / name) for name in ("demo.toml", "study.toml")]
_REGIMES = ("region", "one-language", "equal")
_OWN_DATA = "data"  # the regime of --base
_LARGE = ("checkpoints", "model")  # of a run's directory; nothing of the study is read from them


class Place:
    """What all arms of a regime and a seed share: questions, the policy they start from, and what is known of them.

    Args:
        base: files and flags that name the user's own; empty for an offline world.
        best: the language of the arm ``best-fixed``, where the world does not tell it.
    """

    def __init__(self, regime: str, seed: int, cache: Path, base: Sequence[str], best: str | None) -> None:
        self.regime, self.seed, self._best = regime, seed, best
        self._world, self._policy = cache / f"world-{regime}-{seed}", cache / f"policy-select-{regime}-{seed}"
        self.settings = list(base) or [
            *_CONFIGS,
            *("--data.train", str(self._world / "train.parquet")),
            *("--data.heldout", str(self._world / "heldout.parquet")),
            *("--model.path", str(self._policy)),
        ]
        self._is_world = not base

    def prepare(self, warm_start: Sequence[str]) -> None:
        """Makes the world, its calibration and the warm-started policy where they are missing. Blocks meanwhile.

        Raises:
            SystemExit: one of the programs failed, after it has printed why.
        """
        if not self._is_world:
            return
        # Every language can be chosen: the policy has seen the headers of all.
        flags = ["--style", "select", "--unseen", "", *warm_start]
        demo.prepare(self._world, self._policy, self.seed, flags, cast(Knowledge, self.regime))

    def knowledge(self) -> dict[int, set[str]] | None:
        """Row of a trained question -> languages that know it; None for the user's own data."""
        return read_knowledge(self._world) if self._is_world else None

    def flags(self, arm: str, given: Sequence[str]) -> list[str]:
        """The flags of an arm, completed.

        Raises:
            FatalError: the arm needs a language or a file that nobody has named.
        """
        calibration = self._world / "facts.csv"
        if not self._is_world and any("{calibration}" in flag for flag in given):
            raise FatalError(f"the arm {arm} is for the offline world; leave it out with --arms")
        flags = [flag.replace("{calibration}", str(calibration)) for flag in given]
        if arm == BEST_FIXED:
            knowledge = self.knowledge()
            best = best_language(knowledge) if knowledge is not None else self._best
            if best is None:
                raise FatalError("the arm best-fixed needs --best-language, or leave it out with --arms")
            flags += ["--router.fixed_language", best]
        return flags


def _version() -> str:
    """The commit of the code, with "+" where files differ from it; "unknown" outside of a repository."""
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude", "*"],
        cwd=_ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return described.stdout.strip() or "unknown"


class Results:
    """``results.json``: the records of the finished runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else "[]"
            self.records: list[dict[str, Any]] = json.loads(text)
        except (OSError, ValueError) as error:
            raise FatalError(f"cannot read {path}: {error}; move it away, and the runs are read again") from None

    def has(self, regime: str, arm: str, seed: int, config: str) -> bool:
        """Whether there is a record of this run.

        Args:
            config: what :func:`settings_hash` gives.

        Raises:
            FatalError: there is one, with other settings.
        """
        for one in self.records:
            if (one["regime"], one["arm"], one["seed"]) == (regime, arm, seed):
                if one["config"] != config:
                    raise FatalError(
                        f"{self._path} has {arm}, {regime}, seed {seed} with other settings: choose another --out, "
                        "or take this record out of it and remove the directory of the run"
                    )
                return True
        return False

    def add(self, record: dict[str, Any]) -> None:
        """Adds a record and writes the file, at once or not at all."""
        self.records.append(record)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        lines = ",\n".join(json.dumps(one, sort_keys=True, allow_nan=False) for one in self.records)
        partial.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        os.replace(partial, self._path)


def _train(place: Place, arm: str, flags: Sequence[str], run: Path, actors: int | None, keep: bool) -> dict[str, Any]:
    """Trains one run, unless that is done, and returns its figures. Blocks as long as that takes.

    Raises:
        ConfigError: a setting is wrong.
        ChildFailed: a process of the run failed.
    """
    settings = files_first(
        [*place.settings, "--run.dir", str(run), "--run.seed", str(place.seed), *place.flags(arm, flags)]
    )
    load(settings)  # so that a wrong flag is an error before anything is started
    if not (run / "summary.json").exists():
        run_all(settings, run, actors)
    if not keep:
        for name in _LARGE:
            shutil.rmtree(run / name, ignore_errors=True)
    return read_figures(run, place.knowledge())


def _chosen(what: str, given: str, known: Sequence[str]) -> list[str]:
    """The names of a list with commas.

    Raises:
        FatalError: one is not known.
    """
    names = [name.strip() for name in given.split(",") if name.strip()] or list(known)
    if unknown := sorted(set(names) - set(known)):
        raise FatalError(f"--{what} {unknown[0]}: there are {', '.join(known)}")
    return names


@command(name="lrpo study", passes_flags_on=True)
def main(
    context: typer.Context,
    name: Annotated[Name, typer.Argument(help="Which study.")],
    *,
    seeds: Annotated[
        str, typer.Option(help="Seeds, separated by commas: of the world, the warm start and the run.")
    ] = ("0,1,2,3,4"),
    regimes: Annotated[str, typer.Option(help="Worlds, separated by commas; default: all three.")] = "",
    arms: Annotated[str, typer.Option(help="Arms, separated by commas; default: all of the study.")] = "",
    base: Annotated[str, typer.Option(help="Files and flags with your own model and data, instead of a world.")] = "",
    best_language: Annotated[str | None, typer.Option(help="With --base, the language of the arm best-fixed.")] = None,
    actors: Annotated[int | None, typer.Option(help="Actors of each run; default: one, or as many as GPUs.")] = None,
    warm_start_steps: Annotated[int | None, typer.Option(help="Steps of the warm start.")] = None,
    out: Annotated[Path, typer.Option(help="Directory of results.json, the tables and the runs.")] = (
        Path("runs/study")
    ),
    cache: Annotated[Path, typer.Option(help="Where worlds and policies are kept.")] = _ROOT / ".cache" / "study",
    keep: Annotated[bool, typer.Option("--keep", help="Keep checkpoints and models.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Train nothing; only write tables and picture.")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Say what the runs need and how many there are.")] = False,
) -> None:
    chosen, all_arms = _chosen("arms", arms, list(arms_of(name))), arms_of(name)
    worlds = [_OWN_DATA] if base else _chosen("regimes", regimes, _REGIMES)
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise FatalError(f"--seeds {seeds}: whole numbers, separated by commas") from None
    out = out.absolute()
    results = Results(out / "results.json")
    places = [
        Place(world, seed, cache.absolute(), [*shlex.split(base), *context.args] if base else [], best_language)
        for seed in numbers
        for world in worlds
    ]
    warm_start = ["--steps", str(warm_start_steps)] if warm_start_steps else []
    flags = {arm: [*all_arms[arm], *([] if base else context.args)] for arm in chosen}
    hashes = {arm: settings_hash(places[0].settings, [*flags[arm], *warm_start]) for arm in chosen}
    runs = [(place, arm) for place in places for arm in chosen]
    left = [(place, arm) for place, arm in runs if not results.has(place.regime, arm, place.seed, hashes[arm])]
    if dry:
        print(f"{len(left)} of {len(runs)} runs are left to do" + ("; each of them needs:" if base else ""))
        if base:
            dry_run.main(files_first([*places[0].settings, *places[0].flags(chosen[0], all_arms[chosen[0]])]))
        return
    for number, (place, arm) in enumerate([] if report else left):
        print(f"run {number + 1} of {len(left)}: {place.regime}, {arm}, seed {place.seed}", flush=True)
        began = time.monotonic()
        place.prepare(warm_start)
        run = out / place.regime / f"{arm}-{place.seed}"
        record = {"regime": place.regime, "arm": arm, "seed": place.seed, "config": hashes[arm], "code": _version()}
        record["figures"] = _train(place, arm, flags[arm], run, actors or (None if base else 1), keep)
        results.add({**record, "seconds": round(time.monotonic() - began)})
    if not results.records:
        raise FatalError(f"{out / 'results.json'} has no finished run yet")
    text = tables(results.records, next(iter(all_arms)), list(MEANING))
    (out / "tables.md").write_text(text + "\n", encoding="utf-8")
    draw(results.records, next(iter(all_arms)), "own_heldout", out / "differences.png")
    print(text)


if __name__ == "__main__":
    main()
