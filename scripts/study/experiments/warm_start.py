"""The learner's own evaluation of the policy that all arms of a place start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.study.experiments.files import write_whole


class WarmStart:
    """The evaluation of the warm start, made by the first of its runs and kept for the others.

    Args:
        path: the file in which it is kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.evaluation: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def keep(self, evaluation: dict[str, Any]) -> None:
        """Keeps an evaluation, which is not empty, unless there is one."""
        if not self.evaluation:
            self.evaluation = evaluation
            write_whole(self._path, json.dumps(evaluation))
