"""Finds rows without a further column that ``data.columns`` names: a reward that needs it cannot score them."""

from __future__ import annotations

from common.config import Config
from learner.data.problems import Problems, RowError
from learner.data.rows import OURS, Rules, read_question_rows


def rows_without_columns(source: str, config: Config) -> Problems:
    """The rows of a source in which a further column of ``data.columns`` is missing, null or empty.

    Returns:
        A problem of the kind "lacks" for each row and column. Rows that cannot be read as questions are not among them.

    Raises:
        FatalError: the source cannot be read.
    """
    found = Problems()
    further = {ours: path for ours, path in config.data.columns.items() if ours not in OURS}
    if not further:
        return found
    for row in read_question_rows(source, Rules(config.data.columns, config.data.language or ""), Problems()):
        for ours, path in further.items():
            if not row.extra.get(ours, "").strip():
                reason = f"it is missing or empty: a reward that needs data.columns.{ours} cannot score its answers"
                found.add(row.place, RowError(path, reason, "lacks"))
    return found
