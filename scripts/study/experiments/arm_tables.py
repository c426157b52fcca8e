"""The tables and the picture of a study."""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.study.choices import markdown
from scripts.study.experiments.figures import REWARDS
from scripts.study.statistics import Floats, Interval, holm, paired_test, seed_interval

Records = Sequence[Mapping[str, Any]]  # of results.json: regime, arm, seed, figures, ...


def compare_arms(
    records: Records, regime: str, base: str, figure: str, incomparable: Container[str] = ()
) -> list[dict[str, Any]]:
    """A row for each arm of a regime: mean over seeds, and the base's advantage over it, paired by seed.

    ``difference`` is the base less the arm, on the seeds that both have, with a 95% interval of Student's t. The
    p-value is that of the paired t test; it also comes adjusted by Holm's method for the number of arms. g is the
    effect size.

    Args:
        incomparable: arms whose figure is on another scale than the base's; they have no difference.
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
        if arm != base and shared and arm not in incomparable:
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


def overview(records: Records, regime: str, figures: Mapping[str, str]) -> str:
    """A table in Markdown with a row for each figure and a column for each arm: means over its seeds.

    The head has how many seeds an arm has; so has a cell whose figure fewer of them have.
    """
    of_arm: dict[str, list[Mapping[str, float | None]]] = {}
    for record in records:
        if record["regime"] == regime:
            of_arm.setdefault(record["arm"], []).append(record["figures"])
    rows = []
    for figure in figures:
        known = [[value for one in each if (value := one.get(figure)) is not None] for each in of_arm.values()]
        if any(known):
            cells = [_mean_of(values, len(each)) for values, each in zip(known, of_arm.values(), strict=True)]
            rows.append([figure, *cells])
    return markdown(["", *(f"{arm} ({len(each)})" for arm, each in of_arm.items())], rows)


def _mean_of(values: Sequence[float], seeds: int) -> str:
    """The mean as a cell of a table, with the number of values where that is not the arm's number of seeds."""
    if not values:
        return ""
    mean = _short(float(np.mean(_array(values))))
    return mean if len(values) == seeds else f"{mean} ({len(values)})"


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"


def tables(records: Records, base: str, figures: Mapping[str, str], own_reward: Collection[str] = ()) -> str:
    """For each regime an overview, and for each of its figures a table in Markdown.

    Args:
        figures: name -> what it means.
        own_reward: arms with a reward of their own. Where a figure is a reward, they have no difference to others.
    """
    parts = []
    arms = list(dict.fromkeys(record["arm"] for record in records))
    if own := [arm for arm in arms if arm in own_reward]:
        comparable = ", ".join(f"`{figure}`" for figure in figures if figure not in REWARDS)
        parts.append(
            f"Rewards of {', '.join(f'`{arm}`' for arm in own)} are on scales of their own, and have no difference to "
            f"those of other arms. All arms can be compared by {comparable}."
        )
    for regime in dict.fromkeys(record["regime"] for record in records):
        parts.append(f"**{regime}: means** over so many seeds\n\n{overview(records, regime, figures)}")
        for figure in figures:
            incomparable = (arms if base in own_reward else own_reward) if figure in REWARDS else ()
            rows = [_cells(row) for row in compare_arms(records, regime, base, figure, incomparable)]
            if rows:
                head = ["arm", "seeds", figure, f"{base} less this", "p, adjusted", "g"]
                parts.append(f"**{regime}: {figure}**, {figures[figure]}\n\n{markdown(head, rows)}")
    return "\n\n".join(parts)


def _cells(row: Mapping[str, Any]) -> list[str]:
    """A row of :func:`compare_arms` as a table shows it."""
    cells = [row["arm"], str(row["seeds"]), _interval(row["mean"])]
    if "difference" not in row:
        return [*cells, "", "", ""]
    return [*cells, _interval(row["difference"], "+"), _or_none(row["p_adjusted"]), _or_none(row["effect"], "+.2f")]


def _or_none(value: float, form: str = ".3f") -> str:
    return "" if math.isnan(value) else format(value, form)


def _interval(one: Interval, sign: str = "") -> str:
    """The mean and its interval, which one seed does not have."""
    if math.isnan(one[1]):
        return f"{one[0]:{sign}.3f}"
    return f"{one[0]:{sign}.3f} [{one[1]:{sign}.3f}, {one[2]:{sign}.3f}]"


def draw(records: Records, base: str, figure: str, path: Path) -> None:
    """Draws the base's advantage over every arm with its interval, a panel for each regime.

    Args:
        figure: one that is on the same scale for all arms.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    regimes = list(dict.fromkeys(record["regime"] for record in records))
    drawing, axes = pyplot.subplots(
        1,
        len(regimes),
        figsize=(4.2 * len(regimes), 3.4),
        sharex=True,
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    rows = {
        regime: {
            row["arm"]: row["difference"]
            for row in compare_arms(records, regime, base, figure)
            if "difference" in row and not math.isnan(row["difference"][1])  # one seed has no interval
        }
        for regime in regimes
    }
    # The panels share their axes, and a study that goes on has not all arms in all regimes.
    arms = list(dict.fromkeys(arm for differences in rows.values() for arm in differences))
    for panel, regime in zip(axes[0], regimes, strict=True):
        for arm, (mean, low, high) in rows[regime].items():
            place = arms.index(arm)
            panel.plot([low, high], [place, place], color="C0", lw=2)
            panel.plot(mean, place, "o", color="C0")
        panel.axvline(0, color="grey", ls=":")
        panel.set_yticks(range(len(arms)), arms)
        panel.locator_params(axis="x", nbins=5)
        panel.set(title=regime, xlabel=f"{figure}: {base} less the arm")
    drawing.savefig(path, dpi=100)
    pyplot.close(drawing)
