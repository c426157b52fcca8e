"""Writes what a study has found: ``tables.md`` and ``differences.png`` of its directory."""

from __future__ import annotations

from pathlib import Path

from scripts.ops.recipes import recipe_files
from scripts.study.experiments import figures
from scripts.study.experiments.arm_tables import Records, draw, tables
from scripts.study.experiments.arms import Name, arms_of, has_own_reward
from scripts.study.experiments.reasoning_world import REGIME
from scripts.study.experiments.recipe_table import recipe_table
from scripts.study.experiments.recipes import BASE, LEFT_OUT, adaptation, runnable

# What the picture shows of a study. Some arms of ``mechanism`` have other rewards, so there it is about right answers.
_DRAWN: dict[Name, str] = {"router": "own_heldout", "mechanism": "accuracy_heldout", "recipes": "both"}


def records_of(name: Name, records: Records) -> Records:
    """The records of a study, of a file that may hold those of others as well."""
    of_recipes = name == "recipes"
    arms = recipe_files() if of_recipes else arms_of(name)
    return [record for record in records if record["arm"] in arms and (record["regime"] == REGIME) == of_recipes]


def write_report(name: Name, records: Records, out: Path, compared: str | None = None) -> str:
    """Writes tables and picture of the finished runs of a study into a directory, and returns the tables.

    Args:
        compared: the arm that the others are compared with; None: the first of the study. Not for recipes.
    """
    if name == "recipes":
        text, base = f"{recipe_table(records)}\n\n{what_differs()}\n\n{left_out()}", BASE
    else:
        base = compared or next(iter(arms_of(name)))
        own_reward = [arm for arm, flags in arms_of(name).items() if has_own_reward(flags)]
        text = tables(records, base, figures.MEANING, own_reward)
    text += versions(records)
    (out / "tables.md").write_text(text + "\n", encoding="utf-8")
    draw(records, base, _DRAWN[name], out / "differences.png")
    return text


def versions(records: Records) -> str:
    """Which version of the code trained which run, where there are several; else nothing."""
    found: dict[tuple[str, str], dict[str, list[int]]] = {}
    for record in records:
        of_arm = found.setdefault((record["regime"], record["arm"]), {})
        of_arm.setdefault(record.get("code", "unknown"), []).append(record["seed"])
    if len({code for of_arm in found.values() for code in of_arm}) < 2:
        return ""
    lines = [
        f"* {regime}, `{arm}`: "
        + "; ".join(f"`{code}` (seeds {', '.join(map(str, sorted(seeds)))})" for code, seeds in of_arm.items())
        for (regime, arm), of_arm in found.items()
    ]
    return "\n\n".join(["\n\n**Versions of the code** that trained the runs", "\n".join(lines)])


def what_differs() -> str:
    """What the runs of a recipe have besides the sizes of the world, a line each."""
    told = [(name, adaptation(name).told) for name in runnable()]
    return "\n".join(f"* `{name}`: {text}" for name, text in told if text)


def left_out() -> str:
    """The recipes that the world lacks something for, with the reason, a line each."""
    return "Not run on this world:\n\n" + "\n".join(f"* `{name}`: {why}" for name, why in LEFT_OUT.items())
