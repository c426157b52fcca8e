"""Tabulates runs in which the policy chooses its language, stage by stage and setting by setting, over seeds.

    python -m scripts.study.choices policy=runs/policy-0,runs/policy-1 hybrid=runs/hybrid-0 english=runs/english-0 \\
        [--png explang.png]

An arm is NAME=RUN_DIR,RUN_DIR: finished runs, one for each seed. Prints Markdown: means over seeds, with half
the width of their 95% interval (Student's t) where there are two seeds at least.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.config import Config
from common.process import FatalError
from scripts.ops.command_line import command
from scripts.study.compare import arm_of
from scripts.study.statistics import Floats, half_width

_WINDOW = 10  # steps at each end of a stage
_SERIES = {
    "choice entropy": "selection/choice_entropy",
    "header entropy": "selection/header_entropy",
    "well formed": "selection/well_formed",
    "compliance": "selection/compliance",
    "right and kept": "selection/accuracy_kept",
    "reward": "learning/reward",
}
_SETTINGS = ("free", "routed", "seen", "unseen")
_QUESTIONS, _WHEN = ("train", "heldout"), ("before", "after")


@dataclass(frozen=True)
class Run:
    """A finished run; a series is [steps], nan where a step has no point."""

    stages: list[tuple[int, int]]  # first step and the one after the last, from 0
    series: Mapping[str, Floats]
    summary: Mapping[str, Any]

    def share(self, when: str, questions: str, setting: str, metric: str) -> float:
        """A share of an evaluation; ``learner/train/stages.py`` explains the metrics.

        Args:
            when: "before" or "after" training.
            questions: "train" or "heldout".
        """
        return float(self.summary[f"evaluation_{when}"][f"{questions}_settings"][f"{setting}_{metric}"])


def read(directory: Path) -> Run:
    """The run of a directory.

    Raises:
        FatalError: there is no finished run.
    """
    try:
        config = Config.model_validate_json((directory / "config.json").read_text(encoding="utf-8"))
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FatalError(f"{directory} has no finished run: {error}") from None
    steps = config.learner.steps
    events = EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    series = {}
    for name, tag in _SERIES.items():
        series[name] = np.full(steps, np.nan)
        for point in events.Scalars(tag) if tag in events.Tags()["scalars"] else ():
            series[name][point.step - 1] = point.value
    at = [config.learner.stage(step) for step in range(steps)]
    firsts = [step for step in range(steps) if step == 0 or at[step] is not at[step - 1]]
    return Run(list(zip(firsts, [*firsts[1:], steps], strict=True)), series, summary)


def mean_text(values: Sequence[float] | Floats) -> str:
    """The mean over seeds, with ± half the width of its 95% interval where there are two seeds at least."""
    some = np.asarray(values, np.float64)
    if len(some) < 2:
        return f"{some[0]:.3f}"
    return f"{some.mean():.3f} ± {half_width(some):.3f}"


def by_stage(runs: Sequence[Run]) -> list[list[str]]:
    """Rows of a table: the first and the last steps of each stage, and the change between them."""
    rows = []
    for number, (first, end) in enumerate(runs[0].stages, 1):
        window = min(_WINDOW, end - first)
        means = [
            {name: [float(np.nanmean(run.series[name][at : at + window])) for run in runs] for name in _SERIES}
            for at in (first, end - window)
        ]
        for at, values in zip((first, end - window), means, strict=True):
            rows.append([f"stage {number}, steps {at + 1}–{at + window}", *map(mean_text, values.values())])
        changes = [np.subtract(means[1][name], means[0][name]) for name in _SERIES]
        rows.append([f"stage {number}, change", *map(mean_text, changes)])
    return rows


def by_setting(arms: Mapping[str, Sequence[Run]], metric: str) -> list[list[str]]:
    """Rows of a table: each arm and setting, before → after, for trained and for held-out questions."""
    rows = []
    for arm, runs in arms.items():
        for setting in _SETTINGS:
            cells = [
                " → ".join(mean_text([run.share(when, asked, setting, metric) for run in runs]) for when in _WHEN)
                for asked in _QUESTIONS
            ]
            rows.append([f"{arm}, {setting}", *cells])
    return rows


def draw(arms: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Draws four series by step: a line for each seed, as means of ten steps; dotted lines are where a stage begins."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = ("choice entropy", "header entropy", "compliance", "right and kept")
    figure, axes = pyplot.subplots(1, len(names), figsize=(13, 3), layout="constrained")
    for panel, name in zip(axes, names, strict=True):
        for colour, (arm, runs) in enumerate(arms.items()):
            for number, run in enumerate(runs):
                values = np.nanmean(np.lib.stride_tricks.sliding_window_view(run.series[name], _WINDOW), 1)
                steps = np.arange(len(values)) + (_WINDOW + 1) / 2
                panel.plot(steps, values, color=f"C{colour}", lw=1, label=None if number else f"{arm}, each seed")
        for first, _ in runs[0].stages[1:]:
            panel.axvline(first + 0.5, color="grey", ls=":")
        panel.set(title=name, xlabel="step")
    axes[0].legend()
    figure.savefig(path, dpi=90)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


@command()
def main(
    arms: Annotated[list[str], typer.Argument(metavar="NAME=RUN_DIR,...", help="Finished runs, one for each seed.")],
    *,
    png: Annotated[Path | None, typer.Option(help="A picture of the arms whose policy chose.")] = None,
) -> None:
    named = [arm_of(arm) for arm in arms]
    found = {name: [read(Path(part)) for part in text.split(",")] for name, text in named}
    chose = {name: runs for name, runs in found.items() if np.isfinite(runs[0].series["choice entropy"]).any()}
    for name, runs in chose.items():
        print(f"\n{name}, {len(runs)} seeds\n\n{markdown(['', *_SERIES], by_stage(runs))}")
    for metric in ("accuracy_kept", "compliance"):
        print(f"\n{metric}\n\n{markdown(['', *_QUESTIONS], by_setting(found, metric))}")
    if png and chose:
        draw(chose, png)


if __name__ == "__main__":
    main()
