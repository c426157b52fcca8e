"""Runs a benchmark in an empty directory, and prints its rows as a table or as JSON."""

from __future__ import annotations

import inspect
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

Result = TypeVar("Result")
Json = Annotated[bool, typer.Option("--json", help="One line of JSON instead of a table.")]


@dataclass(frozen=True)
class Row:
    """One measured figure, as a row of the table."""

    metric: str
    value: float
    unit: str
    baseline: str | None = None  # its name and figure
    ratio: float | None = None  # how many times better than the baseline
    goal: str | None = None
    ok: bool | None = None  # whether the goal is met


def run(measure: Callable[..., list[Row]], as_json: bool, **flags: Any) -> None:
    """Calls ``measure`` with an empty directory and the flags, and prints the rows that it returns, if any."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(Path(scratch), **flags)
    if rows:
        report(Path(inspect.getfile(measure)).stem, rows, as_json)


def timed(
    work: Callable[[], Result], repeat: int = 1, before: Callable[[], object] = lambda: None
) -> tuple[float, Result]:
    """The shortest time of ``repeat`` runs in seconds, and the result of the last run.

    Args:
        before: called before each run; its time does not count.
    """
    spent = []
    for _ in range(repeat):
        before()
        begin = time.perf_counter()
        result = work()
        spent.append(time.perf_counter() - begin)
    return min(spent), result


def report(name: str, rows: list[Row], as_json: bool) -> None:
    """Prints a table for people, or one line of JSON ``{"name", "rows": [{...}]}``."""
    if as_json:
        print(json.dumps({"name": name, "rows": [asdict(row) for row in rows]}))
        return
    lines = [["metric", "value", "baseline", "ratio", "goal", ""], *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(name)
    for line in lines:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cells(row: Row) -> Iterable[str]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
    verdict = {None: "", True: "ok", False: "MISSED"}[row.ok]
    return [row.metric, f"{row.value:.4g} {row.unit}".rstrip(), row.baseline or "", ratio, row.goal or "", verdict]
