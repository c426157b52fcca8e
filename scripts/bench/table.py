"""What every benchmark prints."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass


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
