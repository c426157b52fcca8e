"""What an earlier run left in ``run.dir`` is kept when another one begins there: nothing of it is overwritten."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

from common.process import FatalError

log = logging.getLogger("learner")

_OF_A_RUN = (
    "ledger.jsonl", "router.jsonl", "summary.json", "config.json", "config-until-step-*.json", "evaluations",
    "tensorboard", "wandb", "trackio", "skipped", "model", "adapter",
)  # fmt: skip
# Whatever one of these holds is of a run that has trained.
_SHOWS_TRAINING = ("ledger.jsonl", "router.jsonl", "summary.json", "model", "adapter")


def set_aside_former_run(directory: Path) -> None:
    """Moves the files of a run that ended here before its first checkpoint, or lost them, into ``before-1``.

    The next time it is ``before-2``, and so on. Does nothing where no run has trained.

    Raises:
        FatalError: they cannot be moved.
    """
    if any(path.is_dir() or path.stat().st_size for name in _SHOWS_TRAINING for path in directory.glob(name)):
        set_aside(directory, _OF_A_RUN)


def set_aside(directory: Path, patterns: Sequence[str]) -> None:
    """Moves what matches the patterns into a new subdirectory ``before-N``, if anything does.

    Raises:
        FatalError: it cannot be moved.
    """
    found = [path for pattern in patterns for path in directory.glob(pattern)]
    if not found:
        return
    kept = next(path for n in itertools.count(1) if not (path := directory / f"before-{n}").exists())
    try:
        kept.mkdir()
        for path in found:
            path.rename(kept / path.name)
    except OSError as error:
        raise FatalError(
            f"cannot move what an earlier run left in {directory} to {kept}: {error.strerror}; begin in another run.dir"
        ) from None
    log.warning("a run begins anew in %s; what an earlier one left there is in %s", directory, kept)
