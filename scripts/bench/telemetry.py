"""What telling about a run costs: its share of a step, and how long TensorBoard loads a long one.

    python -m scripts.bench.telemetry [--json] [--steps 10000] [--run RUN_DIR]

Steps of 16 groups of 8 answers in 10 languages by 8 actors go through the real report, with the router's log every
fifth. With ``--run`` the cost is a share of that run's mean step, as its own ``summary.json`` has it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from learner.report.report import Report
from scripts.bench import table
from scripts.bench.support.reports import configuration, learned, random_step
from scripts.bench.table import Row
from scripts.ops.command_line import command

_LANGUAGES = ["ar", "de", "en", "es", "fr", "ja", "ko", "pt", "ru", "zh"]
_GOAL, _LOAD_GOAL_S = 0.01, 10.0


def write(directory: Path, steps: int) -> float:
    """Seconds for each step."""
    rng = np.random.default_rng(0)
    telling, spent = Report(configuration(directory, steps), 2, 0), 0.0
    telling.begin({})
    said = learned(_LANGUAGES, topics=4, regions=8)
    ready = [random_step(rng, 1, actors=8, groups=16, answers=8, languages=_LANGUAGES) for _ in range(10)]
    for number in range(1, steps + 1):
        began = time.perf_counter()
        telling.step(**{**ready[number % 10], "number": number})
        if number % 5 == 0:
            telling.router(number, said)
        spent += time.perf_counter() - began
    telling.close()
    return spent / steps


def measure(directory: Path, steps: int, run: Path | None) -> list[Row]:
    spent = write(directory, steps)
    files = [path for path in (directory / "tensorboard").rglob("*") if path.is_file()]
    began = time.perf_counter()
    for events in {path.parent for path in files}:
        EventAccumulator(str(events)).Reload()
    loaded = time.perf_counter() - began
    rows = [
        Row("telling of a step", 1000 * spent, "ms"),
        Row("loading all steps", loaded, "s", goal=f"<= {_LOAD_GOAL_S:.0f}", ok=loaded <= _LOAD_GOAL_S),
        Row("events", sum(path.stat().st_size for path in files) / 1e6, "MB"),
    ]
    if run:
        shares = json.loads((run / "summary.json").read_text(encoding="utf-8"))["time_shares"]["learner"]
        looped = sum(share for state, share in shares.items() if state not in ("start", "evaluate"))
        share = shares["report"] / looped
        rows.append(Row("telling, of that run's time", share, "", "the rest", 1 / share, f"<= {_GOAL}", share <= _GOAL))
    return rows


@command()
def main(
    *,
    steps: Annotated[int, typer.Option(min=1, help="Steps to report.")] = 10_000,
    run: Annotated[Path | None, typer.Option(help="A finished run, whose steps are the baseline.")] = None,
    as_json: table.Json = False,
) -> None:
    table.run(measure, as_json, steps=steps, run=run)


if __name__ == "__main__":
    main()
