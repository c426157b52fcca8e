"""The table of the study ``recipes``: a row for the warm start, and one for each recipe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scripts.study.choices import markdown
from scripts.study.experiments.arm_tables import Records
from scripts.study.statistics import seed_interval

_SHOWN = {
    "lc": "LC",
    "acc": "Acc",
    "both": "LC&Acc",
    "english": "English",
    "lc_all": "LC, all",
    "acc_all": "Acc, all",
    "both_all": "LC&Acc, all",
}


def recipe_table(records: Records) -> str:
    """A table in Markdown: mean over seeds, with half the width of its 95% interval where there are two seeds or more.

    The first row is the warm start, over the seeds that any recipe has. "all" are all held-out questions; the other
    columns leave out English ones.
    """
    arms: dict[str, list[dict[str, float | None]]] = {}
    for record in records:
        arms.setdefault(record["arm"], []).append(record["figures"])
    starts = {record["seed"]: record["figures"] for record in records}
    rows = [["warm start", str(len(starts)), *_cells(list(starts.values()), "_before")]]
    rows[0] += ["", ""]
    for arm, runs in arms.items():
        own = [_cell([run[name] for run in runs], ".0f") for name in ("answers", "training_seconds")]
        rows.append([arm, str(len(runs)), *_cells(runs, ""), *own])
    return markdown(["recipe", "seeds", *_SHOWN.values(), "answers", "seconds"], rows)


def _cells(runs: Sequence[dict[str, float | None]], suffix: str) -> list[str]:
    return [_cell([run[f"{name}{suffix}"] for run in runs], ".3f") for name in _SHOWN]


def _cell(values: Sequence[float | None], form: str) -> str:
    known = np.array([value for value in values if value is not None], np.float64)
    if not len(known):
        return ""
    mean, low, high = seed_interval(known)
    return f"{mean:{form}}" if np.isnan(low) else f"{mean:{form}} ± {(high - low) / 2:{form}}"
