"""``router.jsonl``: what the router has learned, a line for each time it is logged."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from learner.report.best_effort import BestEffortFiles

_STEPS = 5  # between two lines, at least: a line has some hundred kilobytes where topics and regions are many


def steps_between_lines(interval: int) -> int:
    """The policy steps between two lines: a multiple of the steps between two updates of the router."""
    return interval * math.ceil(_STEPS / interval)


class RouterLog:
    """Appends lines to a file, which may already hold those of the run up to a checkpoint.

    Args:
        begin: the step that a resumed run continues from; lines of later steps are removed.
    """

    def __init__(self, path: Path, begin: int, files: BestEffortFiles) -> None:
        self._path, self._files = path, files
        with files.writing(path):
            if path.exists():
                self._cut(begin)

    def append(self, line: Mapping[str, Any]) -> None:
        with self._files.writing(self._path), self._path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _cut(self, begin: int) -> None:
        """Cuts off the lines of later steps. What stays is not written again, so that nothing of it can be lost."""
        with self._path.open("r+b") as lines:
            position, end, is_whole = 0, 0, True
            for line in lines:
                position += len(line)
                if _step_of(line) <= begin:
                    end, is_whole = position, line.endswith(b"\n")
            lines.truncate(end)
            if not is_whole:
                lines.seek(end)
                lines.write(b"\n")


def _step_of(line: bytes) -> float:
    """The step of a line; infinite if it is none, because the process was killed or the disk full as it wrote it."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the first also where it was cut within a character
        return math.inf
