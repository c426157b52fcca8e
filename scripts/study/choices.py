"""Tabulates runs in which the policy chooses its language, by stage and by setting, as means over seeds.

    python -m scripts.study.choices policy=runs/policy-0,runs/policy-1 hybrid=runs/hybrid-0 english=runs/english-0 \\
        [--png explang.png]

An arm is NAME=RUN_DIR,RUN_DIR: finished runs, one for each seed. The tables are printed as Markdown. Where there are at
least two seeds, half the width of the 95% interval of the mean (Student's t) follows each mean.
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
from common.intervals import half_width
from common.process import FatalError
from scripts.ops.command_line import command
from scripts.study.compare import arm_of
from scripts.study.statistics import Floats

_WINDOW = 10  # number of steps at each end of a stage that are averaged
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
class FinishedRun:
    """A finished run."""

    stages: list[tuple[int, int]]  # of each its first step, from 0, and the step after its last
    series: Mapping[str, Floats]  # by name, [steps]; nan where the metric was not reported
    summary: Mapping[str, Any]

    def evaluation_share(self, when: str, questions: str, setting: str, metric: str) -> float:
        """A metric of an evaluation, which is a share of its answers; ``learner/evaluate/choices.py`` explains them.

        Args:
            when: "before" or "after" training.
            questions: "train" or "heldout".

        Returns:
            NaN where the run does not have it, as an accuracy where nothing says what is right.
        """
        found: Mapping[str, float] = self.summary[f"evaluation_{when}"][f"{questions}_settings"]
        return float(found.get(f"{setting}_{metric}", np.nan))


def read_run(directory: Path) -> FinishedRun:
    """Reads a run.

    Raises:
        FatalError: the directory holds no finished run.
    """
    try:
        config = Config.model_validate_json((directory / "config.json").read_text(encoding="utf-8"))
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FatalError(f"{directory} holds no finished run: {error}") from None
    steps = config.learner.steps
    events = EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    series = {}
    for name, tag in _SERIES.items():
        series[name] = np.full(steps, np.nan)
        for point in events.Scalars(tag) if tag in events.Tags()["scalars"] else ():
            series[name][point.step - 1] = point.value
    stage_of = [config.learner.stage(step) for step in range(steps)]
    firsts = [step for step in range(steps) if step == 0 or stage_of[step] is not stage_of[step - 1]]
    return FinishedRun(list(zip(firsts, [*firsts[1:], steps], strict=True)), series, summary)


def mean_text(values: Sequence[float] | Floats) -> str:
    """The mean over seeds, followed by ± half the width of its 95% interval where there are at least two seeds."""
    by_seed = np.asarray(values, np.float64)
    if len(by_seed) < 2:
        return f"{by_seed[0]:.3f}"
    return f"{by_seed.mean():.3f} ± {half_width(by_seed):.3f}"


def stage_rows(runs: Sequence[FinishedRun]) -> list[list[str]]:
    """The rows of a table: the means over the first and the last steps of each stage, and the change between them."""
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


def setting_rows(arms: Mapping[str, Sequence[FinishedRun]], metric: str) -> list[list[str]]:
    """The rows of a table: each arm and setting, before → after training, for trained and for held-out questions."""
    rows = []
    for arm, runs in arms.items():
        for setting in _SETTINGS:
            cells = [
                " → ".join(
                    mean_text([run.evaluation_share(when, asked, setting, metric) for run in runs]) for when in _WHEN
                )
                for asked in _QUESTIONS
            ]
            rows.append([f"{arm}, {setting}", *cells])
    return rows


def draw(arms: Mapping[str, Sequence[FinishedRun]], path: Path) -> None:
    """Draws four series, a line for each seed, smoothed over ten steps. A dotted line marks where a stage begins."""
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
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


@command()
def main(
    arms: Annotated[list[str], typer.Argument(metavar="NAME=RUN_DIR,...", help="Finished runs, one for each seed.")],
    *,
    png: Annotated[Path | None, typer.Option(help="A picture of the arms whose policy chose.")] = None,
) -> None:
    named = [arm_of(arm) for arm in arms]
    found = {name: [read_run(Path(part)) for part in text.split(",")] for name, text in named}
    chose = {name: runs for name, runs in found.items() if np.isfinite(runs[0].series["choice entropy"]).any()}
    for name, runs in chose.items():
        print(f"\n{name}, {len(runs)} seeds\n\n{markdown(['', *_SERIES], stage_rows(runs))}")
    for metric in ("accuracy_kept", "compliance"):
        print(f"\n{metric}\n\n{markdown(['', *_QUESTIONS], setting_rows(found, metric))}")
    if png and chose:
        draw(chose, png)


if __name__ == "__main__":
    main()
