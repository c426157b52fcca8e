"""Files that are there as a whole, or as they were before."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


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
