"""Makes an offline world where it is missing, and refuses one that is not what this code would make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from common.process import FatalError
from scripts.ops.local_run import run_to_end


def build_or_check(world: Path, command: Sequence[str]) -> None:
    """Builds a world, or sees to it that the one that is there has the rows that would be built. Blocks for seconds.

    Another version of the code, or of the packages that its names and number words come from, may build other rows
    from the same seed.

    Args:
        command: words of Python that build the world into the directory that ``--out`` names.

    Raises:
        FatalError: the world that is there has other rows.
        SystemExit: the program failed, after it has printed why.
    """
    if not (world / "world.json").exists():
        run_to_end([*command, "--out", str(world)])
        return
    with TemporaryDirectory(prefix="lrpo-world-") as directory:
        run_to_end([*command, "--out", directory], silent=True)
        for wanted in sorted(Path(directory).glob("*.parquet")):
            if not _same_rows(wanted, world / wanted.name):
                raise FatalError(
                    f"{world} was made by another version of the code or its packages: {wanted.name} has other rows "
                    "than this one makes. Remove the directory to have it made anew, choose another --cache, or go on "
                    "with the version that made it"
                )


def _same_rows(one: Path, other: Path) -> bool:
    try:
        return bool(pq.read_table(one).equals(pq.read_table(other)))
    except (OSError, pa.ArrowInvalid):  # it is missing, or no parquet
        return False
