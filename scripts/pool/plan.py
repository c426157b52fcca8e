"""Predicts step time, staleness and utilisation of a pool, and recommends settings; docs/tuning.md explains its use.

    python -m scripts.pool.plan --pool POOL.toml [--run RUN] [--json] [--plot OUT.png] [CONFIG.toml] [--section.key V]

Settings are those of the run, which configuration files and flags override. Rates are those of the pool file, or else
those that the run measured.
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
from scripts.pool.planner import forecast, make_scenario, recommend
from scripts.pool.pool_file import read_pool
from scripts.pool.simulation import Forecast, Scenario


def text(scenario: Scenario, found: Forecast, advice: dict[str, Any]) -> str:
    """The prediction and the recommendation, for people."""
    lines = [
        f"step            {found.step_s:.3g} s, {found.tokens_per_second:.0f} tokens/s",
        f"staleness       {found.lag_mean:.2f} on average, {found.lag_max} at most "
        f"(bound {staleness_bound(scenario.groups_per_step, scenario.staleness, scenario.window)})",
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
    pool: Annotated[Path, typer.Option(help="The pool file: the nodes with their roles, and rates.")],
    run: Annotated[Path | None, typer.Option(help="A finished run, whose settings and rates are used.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON instead of text.")] = False,
    plot: Annotated[Path | None, typer.Option(help="A picture to draw; its ending selects the format.")] = None,
) -> None:
    machines, measured = read_pool(pool), read_run(run) if run else None
    scenario = make_scenario(machines, measured, load(context.args, measured.config if measured else None), pool)
    found, advice = forecast(scenario), recommend(scenario)
    if plot:
        draw(scenario, found, advice, plot)
    figures = {name: value for name, value in vars(found).items() if name != "spans"}
    print(json.dumps({"forecast": figures, "recommended": advice}) if as_json else text(scenario, found, advice))


if __name__ == "__main__":
    main()
