"""The learner's own evaluation of the policy that all arms of a place start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.process import FatalError
from scripts.study.experiments.files import write_whole

_OF = "settings"  # beside the sets of questions in the file


class WarmStart:
    """The evaluation of the warm start, made by the first of its runs and kept for the others.

    Args:
        path: the file in which it is kept.
        settings: a hash of what the runs share. What is kept of others is not theirs, and is replaced.

    Raises:
        FatalError: the file cannot be read.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self._path, self._settings = path, settings
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            of = found.pop(_OF, settings)  # earlier versions did not write it
        except (OSError, ValueError, AttributeError) as error:
            raise FatalError(
                f"cannot read {path}: {error}; remove it, and a run evaluates the warm start again"
            ) from None
        self.evaluation = found if of == settings else {}

    def keep(self, evaluation: dict[str, Any]) -> None:
        """Keeps an evaluation, unless it is empty or there is one."""
        if evaluation and not self.evaluation:
            self.evaluation = evaluation
            write_whole(self._path, json.dumps({_OF: self._settings, **evaluation}))
