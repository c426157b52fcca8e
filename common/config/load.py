"""Reads a configuration: TOML files merged from left to right, then ``--section.key value`` flags.

A later value of a key takes the place of an earlier one. That holds of a table whose keys are names of the user's own,
too, as ``reward.terms``: a reward that a later file or flag gives is not mixed with the one before it. The tables of
``_ADDED_UP`` are the exception among files. A flag with a longer key, as ``--reward.terms.default.exact 1``, adds to a
table or changes one of its values.

Unknown keys are refused, with the one that was probably meant. A setting that may have no value, as ``run.rendezvous``,
has none where the value is an empty text: so a later file or flag switches it off.

Example:
    >>> config = load(["configs/demo.toml", "--learner.lr", "1e-4"])  # doctest: +SKIP
    >>> config.learner.lr  # doctest: +SKIP
    0.0001
"""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.config.config import Config
from common.config.explain import explain
from common.config.section import ConfigError

# Tables of which every file says its part: the columns that a recipe needs and those of one's own data, the engine's
# flags of a model and of a machine. A flag with the whole table takes their place all the same.
_ADDED_UP = frozenset({"data.columns", "model.template_args", "actor.engine_args"})


def load(arguments: Sequence[str], base: dict[str, Any] | None = None) -> Config:
    """The configuration that the command line ``CONFIG.toml ... [--section.key value] ...`` describes.

    Args:
        arguments: the command line.
        base: settings that hold where the command line says nothing; by default there are none.

    Raises:
        ConfigError: a file is missing or is no TOML, a key is unknown, or a value has the wrong type or range.
    """
    try:
        return Config.model_validate(_merge(arguments, copy.deepcopy(base or {})))
    except ValidationError as error:
        raise ConfigError(f"configuration: {explain(error, Config)}") from None


def given_keys(arguments: Sequence[str]) -> set[str]:
    """The settings, as ``section.key``, that a command line says something of, known or not.

    Args:
        arguments: the command line, as :func:`load` reads it.

    Raises:
        ConfigError: a file is missing or is no TOML, or a flag has no value.
    """
    merged = _merge(arguments, {})
    return {f"{section}.{key}" for section, values in merged.items() if isinstance(values, dict) for key in values}


def _merge(arguments: Sequence[str], merged: dict[str, Any]) -> dict[str, Any]:
    """Lays the files and flags of a command line over ``merged``, and returns it."""
    rest = list(arguments)
    while rest and not rest[0].startswith("--"):
        _add_file(merged, read_toml(Path(rest.pop(0))))
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise ConfigError(f"unexpected argument {flag!r}: files come first, then --section.key value")
        key, equals, value = flag[2:].partition("=")
        if not equals:
            if not rest:
                raise ConfigError(f"flag --{key} needs a value")
            value = rest.pop(0)
        _set(merged, key.split("."), _parse(value))
    return merged


def usage() -> str:
    """The help text: how files and flags are given, and every setting with its default."""
    return "\n".join(
        [
            "CONFIG.toml ... [--section.key value] ...",
            '\nFiles are merged from left to right, then flags; "" is no value. The settings, explained in '
            "common/config/:\n",
            *_flags("  --", Config().model_dump(mode="json")),
        ]
    )


def _flags(prefix: str, values: dict[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flags(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key} {json.dumps('' if value is None else value)}"


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: the file cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from None
    except ValueError as error:  # from the TOML parser, or for invalid UTF-8
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _parse(value: str) -> Any:
    if value == "null":  # as the configuration that a run has written has it
        return None
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value  # a string without quotes, as people write it in a shell


def _add_file(base: dict[str, Any], tables: dict[str, Any]) -> None:
    """Lays the sections of a file over ``base``, key by key."""
    for section, values in tables.items():
        before = base.get(section)
        if isinstance(before, dict) and isinstance(values, dict):
            for key in _keys_added_up(section, before, values):
                values[key] = before[key] | values[key]
            before |= values
        else:
            base[section] = values


def _keys_added_up(section: str, before: dict[str, Any], values: dict[str, Any]) -> list[str]:
    return [
        key
        for key in before.keys() & values.keys()
        if f"{section}.{key}" in _ADDED_UP and isinstance(before[key], dict) and isinstance(values[key], dict)
    ]


def _set(base: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Sets the value at a path of keys, and makes the tables on the way to it. A section is set key by key."""
    if len(path) == 1 and isinstance(value, dict):
        for key, inner in value.items():
            _set(base, [*path, key], inner)
        return
    for part in path[:-1]:
        if not isinstance(base.get(part), dict):
            base[part] = {}
        base = base[part]
    base[path[-1]] = value
