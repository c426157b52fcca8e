"""Rows of files that are all good."""

from __future__ import annotations

from learner.data.records import Record, Unreadable, read_records


def read_rows(source: str) -> list[Record]:
    """Every row of a source, each of which is a record."""
    rows = []
    for place, record in read_records(source):
        assert not isinstance(record, Unreadable), (place, record)
        rows.append(record)
    return rows
