"""Files about a run that it can do without."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger("learner")


def replace_text(path: Path, text: str) -> None:
    """Writes a file as a whole: whenever the process is killed or the disk full, the one before it is there, or this.

    Raises:
        OSError: it cannot be written; the one before it stays.
    """
    partial = path.with_suffix(f"{path.suffix}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


class BestEffortFiles:
    """Lets a run continue when a file about it cannot be written."""

    def __init__(self) -> None:
        self._warned: set[Path] = set()

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Ignores an OSError in the block, with one warning for each path."""
        try:
            yield
        except OSError as error:
            if path not in self._warned:
                log.warning("cannot write %s: %s; the run continues without it", path, error)
            self._warned.add(path)
