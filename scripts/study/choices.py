"""What runs in which the policy chooses its language came to, stage by stage and setting by setting, over seeds.

    python -m scripts.study.choices policy=runs/policy-0,runs/policy-1 hybrid=runs/hybrid-0 english=runs/english-0 \\
        [--png explang.png]

An arm is NAME=RUN_DIR,RUN_DIR of seeds, finished. Prints Markdown: means over seeds with the half-width of their 95%
interval (Student's t), where there are two seeds at least.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.config import Config
from common.process import FatalError
from scripts.study.compare import arm_of

Floats = NDArray[np.float64]

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
        """Of an evaluation, ``learner/train/stages.py`` has the metrics."""
        return float(self.summary[f"evaluation_{when}"][f"{questions}_settings"][f"{setting}_{metric}"])


def read(directory: Path) -> Run:
    """
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


def told(values: Sequence[float] | Floats) -> str:
    """Mean over seeds, with ± the half-width of its 95% interval where there are two."""
    some = np.asarray(values, np.float64)
    if len(some) < 2:
        return f"{some[0]:.3f}"
    half = stats.t.ppf(0.975, len(some) - 1) * some.std(ddof=1) / np.sqrt(len(some))
    return f"{some.mean():.3f} ± {half:.3f}"


def by_stage(runs: Sequence[Run]) -> list[list[str]]:
    """Rows of each stage's first and last steps, and of the change between."""
    rows = []
    for number, (first, end) in enumerate(runs[0].stages, 1):
        window = min(_WINDOW, end - first)
        means = [
            {name: [float(np.nanmean(run.series[name][at : at + window])) for run in runs] for name in _SERIES}
            for at in (first, end - window)
        ]
        for at, values in zip((first, end - window), means, strict=True):
            rows.append([f"stage {number}, steps {at + 1}–{at + window}", *map(told, values.values())])
        changes = [np.subtract(means[1][name], means[0][name]) for name in _SERIES]
        rows.append([f"stage {number}, change", *map(told, changes)])
    return rows


def by_setting(arms: Mapping[str, Sequence[Run]], metric: str) -> list[list[str]]:
    """Rows of each arm and setting that was sampled: before → after, of trained and of held-out questions."""
    rows = []
    for arm, runs in arms.items():
        for setting in _SETTINGS:
            cells = [
                " → ".join(told([run.share(when, asked, setting, metric) for run in runs]) for when in _WHEN)
                for asked in _QUESTIONS
            ]
            rows.append([f"{arm}, {setting}", *cells])
    return rows


def draw(arms: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Each series of the arms that chose, by step: a line a seed, means of ten steps; a stage begins at dots."""
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
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.study.choices", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("arms", nargs="+", metavar="NAME=RUN_DIR,…", help="finished runs, of seeds")
    parser.add_argument("--png", type=Path, help="a picture of the arms that chose")
    args = parser.parse_args(arguments)
    try:
        named = [arm_of(arm) for arm in args.arms]
        arms = {name: [read(Path(part)) for part in text.split(",")] for name, text in named}
    except FatalError as error:
        raise SystemExit(f"error: {error}") from None
    chose = {name: runs for name, runs in arms.items() if np.isfinite(runs[0].series["choice entropy"]).any()}
    for name, runs in chose.items():
        print(f"\n{name}, {len(runs)} seeds\n\n{markdown(['', *_SERIES], by_stage(runs))}")
    for metric in ("accuracy_kept", "compliance"):
        print(f"\n{metric}\n\n{markdown(['', *_QUESTIONS], by_setting(arms, metric))}")
    if args.png and chose:
        draw(chose, args.png)


if __name__ == "__main__":
    main()
