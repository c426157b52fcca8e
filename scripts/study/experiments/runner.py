"""Trains the runs of a study one after the other, and keeps a record of each that has finished."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config import ConfigError, load
from common.process import FatalError
from scripts.ops.command_line import files_first
from scripts.ops.finished_run import check_settings, read_summary
from scripts.ops.local_run import run_all
from scripts.study.experiments.place import Figures, Place
from scripts.study.experiments.results import Results, code_version

Run = tuple[Place, str]  # where, and the name of the arm

_LARGE = ("checkpoints", "model")  # of a run's directory; no table is made from them


def missing_runs(runs: Sequence[Run], results: Results) -> list[tuple[Place, str, str]]:
    """The runs that have no record yet, in their order, each with the hash of its settings.

    Raises:
        ConfigError: the settings of one are wrong.
        FatalError: one cannot run, or there is a record with other settings, also of an arm that is not asked for.
    """
    hashes: dict[str, str] = {}  # the same for every regime and seed
    for place, arm in runs:
        if arm not in hashes:
            hashes[arm] = place.settings_hash(arm)
    for place in {place.regime: place for place, _ in runs}.values():
        _check_records(place, hashes, results)
    return [(place, arm, hashes[arm]) for place, arm in runs if not results.has(place.regime, arm, place.seed)]


def _check_records(place: Place, hashes: Mapping[str, str], results: Results) -> None:
    """Refuses records of other settings, also of arms that are not asked for now: the tables have them beside these."""
    for arm in dict.fromkeys(record["arm"] for record in results.records if record["regime"] == place.regime):
        try:
            settings = hashes.get(arm) or place.settings_hash(arm)
        except (ConfigError, FatalError, KeyError):  # of another study, or it needs a flag that is not given
            continue
        results.check(place.regime, arm, settings)


def train_missing(runs: Sequence[Run], results: Results, out: Path, actors: int, keep: bool) -> None:
    """Trains what has no record yet. Blocks until all is done; when it is stopped, the next call goes on.

    Args:
        out: directory of the runs, each in OUT/REGIME/ARM-SEED.
        actors: of each run.
        keep: keep checkpoints and models.

    Raises:
        ConfigError: a setting is wrong.
        FatalError: an arm cannot run, or there are records of another number of actors, or of another policy or world
            of the same regime and seed.
        ChildFailed: a process of a run failed.
    """
    left, prepared = missing_runs(runs, results), list[Place]()
    regimes = list(dict.fromkeys(place.regime for place, _, _ in left))
    for regime in regimes:
        results.check_actors(regime, actors)
    _warn_of_versions(results.versions(regimes) - {code_version()}, out)
    for number, (place, arm, settings) in enumerate(left, 1):
        print(f"run {number} of {len(left)}: {place.regime}, {arm}, seed {place.seed}", flush=True)
        began = time.monotonic()
        record: dict[str, Any] = {"regime": place.regime, "arm": arm, "seed": place.seed, "config": settings}
        if place not in prepared:
            place.prepare()
            prepared.append(place)
        starts_from = place.starts_from()
        results.check_start(place.regime, place.seed, starts_from)
        record |= {"code": code_version(), "actors": actors, "starts_from": dict(starts_from)}
        run = out / place.regime / f"{arm}-{place.seed}"
        record["figures"] = _finite(_train(place, arm, run, actors), run)
        results.add({**record, "seconds": round(time.monotonic() - began)})
        for name in [] if keep else _LARGE:
            shutil.rmtree(run / name, ignore_errors=True)


def measure_again(runs: Sequence[Run], results: Results, out: Path) -> None:
    """Reads the figures of the recorded runs anew, for records that were made when a figure was defined otherwise.

    A run that cannot be read any more, because its directory or its model is gone, keeps its figures, and so does a
    single figure; a line on stderr names them. Trains no run, but makes a world or a policy that is missing.

    Args:
        runs: those without a record are left out.
        out: directory of the runs, each in OUT/REGIME/ARM-SEED.

    Raises:
        FatalError: the records are of other settings, or of another policy or world than is there now.
    """
    missing = {(place.regime, arm, place.seed) for place, arm, _ in missing_runs(runs, results)}
    prepared = list[Place]()
    for place, arm in runs:
        run = out / place.regime / f"{arm}-{place.seed}"
        if (place.regime, arm, place.seed) in missing:
            continue
        if read_summary(run) is None:
            print(f"warning: {run} holds no finished run; its record keeps the figures that it has", file=sys.stderr)
            continue
        if place not in prepared:
            place.prepare()
            results.check_start(place.regime, place.seed, place.starts_from())
            prepared.append(place)
        try:
            figures = _finite(place.figures(arm, run), run)
        except FatalError as error:
            print(f"warning: {error}; the record of {run} keeps the figures that it has", file=sys.stderr)
            continue
        if kept := results.replace_figures(place.regime, arm, place.seed, figures):
            print(f"warning: {run} has no {', '.join(kept)} any more; its record keeps them", file=sys.stderr)


def _warn_of_versions(others: Collection[str], out: Path) -> None:
    """Says that a study goes on with runs of other versions of the code, which may train otherwise."""
    if others:
        print(
            f"warning: {out / 'results.json'} has runs of other versions of the code ({', '.join(sorted(others))}); "
            f"these are of {code_version()}. The tables say which run is of which",
            file=sys.stderr,
        )


def _finite(figures: Figures, run: Path) -> Figures:
    """The figures without numbers that JSON does not have, which a run leaves behind that has diverged."""
    wrong = [name for name, value in figures.items() if value is not None and not math.isfinite(value)]
    if wrong:
        print(f"warning: {run} has no finite {', '.join(wrong)}; its record leaves them out", file=sys.stderr)
    return {name: None if name in wrong else value for name, value in figures.items()}


def _train(place: Place, arm: str, run: Path, actors: int) -> Figures:
    """Trains one run, unless that is done, and returns its figures. Blocks as long as that takes.

    Raises:
        FatalError: it is done, with other settings, or lacks what is read.
    """
    with place.around(arm, run) as further:
        own = ["--run.dir", str(run), "--run.seed", str(place.seed), *further]
        settings = files_first([*place.settings(arm), *own])
        config = load(settings)  # so that a wrong flag is an error before anything is started
        if read_summary(run) is None:
            run_all(settings, run, actors)
        else:  # it was stopped before its record was written
            check_settings(run, config)
    try:
        return place.figures(arm, run)
    except FatalError as error:
        raise FatalError(f"{error}; remove {run}, so that it is trained again") from None
