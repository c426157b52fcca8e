"""Where the light engine is, which speaks SGLang's HTTP API and generates with transformers."""

from __future__ import annotations

from pathlib import Path

from common.process import FatalError

_DIRECTORY = Path(__file__).parents[3] / "tests" / "support" / "light"


def light_engine() -> Path:
    """The directory that takes SGLang's place on the path of Python.

    Raises:
        FatalError: this is an installed package, which lacks it.
    """
    if not _DIRECTORY.is_dir():
        raise FatalError(
            f"there is no light engine at {_DIRECTORY}, as in an installed package: use a clone of the repository"
        )
    return _DIRECTORY
