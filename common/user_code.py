"""Code of the user's own, named in the configuration as ``FILE.py:NAME``: how it is loaded, and which line failed."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from common.config import ConfigError

_PROJECT = Path(__file__).parents[1]
_NOTHING = object()

_numbers = itertools.count(1)  # of the files that run under a name of their own


def user_file(where: str) -> Path:
    """The path of ``FILE.py:NAME``: from the working directory or, where there is none, from this project's.

    So the recipes under ``configs/recipes`` find their functions from any directory.
    """
    path = Path(where.rpartition(":")[0])
    return path if path.is_file() or not (_PROJECT / path).is_file() else _PROJECT / path


def load_user_object(where: str, setting: str) -> Any:
    """The object ``NAME`` of the file ``FILE.py``, which is run for it; a class is called without arguments.

    The file is run as a script is: it imports what lies beside it before all else. Afterwards its directory stays at
    the end of ``sys.path``, for imports within its functions and in processes that it starts.

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
    module_name = _module_name(path)
    with _directory_first(path.resolve().parent):
        try:
            module = _run(path, module_name)
            found = getattr(module, name, _NOTHING)
            if found is not _NOTHING:
                return found() if isinstance(found, type) else found
        except (Exception, SystemExit) as error:  # whatever a user's file raises, as by exit(), its line is named
            raise ConfigError(f"{setting}: {describe_failure(error, path)}") from error
    raise ConfigError(f"{setting}: {path} defines no {name!r}")


@contextmanager
def _directory_first(directory: Path) -> Iterator[None]:
    """Searches a directory for modules before all others meanwhile, and afterwards after all others.

    It does not stay in front, where a file of the user's would take the place of a package that is imported later.
    """
    first = str(directory)
    sys.path.insert(0, first)
    try:
        yield
    finally:
        with suppress(ValueError):  # unless the file has changed the path itself
            sys.path.remove(first)
        if not any(Path(one).resolve() == directory for one in sys.path):
            sys.path.append(first)


def _run(path: Path, name: str) -> ModuleType:
    """The module that the file makes. It is in ``sys.modules``, where dataclasses and pickle look it up by its name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _module_name(path: Path) -> str:
    """The file's own name where no other module has it; otherwise one for it alone, which nobody else imports.

    With its own name it is also found by processes that the file starts, as those of a process pool. The directory of
    the file must not be in front of the others yet.
    """
    name = path.stem
    if name.isidentifier() and name not in sys.modules:
        with suppress(ImportError, ValueError):
            found = importlib.util.find_spec(name)
            if found is None or (found.origin is not None and Path(found.origin).resolve() == path.resolve()):
                return name
    return f"{name} ({next(_numbers)})"


def describe_failure(error: BaseException, path: Path) -> str:
    """``FILE.py:LINE in FUNCTION: TypeName: message``, of the last line of the user's file that led to the error."""
    own = path.resolve()  # Python makes the name of a file that is run absolute
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == own:
        return f"{path}:{error.lineno}: SyntaxError: {error.msg}"
    frames = [one for one in traceback.extract_tb(error.__traceback__) if Path(one.filename).resolve() == own]
    place = f"{path}:{frames[-1].lineno} in {frames[-1].name}" if frames else str(path)
    return f"{place}: {type(error).__name__}: {error}"
