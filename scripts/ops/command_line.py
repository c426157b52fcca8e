"""Turns a function into a command with typer. Its errors are one line without a traceback."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Protocol

import typer
from typer.main import get_command

from common.config import ConfigError, load
from common.languages import declared
from common.process import LOG_FORMAT, LOG_TIME, FatalError, interrupt_when_asked
from common.progress import LOGGER

_LANGUAGES = "--run.other_languages"
program = ""  # the command as it was typed, where that is not the name of a module: ``lrpo NAME``


class Command(Protocol):
    """A command: called with its arguments as a list of words, by default those that the process was given."""

    def __call__(self, arguments: Sequence[str] | None = None) -> None: ...


def command(
    *errors: type[Exception], passes_flags_on: bool = False, name: str | None = None
) -> Callable[[Callable[..., None]], Command]:
    """Makes a command of a function, whose parameters typer reads; the help is the docstring of its module.

    The command returns when the function does. Otherwise it raises SystemExit: with a line ``error: ...`` as its
    message (and so with code 1) for a FatalError and for ``errors``, with code 2 for a ConfigError and for wrong
    arguments, and with code 130 when it was interrupted, which SIGTERM does as SIGINT does.

    Every command takes ``--run.other_languages '{tir = "Tigrinya"}'``, as a configuration does: also one that reads
    none, whose data or options name such a language. One that starts others passes it on (:func:`languages_flag`).

    Args:
        errors: further exceptions that the user can correct, with a message that explains how.
        passes_flags_on: words that the function has no parameter for are left in ``typer.Context.args``, in their
            order: configuration files and flags ``--section.key value``, which ``common.config.load`` reads and checks.
        name: the name of the command in its help; by default ``python -m MODULE``.
    """
    plain: tuple[type[Exception], ...] = (FatalError, *errors)
    settings: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
    if passes_flags_on:
        settings |= {"allow_extra_args": True, "ignore_unknown_options": True}

    def decorate(function: Callable[..., None]) -> Command:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        app.command(help=_as_written(sys.modules[function.__module__].__doc__), context_settings=settings)(function)

        @wraps(function)
        def run(arguments: Sequence[str] | None = None) -> None:
            if arguments is None:  # this is the process's own command, not one that another command calls
                interrupt_when_asked()
                _log_progress()
            words = sys.argv[1:] if arguments is None else list(arguments)
            try:
                if not passes_flags_on:
                    words = _declare_languages(words)
                get_command(app)(words, prog_name=_program(function, name))
            except SystemExit as end:  # typer ends the process with code 0 when the function returns, too
                if end.code:
                    raise
            except ConfigError as error:
                print(f"error: {error}", file=sys.stderr)
                raise SystemExit(2) from None
            except plain as error:
                raise SystemExit(f"error: {error}") from None

        return run

    return decorate


def _declare_languages(words: Sequence[str]) -> list[str]:
    """Declares the languages that a command line has, and returns the other words.

    Raises:
        ConfigError: they are not given as a table of labels and names, or cannot be declared.
    """
    rest, given = list[str](), list[str]()
    remaining = iter(words)
    for word in remaining:
        flag, equals, value = word.partition("=")
        if flag == _LANGUAGES:
            given += [flag, value if equals else next(remaining, "")]
        else:
            rest.append(word)
    if given:
        load([*given, "--reward.unchecked", "pass"])  # no answer is gated here
    return rest


def languages_flag() -> list[str]:
    """The words by which another process is told of the languages that this one declared; none if it did not."""
    languages = ", ".join(f"{label} = {json.dumps(name, ensure_ascii=False)}" for label, name in declared().items())
    return [_LANGUAGES, f"{{{languages}}}"] if languages else []


def files_first(words: Sequence[str]) -> list[str]:
    """Configuration files go before all flags, wherever they were given."""
    return sorted(words, key=lambda word: word.startswith("--") or not word.endswith(".toml"))


def _log_progress() -> None:
    """Shows what takes long, and none of the messages of the libraries."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(LOG_FORMAT, LOG_TIME))
    log = logging.getLogger(LOGGER)
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def _program(function: Callable[..., Any], name: str | None) -> str:
    if program and function.__module__ == "__main__":
        return program
    if name:
        return name
    main = sys.modules["__main__"].__spec__
    return f"python -m {main.name if main and function.__module__ == '__main__' else function.__module__}"


def _as_written(text: str | None) -> str:
    """Marks every paragraph so that typer does not join its lines."""
    return "\n\n".join(f"\b\n{paragraph}" for paragraph in (text or "").strip().split("\n\n"))
