"""Writes what a study has found: ``tables.md`` and ``differences.png`` of its directory."""

from __future__ import annotations

from pathlib import Path

from scripts.study.experiments import figures
from scripts.study.experiments.arm_tables import Records, draw, tables
from scripts.study.experiments.arms import Name, arms_of
from scripts.study.experiments.recipe_table import recipe_table
from scripts.study.experiments.recipes import BASE, LEFT_OUT, adaptation, runnable


def write_report(name: Name, records: Records, out: Path) -> str:
    """Writes tables and picture of the finished runs into a directory, and returns the tables."""
    if name == "recipes":
        text, base, drawn = f"{recipe_table(records)}\n\n{what_differs()}\n\n{left_out()}", BASE, "both"
    else:
        base, drawn = next(iter(arms_of(name))), "own_heldout"
        text = tables(records, base, figures.MEANING)
    (out / "tables.md").write_text(text + "\n", encoding="utf-8")
    draw(records, base, drawn, out / "differences.png")
    return text


def what_differs() -> str:
    """What the runs of a recipe have besides the sizes of the world, a line each."""
    told = [(name, adaptation(name).told) for name in runnable()]
    return "\n".join(f"* `{name}`: {text}" for name, text in told if text)


def left_out() -> str:
    """The recipes that the world lacks something for, with the reason, a line each."""
    return "Not run on this world:\n\n" + "\n".join(f"* `{name}`: {why}" for name, why in LEFT_OUT.items())
