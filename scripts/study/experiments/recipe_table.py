"""The table of the study ``recipes``: a row for the warm start, and one for each recipe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scripts.study.choices import markdown
from scripts.study.experiments.arm_tables import Records
from scripts.study.statistics import seed_interval

_SHOWN = {"lc": "LC", "acc": "Acc", "both": "LC&Acc", "english": "English"}
_CHANGES = ("lc", "acc", "both")
_FEWEST = 3  # seeds, for an interval that says anything: with two it is 12.7 standard errors to each side


def recipe_table(records: Records) -> str:
    """A table in Markdown: means over seeds, of held-out questions in other languages than English.

    The first row is the warm start, over the seeds that any recipe has. Warm starts differ from seed to seed, so what a
    recipe does is the change from the warm start of the same seed: the table has its mean, with half the width of its
    95% interval where there are three seeds or more. Seconds are those of the training.
    """
    arms: dict[str, list[dict[str, float | None]]] = {}
    for record in records:
        arms.setdefault(record["arm"], []).append(record["figures"])
    starts = list({record["seed"]: record["figures"] for record in records}.values())
    before = [_mean([run[f"{name}_before"] for run in starts], ".3f") for name in _SHOWN]
    rows = [["warm start", str(len(starts)), *before, *[""] * (len(_CHANGES) + 2)]]
    for arm, runs in arms.items():
        means = [_mean([run[name] for run in runs], ".3f") for name in _SHOWN]
        changes = [_change(runs, name) for name in _CHANGES]
        own = [_mean([run[name] for run in runs], ".0f") for name in ("answers", "training_seconds")]
        rows.append([arm, str(len(runs)), *means, *changes, *own])
    named = [f"{_SHOWN[name]}, change" for name in _CHANGES]
    return markdown(["recipe", "seeds", *_SHOWN.values(), *named, "answers", "seconds"], rows)


def _change(runs: Sequence[dict[str, float | None]], name: str) -> str:
    pairs = [(run[name], run[f"{name}_before"]) for run in runs]
    known = [after - before for after, before in pairs if after is not None and before is not None]
    if not known:
        return ""
    mean, low, high = seed_interval(np.array(known, np.float64))
    return f"{mean:+.3f}" if len(known) < _FEWEST else f"{mean:+.3f} ± {(high - low) / 2:.3f}"


def _mean(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):{form}}" if known else ""
