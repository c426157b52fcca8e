"""Predicts step time, staleness and use of a pool, and recommends settings for it; docs/tuning.md shows how to use it.

    python -m scripts.pool.plan --pool POOL.toml [--run RUN] [--json] [--plot OUT.png] [CONFIG.toml] [--section.key V]

Settings are those of the run, then of configuration files and flags. Rates are the run's, or those of the pool file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from common.config import load
from learner.work.scheduler import staleness_bound
from scripts.ops.command_line import command
from scripts.pool.drawing import draw
from scripts.pool.measured_run import read_run
from scripts.pool.planner import forecast, make_plan, recommend
from scripts.pool.pool_file import read_pool
from scripts.pool.simulation import Forecast, Plan


def text(plan: Plan, found: Forecast, advice: dict[str, Any]) -> str:
    """The prediction and the recommendation, for people."""
    lines = [
        f"step            {found.step_s:.3g} s, {found.tokens_per_second:.0f} tokens/s",
        f"staleness       {found.lag_mean:.2f} on average, {found.lag_max} at most "
        f"(bound {staleness_bound(plan.groups_per_step, plan.staleness, plan.window)})",
        *(f"{name:<16}{share:4.0%} of the time" for name, share in sorted(found.busy.items())),
        f"recommended     learner.staleness = {advice['staleness']}, "
        f"learner.groups_per_step = {advice['groups_per_step']}: {advice['tokens_per_second']:.0f} tokens/s, "
        f"staleness {advice['lag_mean']:.2f}",
        "the learner could train what " + ", or ".join(
            f"{number:.1f} actors like {kind}" for kind, number in advice["actors_to_fill_the_learner"].items()
        ) + f" generate; these generate {advice['actors_share_of_learner']:.0%} of that",
    ]  # fmt: skip
    return "\n".join(lines)


@command(OSError, passes_flags_on=True)
def main(
    context: typer.Context,
    *,
    pool: Annotated[Path, typer.Option(help="The pool file: who does what, and rates.")],
    run: Annotated[Path | None, typer.Option(help="A finished run, whose settings and rates are used.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON instead of text.")] = False,
    plot: Annotated[Path | None, typer.Option(help="A picture to draw; its ending says which kind.")] = None,
) -> None:
    machines, measured = read_pool(pool), read_run(run) if run else None
    plan = make_plan(machines, measured, load(context.args, measured.config if measured else None), pool)
    found, advice = forecast(plan), recommend(plan)
    if plot:
        draw(plan, found, advice, plot)
    figures = {name: value for name, value in vars(found).items() if name != "spans"}
    print(json.dumps({"forecast": figures, "recommended": advice}) if as_json else text(plan, found, advice))


if __name__ == "__main__":
    main()
