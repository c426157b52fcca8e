"""Code of the user's own, named in the configuration as ``FILE.py:NAME``: how it is loaded, and which line failed."""

from __future__ import annotations

import importlib.util
import traceback
from pathlib import Path
from typing import Any

from common.config import ConfigError

_PROJECT = Path(__file__).parents[1]


def user_file(where: str) -> Path:
    """The path of ``FILE.py:NAME``: from the working directory or, where there is none, from this project's.

    So the recipes under ``configs/recipes`` find their functions from any directory.
    """
    path = Path(where.rpartition(":")[0])
    return path if path.is_file() or not (_PROJECT / path).is_file() else _PROJECT / path


def load_user_object(where: str, setting: str) -> Any:
    """The object ``NAME`` of the file ``FILE.py``, which is run for it; a class is called without arguments.

    Args:
        where: ``FILE.py:NAME``; :func:`user_file` finds the file.
        setting: the setting that holds it, for messages.

    Raises:
        ConfigError: the form is another one, the file cannot be run, or it has no such name.
    """
    _, colon, name = where.rpartition(":")
    path = user_file(where)
    if not colon or path.suffix != ".py" or not name.isidentifier():
        raise ConfigError(f'{setting} = "{where}": the form is "FILE.py:NAME"')
    if not path.is_file():
        raise ConfigError(f"{setting}: there is no file {path} (from the directory {Path.cwd()})")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        found = getattr(module, name)
        return found() if isinstance(found, type) else found
    except (Exception, SystemExit) as error:  # whatever somebody else's file raises, as by exit(), its line is named
        if isinstance(error, AttributeError) and not hasattr(module, name):
            raise ConfigError(f"{setting}: {path} defines no {name!r}") from None
        raise ConfigError(f"{setting}: {describe_failure(error, path)}") from error


def describe_failure(error: BaseException, path: Path) -> str:
    """``FILE.py:LINE in FUNCTION: TypeName: message``, of the last line of the user's file that led to the error."""
    if isinstance(error, SyntaxError):
        return f"{path}:{error.lineno}: SyntaxError: {error.msg}"
    own = path.resolve()  # Python makes the name of a file that is run absolute
    frames = [one for one in traceback.extract_tb(error.__traceback__) if Path(one.filename).resolve() == own]
    place = f"{path}:{frames[-1].lineno} in {frames[-1].name}" if frames else str(path)
    return f"{place}: {type(error).__name__}: {error}"
