"""The learner's own evaluation of the policy that all arms of a place start from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.process import FatalError
from scripts.study.experiments.files import write_whole

_OF, _START = "settings", "starts_from"  # beside the sets of questions in the file


class WarmStart:
    """The evaluation of the warm start, made by the first of its runs and kept for the others.

    Args:
        path: the file in which it is kept.
        settings: a hash of what the runs share. What is kept of others is not theirs, and is replaced.
        starts_from: digests of the policy that is evaluated and of its world, by name.

    Raises:
        FatalError: the file cannot be read, or is of another policy or world with the same settings.
    """

    def __init__(self, path: Path, settings: str, starts_from: Mapping[str, str] | None = None) -> None:
        self._path, self._settings, self._starts_from = path, settings, dict(starts_from or {})
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            of, start = found.pop(_OF, settings), found.pop(_START, {})  # earlier versions did not write them
            differs = [name for name, digest in self._starts_from.items() if start.get(name, digest) != digest]
        except (OSError, ValueError, AttributeError) as error:
            raise FatalError(
                f"cannot read {path}: {error}; remove it, and a run evaluates the warm start again"
            ) from None
        if of == settings and differs:
            raise FatalError(
                f"{path} is of another {' and another '.join(differs)} than these runs would start from now. Put back "
                "the world and the policy that it is of, choose another --out, or remove this file and the records and "
                "runs of this seed"
            )
        self.evaluation = found if of == settings else {}

    def keep(self, evaluation: dict[str, Any]) -> None:
        """Keeps an evaluation, unless it is empty or there is one."""
        if evaluation and not self.evaluation:
            self.evaluation = evaluation
            write_whole(self._path, json.dumps({_OF: self._settings, _START: self._starts_from, **evaluation}))
