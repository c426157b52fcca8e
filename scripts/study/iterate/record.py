"""What an iteration was begun with, and what came of each of its stages: one JSON file, written when a stage is whole.

A stage that stands in the file is not done again. An iteration goes on only with the settings, the data and the files
that it had, because half of it would be of one experiment and half of another.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config import Config
from common.process import FatalError
from learner.data.records import Unreadable, read_records
from learner.resume import changes

RECORD_FILE = "iteration.json"
# Harmless to a run that resumes, but not here: a stage that is whole was made with them. The questions themselves are
# compared by their digest, wherever they lie.
_MATTERS = frozenset({
    "learner.steps", "learner.epochs", "data.columns", "data.language", "data.broken_rows", "data.pass_rate",
})  # fmt: skip


class Record:
    """The record of one iteration.

    Args:
        directory: of the iteration.

    Raises:
        FatalError: there is a record that cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory, self.path = directory, directory / RECORD_FILE
        self._content: dict[str, Any] | None = None
        try:
            self._content = json.loads(self.path.read_text(encoding="utf-8"))
            assert self._content is not None
            self.stages: dict[str, dict[str, Any]] = self._content["stages"]
        except FileNotFoundError:
            self.stages = {}
        except (OSError, ValueError, LookupError, AssertionError) as error:
            raise FatalError(f"{self.path} cannot be read: {error!r}. Delete {directory} to do it anew") from None

    def begin(self, begun: Mapping[str, Any]) -> None:
        """Writes down what the iteration begins with, unless a stage is whole."""
        if self._content is None or not self.stages:
            self._content = {"begun": dict(begun), "stages": self.stages}
            self._write()

    def complete(self, stage: str, result: dict[str, Any]) -> None:
        """Enters a stage that is whole."""
        assert self._content is not None, "an iteration is begun before a stage of it is whole"
        self.stages[stage] = result
        self._write()

    def check(self, config: Config, begun: Mapping[str, Any], *, has_own_model: bool) -> None:
        """Refuses to go on with what the iteration was not begun with.

        Args:
            config: of its training, with the questions before they are filtered.
            begun: as ``begin`` would get it.
            has_own_model: whether model.path is the user's, and not the export of the iteration before.

        Raises:
            FatalError: a setting that matters, an option, the data or the earlier iteration is another one.
        """
        if self._content is None:
            return
        before = self._content["begun"]
        listed = [
            str(change)
            for change in changes(before["settings"], config)
            if (change.key in _MATTERS or not change.is_harmless) and (has_own_model or change.key != "model.path")
        ]
        listed += [
            f"{key}: {json.dumps(before['options'].get(key))} -> {json.dumps(value)}"
            for key, value in begun["options"].items()
            if _given(before["options"].get(key)) != _given(value)
        ]
        if listed:
            lines = "\n  ".join(listed)
            raise FatalError(
                f"{self.directory} was begun with other settings, and these matter:\n  {lines}\n"
                "give them as they were, or another run.dir; --from NUMBER=FLAGS changes settings of iterations that "
                "have not begun"
            )
        # Before a stage is whole, all that was made is answers, which are kept by what made and rewarded them.
        for key, digest in before.get("named", begun["named"]).items() if self.stages else ():
            if begun["named"].get(key, digest) != digest:
                raise FatalError(
                    f"what {key} names has changed since {self.directory} was begun: put it back as it was, or delete "
                    f"{self.directory} to do the iteration anew"
                )
        for key, digest in begun["data"].items():
            if before["data"].get(key) != digest:
                raise FatalError(
                    f"{key} has other rows than when {self.directory} was begun: give the data as they were, or "
                    "another run.dir"
                )
        if before["after"] != begun["after"]:
            raise FatalError(
                f"{self.directory} was begun from another training of the iteration before: delete it to do it anew"
            )

    def _write(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            json.dump(self._content, file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)


def _given(option: Any) -> Any:
    """An option as an earlier version had it, which did not know those that are empty by default."""
    if isinstance(option, dict):
        return {name: value for name, value in option.items() if value}
    return option or None


def digest_of_source(source: str) -> str:
    """SHA-256 of the rows of a source, wherever it lies.

    Raises:
        FatalError: it cannot be read.
    """
    found = hashlib.sha256()
    for _, record in read_records(source):
        values = record.reason if isinstance(record, Unreadable) else record
        found.update(json.dumps(values, sort_keys=True, default=str).encode("utf-8", "backslashreplace") + b"\n")
    return found.hexdigest()
