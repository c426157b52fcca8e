"""How every benchmark is run, and what it prints."""

from __future__ import annotations

import inspect
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from scripts.command import parser, plain_errors

Result = TypeVar("Result")


@dataclass(frozen=True)
class Row:
    """One measured figure."""

    metric: str
    value: float
    unit: str
    baseline: str | None = None  # its name and figure
    ratio: float | None = None  # how many times better than the baseline
    goal: str | None = None
    ok: bool | None = None  # whether the goal is met


def run(measure: Callable[..., list[Row]], doc: str | None) -> None:
    """Runs a benchmark as a command: ``measure`` gets an empty directory, and the flags that it has as parameters."""
    name = Path(inspect.getfile(measure)).stem
    with tempfile.TemporaryDirectory() as scratch, plain_errors():
        work = partial(measure, Path(scratch))
        options = parser(work, doc)
        options.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
        flags = vars(options.parse_args())
        as_json = flags.pop("json")
        if rows := work(**flags):
            report(name, rows, as_json)


def timed(
    work: Callable[[], Result], repeat: int = 1, before: Callable[[], object] = lambda: None
) -> tuple[float, Result]:
    """The least seconds of some runs, and what the last one gave; ``before`` each comes what does not count."""
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
