"""Runs a study on an offline world, or on your own model and data: arms x worlds x seeds, with tables and a picture.

    lrpo study router [--seeds 0,1,2,3,4] [--regimes region,one-language,equal] [--arms ours,uniform] [--out DIR]
    lrpo study router --base "configs/lrpo.toml configs/models/qwen2.5-1.5b.toml my-data.toml" --best-language en
    lrpo study recipes [--seeds 0,1,2] [--recipes naive-grpo,strict-lc] [--steps 100] [--out DIR]

``router`` compares ways to choose the languages of the rollouts. ``mechanism`` changes one setting of learned routing
at a time. All arms of a seed and a world have the same questions, the same warm-started policy, equally many steps and
rollouts. In the world ``region`` a question's region and topic decide which languages know its answer; in
``one-language`` one language knows all; in ``equal`` each question has three languages of its own, and nothing tells
them. The arms ``best-fixed`` and ``fixed-only`` draw the one language that knows most of the trained questions, which
only hindsight tells.

``recipes`` trains the policy of the reasoning world with each published recipe, and measures in which language it then
thinks and how often it is right (docs/papers.md). Model, lengths, groups and steps are the world's.

Seeds are the outermost loop, so the study is balanced whenever it is stopped; the same command goes on, in the middle
of a run as well. ``OUT/results.json`` has a record for each finished run: its figures, a hash of its settings, the
version of the code, and the seconds since the run was last begun. ``--report`` only reads it: all of it, or what
``--arms``, ``--regimes`` and ``--seeds`` name. ``--measure-again`` reads the figures anew from the directories of the
runs, after a change of what a figure means.

With ``--base`` nothing is prepared: its files and flags name the model and the data. Further flags
``--section.key value`` are settings of all arms. What an arm or the study itself sets cannot be given.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from common.config import load
from common.gpus import usable_gpus
from common.process import FatalError
from scripts.ops.command_line import command, files_first
from scripts.ops.local_run import count_actors
from scripts.study.experiments import recipes
from scripts.study.experiments.arms import Name, arms_of, needs_world
from scripts.study.experiments.facts_world import REGIMES, FactsWorld, OwnData
from scripts.study.experiments.given import check_given
from scripts.study.experiments.place import Place
from scripts.study.experiments.reasoning_world import ReasoningWorld
from scripts.study.experiments.report import left_out, records_of, select, write_report
from scripts.study.experiments.results import Results, sole_user
from scripts.study.experiments.runner import measure_again, missing_runs, train_missing

_ROOT = Path(__file__).parents[3]
_SEEDS = "0,1,2,3,4"


def _chosen(what: str, given: str, known: Sequence[str]) -> list[str]:
    """The names of a list with commas.

    Raises:
        FatalError: one is not known.
    """
    names = list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip())) or list(known)
    if unknown := sorted(set(names) - set(known)):
        raise FatalError(f"--{what} {unknown[0]}: there are {', '.join(known)}")
    return names


def _recipes(given: str) -> list[str]:
    """The recipes of a list with commas.

    Raises:
        FatalError: one cannot run on the world.
    """
    for name in filter(None, map(str.strip, given.split(","))):
        recipes.adaptation(name)
    return _chosen("recipes", given, recipes.runnable())


def _own_flags(name: Name, chosen: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The flags that set each of the arms apart."""
    return {arm: recipes.adaptation(arm).flags if name == "recipes" else arms_of(name)[arm] for arm in chosen}


def _most_actors(place: Place, arm: str) -> int:
    """As many as this machine's GPUs are enough for; one without GPUs."""
    return count_actors(usable_gpus(), load(files_first(place.settings(arm))))


def _seeds(given: str) -> list[int]:
    seeds = [seed.strip() for seed in given.split(",")]
    if not all(seed.isdecimal() for seed in seeds):
        raise FatalError(f"--seeds {given}: whole numbers, separated by commas")
    return list(dict.fromkeys(map(int, seeds)))


@command(name="lrpo study", passes_flags_on=True)
def main(
    context: typer.Context,
    name: Annotated[Name, typer.Argument(help="Which study.")],
    *,
    seeds: Annotated[
        str,
        typer.Option(help="Seeds, separated by commas: of the world, the warm start and the run; default: 0,1,2,3,4."),
    ] = "",
    regimes: Annotated[str, typer.Option(help="Worlds of facts, separated by commas; default: all three.")] = "",
    arms: Annotated[
        str, typer.Option("--arms", "--recipes", help="Arms, separated by commas; default: all of the study.")
    ] = "",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of a run; default: 40, and 100 of recipes.")] = None,
    base: Annotated[str, typer.Option(help="Files and flags with your own model and data, instead of a world.")] = "",
    best_language: Annotated[
        str | None, typer.Option(help="With --base, the language of best-fixed and fixed-only.")
    ] = None,
    actors: Annotated[
        int | None, typer.Option(min=1, help="Actors of each run; default: one, or as many as GPUs.")
    ] = None,
    warm_start_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the warm start.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory of results.json, the tables and the runs; default: runs/study or runs/recipes."),
    ] = None,
    cache: Annotated[Path, typer.Option(help="Where worlds and policies are kept.")] = _ROOT / ".cache" / "study",
    keep: Annotated[bool, typer.Option("--keep", help="Keep checkpoints and models.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Train nothing; only write tables and picture.")] = False,
    again: Annotated[
        bool, typer.Option("--measure-again", help="Train no run; read the figures of the finished runs anew.")
    ] = False,
    compared: Annotated[
        str | None, typer.Option("--compare-with", help="The arm that tables compare with; default: ours.")
    ] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Say what the runs need and how many there are.")] = False,
) -> None:
    of_recipes = name == "recipes"
    if of_recipes and (base or regimes or best_language):
        raise FatalError("lrpo study recipes has one world: --base, --regimes and --best-language are of other studies")
    if compared and (of_recipes or compared not in arms_of(name)):
        choice = "it is for the other studies" if of_recipes else f"there are {', '.join(arms_of(name))}"
        raise FatalError(f"--compare-with {compared}: {choice}")
    if base and (regimes or warm_start_steps):
        raise FatalError("--regimes and --warm-start-steps are of the offline worlds, which --base leaves out")
    if sum((report, again, dry)) > 1:
        raise FatalError("--report, --measure-again and --dry-run do different things: give one of them")
    if best_language and not base:
        raise FatalError(
            "--best-language goes with --base: of the offline world the study knows which language knows most"
        )
    given = [*context.args, *(("--learner.steps", str(steps)) if steps else ())]
    cache, out = cache.absolute(), (out or Path("runs") / ("recipes" if of_recipes else "study")).absolute()
    chosen = _recipes(arms) if of_recipes else _chosen("arms", arms, list(arms_of(name)))
    if base and not arms and (left_to_world := [arm for arm in chosen if needs_world(arms_of(name)[arm])]):
        print(f"left out, as they are for the offline world: {', '.join(left_to_world)}")
        chosen = [arm for arm in chosen if arm not in left_to_world]
    check_given(given, _own_flags(name, chosen), has_world=not base)
    numbers = _seeds(seeds or _SEEDS)
    places: list[Place]
    if of_recipes:
        places = [ReasoningWorld(seed, cache, given, warm_start_steps) for seed in numbers]
    elif base:
        places = [OwnData(seed, [*shlex.split(base), *given], arms_of(name), best_language) for seed in numbers]
    else:
        warm_start = ["--steps", str(warm_start_steps)] if warm_start_steps else []
        worlds = _chosen("regimes", regimes, REGIMES)
        places = [
            FactsWorld(world, seed, cache, arms_of(name), given, warm_start) for seed in numbers for world in worlds
        ]
    if not base:
        # The worlds are for the CPU, even on a machine with a GPU: with NCCL, learner and engine cannot share one.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    runs = [(place, arm) for place in places for arm in chosen]
    if dry:
        left = len(missing_runs(runs, Results(out / "results.json")))
        print(f"{left} of {len(runs)} runs are left to do" + ("; each of them needs:" if base else ""))
        if of_recipes:
            print(left_out())
        if base:
            from scripts.ops import dry_run  # imports torch, which takes seconds and is of no use to the other studies

            dry_run.main(files_first(places[0].settings(chosen[0])))
        return
    if not report:
        with sole_user(out):
            try:
                if again:
                    measure_again(runs, Results(out / "results.json"), out)
                else:
                    count = actors or (_most_actors(*runs[0]) if base else 1)
                    train_missing(runs, Results(out / "results.json"), out, count, keep)
            except KeyboardInterrupt:
                print(f"\ninterrupted; the same command goes on, --report shows what is in {out}", file=sys.stderr)
                raise
    records = records_of(name, Results(out / "results.json").records)
    if report:
        regimes_named = {place.regime for place in places} if regimes else None
        records = select(records, chosen if arms else None, regimes_named, numbers if seeds else None)
    if not records:
        raise FatalError(f"{out / 'results.json'} has no finished run of this{' choice' if report else ' study'} yet")
    print(write_report(name, records, out, compared))


if __name__ == "__main__":
    main()
