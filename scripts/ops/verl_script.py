"""Reads the options that a shell script gives to verl's trainer, without running it.

Understood are assignments ``NAME=value``, ``${NAME:-default}``, whose NAME may be set in the environment, arithmetic
``$((1024 * 4))``, arrays ``NAME=(...)`` that are given as ``"${NAME[@]}"``, and the options ``key=value`` after the
trainer's name.
"""

from __future__ import annotations

import ast
import operator
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from common.process import FatalError

ENTRY = "main_ppo"  # of verl; the options follow it
_ENTRIES = (ENTRY, "main_dapo")  # and of its recipe for DAPO
_ENDS = {"|", "||", "&", "&&", ";", ">", ">>", "2>&1", "&>", "<"}  # shell words after which no options come
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?:(:?)-([^}]*))?\})")
_ARITHMETIC = re.compile(r"\$\(\(((?:[^()]|\([^()]*\))*)\)\)")
_LINES_OF_ARRAY = re.compile(r"^(\s*\w+=\()\s*$(.*?)^\s*\)\s*$", re.MULTILINE | re.DOTALL)
_ARRAY = re.compile(r"^\s*(\w+)=\((.*)\)\s*$")
_COMMENT = re.compile(r"(?:^|\s)#.*$", re.MULTILINE)
_ALL_OF_ARRAY = re.compile(r"^\$\{(\w+)\[@\]\}$")
_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip


def read_script(path: Path) -> dict[str, str]:
    """The options that a launch script gives to verl, by name without a leading + or ~; of two alike, the last.

    Raises:
        FatalError: the file cannot be read, is no shell script, or does not start verl's trainer.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FatalError(f"cannot read {path}: {error}") from None
    text = re.sub(r"\\\s*\n", " ", text)
    text = _LINES_OF_ARRAY.sub(lambda match: f"{match[1]}{_COMMENT.sub('', match[2])})".replace("\n", " "), text)
    variables: dict[str, str] = {}
    arrays: dict[str, list[str]] = {}
    for line in map(partial(_calculate, variables=variables), text.splitlines()):
        if array := _ARRAY.match(line):
            arrays[array[1]] = [_expand(word, variables) for word in _words(path, array[2])]
            continue
        words = _words(path, line)
        start = next((n for n, word in enumerate(words) if any(entry in word for entry in _ENTRIES)), None)
        if start is not None:
            return dict(_options(list(_with_arrays(words[start + 1 :], arrays)), variables))
        for word in words:
            name, equals, value = word.partition("=")
            if equals and name.isidentifier():
                variables[name] = _expand(value, variables)
    raise FatalError(f"{path} does not start verl.trainer.{ENTRY}, so it has no options to read")


def _words(path: Path, text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        raise FatalError(f"cannot read {path}: {error} in {text.strip()[:80]!r}") from None


def _with_arrays(words: list[str], arrays: Mapping[str, list[str]]) -> Iterator[str]:
    """The words, with those of an array in place of its name."""
    for word in words:
        match = _ALL_OF_ARRAY.match(word)
        yield from arrays.get(match[1], []) if match else [word]


def _options(words: list[str], variables: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for word in words:
        if word in _ENDS:
            return
        name, equals, value = word.partition("=")
        if equals and not name.startswith("-"):
            yield name.lstrip("+~"), _expand(value, variables).strip("\"'")


def _expand(text: str, variables: Mapping[str, str]) -> str:
    """Shell variables that the script sets get their values; ``${NAME:-default}`` that of the environment, or its
    default."""

    def value(match: re.Match[str]) -> str:
        name, default = match[1] or match[2], match[4]
        if default is None:
            return variables.get(name, match[0])
        found = variables.get(name, os.environ.get(name))
        return default if found is None or (match[3] and not found) else found

    return _VARIABLE.sub(value, text)


def _calculate(text: str, variables: Mapping[str, str]) -> str:
    """Arithmetic of whole numbers and known variables is done; what cannot be done stays as it is."""

    def value(match: re.Match[str]) -> str:
        known = re.sub(r"[A-Za-z_]\w*", lambda name: variables.get(name[0], name[0]), _expand(match[1], variables))
        try:
            return str(_number(ast.parse(known.strip(), mode="eval").body))
        except (SyntaxError, ValueError, ZeroDivisionError):
            return match[0]

    return _ARITHMETIC.sub(value, text)


def _number(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            found: int = _OPERATORS[type(op)](_number(left), _number(right))
            return found
    raise ValueError("not a sum of whole numbers")
