"""``results.json``: the records of the finished runs of a study."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from common.process import FatalError
from scripts.study.experiments.files import write_whole

_ROOT = Path(__file__).parents[3]


class Results:
    """The records of the finished runs.

    Raises:
        FatalError: the file is there and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else "[]"
            self.records: list[dict[str, Any]] = json.loads(text)
        except (OSError, ValueError) as error:
            raise FatalError(f"cannot read {path}: {error}; move it away, and the runs are read again") from None

    def has(self, regime: str, arm: str, seed: int, config: str) -> bool:
        """Whether there is a record of this run.

        Args:
            config: what :func:`scripts.study.experiments.figures.settings_hash` gives.

        Raises:
            FatalError: there is one, with other settings.
        """
        for one in self.records:
            if (one["regime"], one["arm"], one["seed"]) == (regime, arm, seed):
                if one["config"] != config:
                    raise FatalError(
                        f"{self._path} has {arm}, {regime}, seed {seed} with other settings: choose another --out, "
                        "or take this record out of it and remove the directory of the run"
                    )
                return True
        return False

    def add(self, record: dict[str, Any]) -> None:
        """Adds a record and writes the file, at once or not at all."""
        self.records.append(record)
        lines = ",\n".join(json.dumps(one, sort_keys=True, allow_nan=False) for one in self.records)
        write_whole(self._path, f"[\n{lines}\n]\n")


def code_version() -> str:
    """The commit of the code, with "+" where files differ from it; "unknown" outside of a repository."""
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude", "*"],
        cwd=_ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return described.stdout.strip() or "unknown"
