"""Files about a run that it can do without."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("learner")


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
