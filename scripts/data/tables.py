"""Writes rows as parquet, whatever further columns they have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write(rows: Sequence[Mapping[str, Any]], path: Path, schema: pa.Schema | None = None) -> None:
    """Writes a parquet file, whole or not at all; its directory is made where it is missing.

    Args:
        schema: the types of the columns that are known. Other columns, and other keys of known columns, get the type of
            their values, or are written as JSON where these have no common type.
    """
    known = {} if schema is None else {field.name: field.type for field in schema}
    names = list(dict.fromkeys([*known, *(name for row in rows for name in row)]))
    columns = [_column([row.get(name) for row in rows], known.get(name)) for name in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    pq.write_table(pa.Table.from_arrays(columns, names), partial)
    partial.rename(path)


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
    return pa.array([None if one is None else json.dumps(one, default=str) for one in values], pa.string())


def _can_be_written(kind: pa.DataType) -> bool:
    """Parquet has no struct without fields, and readers fail at columns of which nothing but null is known."""
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_can_be_written(field.type) for field in kind)
    if pa.types.is_list(kind):
        return _can_be_written(kind.value_type)
    return True
