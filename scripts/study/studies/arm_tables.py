"""The tables and the picture of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.study.choices import markdown
from scripts.study.statistics import Floats, Interval, holm, paired_test, seed_interval

Records = Sequence[Mapping[str, Any]]  # of results.json: regime, arm, seed, figures, ...


def compare_arms(records: Records, regime: str, base: str, figure: str) -> list[dict[str, Any]]:
    """A row for each arm of a regime: mean over seeds, and the base's advantage over it, paired by seed.

    ``difference`` is the base less the arm, on the seeds that both have, with a 95% interval of Student's t. The
    p-value is that of the paired t test; it also comes adjusted by Holm's method for the number of arms. g is the
    effect size.
    """
    by_arm: dict[str, dict[int, float]] = {}
    for record in records:
        value = record["figures"].get(figure)
        if record["regime"] == regime and value is not None:
            by_arm.setdefault(record["arm"], {})[record["seed"]] = value
    rows = []
    for arm, values in by_arm.items():
        row: dict[str, Any] = {"arm": arm, "seeds": len(values), "mean": seed_interval(_array(values.values()))}
        shared = sorted(values.keys() & by_arm.get(base, {}).keys())
        if arm != base and shared:
            differences = _array(by_arm[base][seed] - values[seed] for seed in shared)
            row["difference"] = seed_interval(differences)
            row["p"], row["effect"] = paired_test(differences)
        rows.append(row)
    compared = [row for row in rows if "difference" in row]
    for row, adjusted in zip(compared, holm([row["p"] for row in compared]), strict=True):
        row["p_adjusted"] = adjusted
    return rows


def _array(values: Any) -> Floats:
    return np.array(list(values), np.float64)


def tables(records: Records, base: str, figures: Mapping[str, str]) -> str:
    """A table in Markdown for each regime and figure.

    Args:
        figures: name -> what it means.
    """
    parts = []
    for regime in dict.fromkeys(record["regime"] for record in records):
        for figure in figures:
            rows = [
                [
                    row["arm"],
                    str(row["seeds"]),
                    _interval(row["mean"]),
                    *(
                        [_interval(row["difference"], "+"), f"{row['p_adjusted']:.3f}", f"{row['effect']:+.2f}"]
                        if "difference" in row
                        else ["", "", ""]
                    ),
                ]
                for row in compare_arms(records, regime, base, figure)
            ]
            if rows:
                head = ["arm", "seeds", figure, f"{base} less this", "p, adjusted", "g"]
                parts.append(f"**{regime}: {figure}**, {figures[figure]}\n\n{markdown(head, rows)}")
    return "\n\n".join(parts)


def _interval(one: Interval, sign: str = "") -> str:
    return f"{one[0]:{sign}.3f} [{one[1]:{sign}.3f}, {one[2]:{sign}.3f}]"


def draw(records: Records, base: str, figure: str, path: Path) -> None:
    """Draws the base's advantage over every arm with its interval, a panel for each regime."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    regimes = list(dict.fromkeys(record["regime"] for record in records))
    drawing, axes = pyplot.subplots(
        1, len(regimes), figsize=(4.2 * len(regimes), 3.4), sharey=True, layout="constrained", squeeze=False
    )
    for panel, regime in zip(axes[0], regimes, strict=True):
        rows = [row for row in compare_arms(records, regime, base, figure) if "difference" in row]
        for place, row in enumerate(rows):
            mean, low, high = row["difference"]
            panel.plot([low, high], [place, place], color="C0", lw=2)
            panel.plot(mean, place, "o", color="C0")
        panel.axvline(0, color="grey", ls=":")
        panel.set_yticks(range(len(rows)), [row["arm"] for row in rows])
        panel.set(title=regime, xlabel=f"{figure}: {base} less the arm")
    drawing.savefig(path, dpi=100)
    pyplot.close(drawing)
