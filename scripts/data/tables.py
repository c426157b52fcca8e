"""Writes rows to a file, as parquet or as lines of JSON, so that they mean the same when they are read again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from common.process import FatalError
from learner.data.records import Unreadable, read_records
from learner.data.rows import as_json

_SUFFIXES = (".parquet", ".jsonl")
_SHOWN = 40  # characters of a value that a message quotes


def write(rows: Sequence[Mapping[str, Any]], path: Path, schema: pa.Schema | None = None) -> None:
    """Writes a file, whole or not at all; its directory is made where it is missing.

    A name that ends in ``.jsonl`` gets lines of JSON, which hold values of any types side by side; what JSON does not
    have, as dates, becomes its text. One that ends in ``.parquet`` gets parquet, which has one type for each column.

    Args:
        schema: of parquet, the types of the columns that are known. Other columns, and other keys of known columns, get
            the type of their values. Where these have none in common the column becomes texts, which is how rewards
            see a further column in any case: texts as they are, anything else as JSON.

    Raises:
        FatalError: the name has another ending; or, without a schema, parquet would not give back the rows as they are.
    """
    if problem := name_problem(path, *_SUFFIXES):
        raise FatalError(problem)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    if _is_jsonl(path):
        lines = (json.dumps(row, ensure_ascii=False, default=_as_json) + "\n" for row in rows)
        with partial.open("wb") as file:  # half of a character is written as the escape that JSON has for it
            file.writelines(line.encode("utf-8", "backslashreplace") for line in lines)
    else:
        if schema is None:
            _refuse_mixed(rows, path)
        known = {} if schema is None else {field.name: field.type for field in schema}
        names = list(dict.fromkeys([*known, *_names(rows)]))
        columns = [_column([row.get(name) for row in rows], known.get(name)) for name in names]
        pq.write_table(pa.Table.from_arrays(columns, names), partial)
    partial.rename(path)


def check_holds(path: Path, source: str) -> None:
    """Refuses a file that could not hold the rows of a source as they are, before anything else is done.

    Raises:
        FatalError: it could not; or the source cannot be read.
    """
    if not _is_jsonl(path):
        _refuse_mixed([row for _, row in read_records(source) if not isinstance(row, Unreadable)], path)


def name_problem(path: Path, *suffixes: str) -> str:
    """What is wrong with the name of a file to write, as a sentence; empty where nothing is.

    Args:
        suffixes: those that are written.
    """
    if path.suffix.lower() not in suffixes:
        return f"{path} does not end in {' or '.join(suffixes)}, and no other kind of file is written"
    return f"{path} is a directory: name a file in it" if path.is_dir() else ""


def _table_file(name: str) -> Path:
    """The path that an option names, which is refused before its command does anything."""
    if problem := name_problem(Path(name), *_SUFFIXES):
        raise typer.BadParameter(problem)
    return Path(name)


OutOption = Annotated[
    Path,
    typer.Option(
        parser=_table_file, metavar="FILE",
        help="File to write, .parquet or .jsonl. Answers and problems are written beside it.",
    ),
]  # fmt: skip


def _as_json(value: Any) -> Any:
    """For what JSON does not have."""
    known = as_json(value)
    return str(value) if known is value else known


def _is_jsonl(path: Path) -> bool:
    return path.suffix.lower() == ".jsonl"


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _refuse_mixed(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    for name in _names(rows):
        values = [row.get(name) for row in rows]
        try:
            array = pa.array(values)
            good = _can_be_written(array.type) and all(map(_is_same, values, array.to_pylist()))
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            good = False
        if not good:
            there = [value for value in values if value is not None]
            other = next((value for value in there if type(value) is not type(there[0])), None)
            quoted = "" if other is None else f", as {_quote(there[0])} and {_quote(other)}"
            raise FatalError(
                f"{path} cannot hold the column {name!r} as it is: parquet has one type for all values of a column, "
                f"and these are of several{quoted}. Give a file whose name ends in .jsonl"
            )


def _quote(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _is_same(given: Any, read: Any) -> bool:
    """Whether a value has come back as it was; a key that is missing and one that is null are the same."""
    if isinstance(given, Mapping):
        keys = given.keys() | read.keys() if isinstance(read, Mapping) else ()
        return isinstance(read, Mapping) and all(_is_same(given.get(key), read.get(key)) for key in keys)
    if isinstance(given, list | tuple):
        return isinstance(read, list) and len(given) == len(read) and all(map(_is_same, given, read))
    is_other_type = type(given) is not type(read) and type(given) in (bool, int, float, str)  # 42 is not 42.0
    return not is_other_type and bool(given == read or given != given)  # the latter is NaN


def _column(values: list[Any], known: pa.DataType | None) -> pa.Array:
    if known is not None and pa.types.is_struct(known) and all(isinstance(one, Mapping | None) for one in values):
        types = {field.name: field.type for field in known}
        keys = list(dict.fromkeys([*types, *(key for one in values if one for key in one)]))
        parts = [_column([None if one is None else one.get(key) for one in values], types.get(key)) for key in keys]
        return pa.StructArray.from_arrays(parts, keys, mask=pa.array([one is None for one in values], pa.bool_()))
    for wanted in (known, None):
        try:
            column = pa.array(values, wanted)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            continue
        if pa.types.is_null(column.type):
            return column.cast(pa.string())
        if _can_be_written(column.type):
            return column
    return pa.array([None if one is None else _as_text(one) for one in values], pa.string())


def _as_text(value: Any) -> str:
    value = as_json(value)
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.encode("utf-8", "backslashreplace").decode()  # half of a character would be refused


def _can_be_written(kind: pa.DataType) -> bool:
    """Parquet has no struct without fields, and readers fail at columns of which nothing but null is known."""
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_can_be_written(field.type) for field in kind)
    if pa.types.is_list(kind):
        return _can_be_written(kind.value_type)
    return True
