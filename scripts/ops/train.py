"""Trains on this machine, with the GPUs that it has: starts learner, reward process and actors, and ends them all.

    lrpo train CONFIG.toml ... [--actors N] [--section.key value] ...      (or ./scripts/train.sh)
    lrpo train --recipe NAME MODEL TRAIN [HELDOUT] [CONFIG.toml ...] [--section.key value] ...

The second form runs a published recipe, which ``lrpo recipes`` lists, on a model (a directory, a name of the hub, or
a file of configs/models/) and its questions; the files and flags change it.

Files are merged from left to right, then flags. Without a GPU everything runs on the CPU, with one actor. The same
command resumes a run that was interrupted. The output of every process is in ``logs`` of the run's directory. The
data are read and checked before anything is started.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from common.config import load
from scripts.ops.command_line import command
from scripts.ops.local_run import gains, run_all, run_to_end
from scripts.ops.recipes import recipe_settings


def finish(run_dir: Path) -> None:
    """Prints the most important figures of a finished run."""
    path = run_dir / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    print(gains(summary))
    print(f"exported model: {run_dir / 'model'}; all figures: {path}")


@command(name="train.sh", passes_flags_on=True)
def main(
    context: typer.Context,
    *,
    actors: Annotated[
        int | None, typer.Option(min=1, help="Actor processes; default: as many as there are GPUs for, else one.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="A published recipe: lrpo recipes lists them.")] = "",
) -> None:
    settings = recipe_settings(recipe, context.args) if recipe else context.args
    directory = load(settings).run.dir
    try:
        run_to_end(["-m", "scripts.data.check", *settings])
        run_all(settings, directory, actors)
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command resumes {directory}", file=sys.stderr)
        raise
    finish(directory)


if __name__ == "__main__":
    main()
