"""``results.json``: the records of the finished runs of a study."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.process import FatalError
from scripts.study.experiments.files import write_whole
from scripts.study.experiments.place import Figures

_ROOT = Path(__file__).parents[3]
_LOCK_FILE = "study.lock"  # it stays, and means nothing unless a process holds the lock
_KEYS = {"regime", "arm", "seed", "config", "figures"}  # the others came later
_START = "starts_from"


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
            for number, one in enumerate(self.records):
                if missing := _KEYS - one.keys():
                    raise FatalError(f"{path}, record {number} (from 0) lacks {', '.join(sorted(missing))}")
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise FatalError(f"cannot read {path}: {error}; move it away, and the runs are read again") from None

    def has(self, regime: str, arm: str, seed: int) -> bool:
        """Whether there is a record of this run."""
        return any((one["regime"], one["arm"], one["seed"]) == (regime, arm, seed) for one in self.records)

    def check(self, regime: str, arm: str, config: str) -> None:
        """Refuses records of an arm that are of another set-up, whatever their seed.

        Args:
            config: what :func:`scripts.study.experiments.set_up.settings_hash` gives.

        Raises:
            FatalError: there is such a record.
        """
        for one in self.records:
            if (one["regime"], one["arm"]) == (regime, arm) and one["config"] != config:
                raise FatalError(
                    f"{self._path} has {arm}, {regime}, seed {one['seed']} with other settings: choose another --out, "
                    "or take this record out of it and remove the directory of the run. One file is of one set-up, "
                    "whichever arms are asked for"
                )

    def check_start(self, regime: str, seed: int, starts_from: Mapping[str, str]) -> None:
        """Refuses records of a regime and a seed that started from another policy or in another world.

        Records of earlier versions do not say what they started from, and pass.

        Raises:
            FatalError: there is such a record.
        """
        for one in self._of(regime):
            differs = [name for name, digest in starts_from.items() if one.get(_START, {}).get(name, digest) != digest]
            if one["seed"] == seed and differs:
                raise FatalError(
                    f"{self._path} has {one['arm']}, {regime}, seed {seed}, which started from another "
                    f"{' and another '.join(differs)} than is there now. Put back the world and the policy that it "
                    "started from (they were in --cache), choose another --out, or take the records of this seed out "
                    "of it and remove their runs"
                )

    def check_actors(self, regime: str, actors: int) -> None:
        """Refuses records of a regime whose runs had another number of actors; those that do not say it pass.

        Raises:
            FatalError: there is such a record.
        """
        for one in self._of(regime):
            if one.get("actors", actors) != actors:
                raise FatalError(
                    f"{self._path} has {one['arm']}, {regime}, seed {one['seed']} with {one['actors']} actors, and "
                    f"these runs would have {actors}: give --actors {one['actors']}, or choose another --out"
                )

    def versions(self, regimes: Collection[str]) -> set[str]:
        """The versions of the code that the records of regimes were made with."""
        return {one.get("code", "unknown") for regime in regimes for one in self._of(regime)}

    def _of(self, regime: str) -> list[dict[str, Any]]:
        return [one for one in self.records if one["regime"] == regime]

    def add(self, record: dict[str, Any]) -> None:
        """Adds a record and writes the file, at once or not at all."""
        self.records.append(record)
        self._write()

    def replace_figures(self, regime: str, arm: str, seed: int, figures: Figures) -> list[str]:
        """Replaces the figures of the record of a run and writes the file, at once or not at all.

        A figure that cannot be read any more, as part of the run's directory is gone, stays as it is.

        Returns: the names of those figures.
        """
        kept: list[str] = []
        for one in self._of(regime):
            if (one["arm"], one["seed"]) == (arm, seed):
                before: Figures = one["figures"]
                kept = [name for name, value in figures.items() if value is None and before.get(name) is not None]
                one["figures"] = {name: before[name] if name in kept else value for name, value in figures.items()}
                one["measured"] = code_version()
        self._write()
        return kept

    def _write(self) -> None:
        lines = ",\n".join(json.dumps(one, sort_keys=True, allow_nan=False) for one in self.records)
        write_whole(self._path, f"[\n{lines}\n]\n")


@contextmanager
def sole_user(out: Path) -> Iterator[None]:
    """A block in which no other study writes to a directory, which would lose the records of one of them.

    Raises:
        FatalError: another one does.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / _LOCK_FILE).open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FatalError(f"another study is under way in {out}: wait for its end, or give another --out") from None
        except OSError as error:  # a file system without locks
            print(f"cannot lock {out} ({error.strerror}): make sure that no other study writes there", file=sys.stderr)
        yield


def code_version() -> str:
    """The commit of the code, with "+" where files differ from it; "unknown" outside of a repository of its own."""
    try:
        top = _git("rev-parse", "--show-toplevel")
    except OSError:  # no git
        return "unknown"
    if not top or Path(top).resolve() != _ROOT.resolve():  # installed below somebody else's repository
        return "unknown"
    return _git("describe", "--always", "--abbrev=12", "--dirty=+", "--exclude", "*") or "unknown"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=_ROOT, capture_output=True, text=True, check=False).stdout.strip()
