"""Writes what a study has found: ``tables.md`` and ``differences.png`` of its directory."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from common.process import FatalError
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


def select(
    records: Records,
    arms: Container[str] | None,
    regimes: Container[str] | None,
    seeds: Container[int] | None,
) -> Records:
    """The records of these arms, regimes and seeds; None: of all. Holm's method counts the arms of what is left."""
    chosen = {"arm": arms, "regime": regimes, "seed": seeds}
    return [
        record for record in records if all(wanted is None or record[key] in wanted for key, wanted in chosen.items())
    ]


def write_report(name: Name, records: Records, out: Path, compared: str | None = None) -> str:
    """Writes tables and picture of the finished runs of a study into a directory, and returns the tables.

    Args:
        compared: the arm that the others are compared with; None: the first of the study. Not for recipes.

    Raises:
        FatalError: there is no record of the arm that was named for comparison.
    """
    if compared and not any(record["arm"] == compared for record in records):
        raise FatalError(f"--compare-with {compared}: there is no finished run of it among those of the tables")
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
    """Which version of the code trained which run, and which read its figures; nothing where all are of one."""
    trained = _by_version(records, lambda record: record.get("code", "unknown"))
    read = _by_version(records, lambda record: record.get("measured", record.get("code", "unknown")))
    parts = [_listed("that trained the runs", trained)]
    if read != trained:
        parts.append(_listed("that read the figures, where several did: what these mean may differ", read))
    return "".join(parts)


_ByVersion = dict[tuple[str, str], dict[str, list[int]]]  # regime and arm -> version -> seeds


def _by_version(records: Records, version_of: Callable[[Mapping[str, Any]], str]) -> _ByVersion:
    found: _ByVersion = {}
    for record in records:
        of_arm = found.setdefault((record["regime"], record["arm"]), {})
        of_arm.setdefault(version_of(record), []).append(record["seed"])
    return found


def _listed(what: str, found: _ByVersion) -> str:
    """A line for each arm, under a head; nothing where all runs are of one version."""
    if len({code for of_arm in found.values() for code in of_arm}) < 2:
        return ""
    lines = [
        f"* {regime}, `{arm}`: "
        + "; ".join(f"`{code}` (seeds {', '.join(map(str, sorted(seeds)))})" for code, seeds in of_arm.items())
        for (regime, arm), of_arm in found.items()
    ]
    return f"\n\n**Versions of the code** {what}\n\n" + "\n".join(lines)


def what_differs() -> str:
    """What the runs of a recipe have besides the sizes of the world, a line each."""
    told = [(name, adaptation(name).told) for name in runnable()]
    return "\n".join(f"* `{name}`: {text}" for name, text in told if text)


def left_out() -> str:
    """The recipes that the world lacks something for, with the reason, a line each."""
    return "Not run on this world:\n\n" + "\n".join(f"* `{name}`: {why}" for name, why in LEFT_OUT.items())
