"""Whether a directory holds a finished run, and whether that run had the settings that are asked for now.

A command that trains only what is missing must not show the figures of other settings under the present ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.config import Config
from common.config.resume import CONFIG_FILE
from common.process import FatalError
from learner.resume import Change, changes

# Harmless to a run that resumes, but a finished run was trained or evaluated with them.
_MATTERS = frozenset({
    "data.train", "data.heldout", "data.columns", "data.language", "data.broken_rows", "data.pass_rate",
    "learner.steps", "learner.epochs",
    "learner.evaluate", "learner.evaluate_questions", "learner.evaluate_samples", "learner.evaluate_unseen",
    "reward.diagnostics",
})  # fmt: skip


def read_summary(run: Path) -> dict[str, Any] | None:
    """``summary.json``, the last thing that a run writes; None where there is none, or the half of one."""
    try:
        found = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def check_settings(run: Path, wanted: Config) -> None:
    """Refuses a finished run of other settings.

    Settings that change neither what was trained nor what was evaluated may differ, as ``learner/resume.py`` has them,
    and those that ``wanted.resume.accept`` names.

    Args:
        run: directory of the run.

    Raises:
        FatalError: this is so, or ``config.json`` cannot be read. The message lists what differs.
    """
    path = run / CONFIG_FILE
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        found = [change for change in changes(before, wanted) if _counts(change, wanted)]
    except (OSError, ValueError, AttributeError) as error:
        raise FatalError(
            f"{run} holds a finished run whose settings cannot be read: {error}. Remove {run} to train it anew"
        ) from None
    if found:
        listed = "\n  ".join(map(str, found))
        raise FatalError(
            f"{run} holds a finished run of other settings, and these matter:\n  {listed}\n"
            f"give them as they were, choose another directory, or remove {run} to train it anew"
        )


def _counts(change: Change, wanted: Config) -> bool:
    if {change.key, change.key.partition(".")[0]} & {*wanted.resume.accept}:
        return False
    if change.key in ("data.train", "data.heldout"):
        return _resolved(change.before) != _resolved(change.now)
    if change.key == "learner.steps" and wanted.learner.epochs:  # a run writes down how many the epochs came to
        return 0 < wanted.learner.steps < int(change.before)
    return change.key in _MATTERS or not change.is_harmless


def _resolved(source: str) -> str:
    """The place of a file, however it is named; data sets of the hub stay as they are."""
    return str(Path(source).absolute().resolve()) if source and Path(source).exists() else source
