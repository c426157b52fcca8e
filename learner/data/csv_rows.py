"""The rows of a text of comma-separated values, of which one that is broken takes no other with it.

A quotation mark inside of a quoted text is written twice. Where it is not, the row is broken, and the next line begins
a new one. Where a text is never closed, nobody can say what follows: more of it, or rows. They are rows if all of them
could be.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator

_TWICE = "Inside of a quoted text a quotation mark is written twice"


def read_csv(text: str, delimiter: str) -> Iterator[list[str] | str]:
    """The cells of each row, the first line's among them, in order; in place of those of a broken row, why it is.

    The reason names the line, counted from 1. Empty lines are no rows. A line behind a broken row with an odd number of
    quotation marks is taken for the rest of its text.

    Args:
        text: of the whole file.
        delimiter: what stands between two cells.
    """
    csv.field_size_limit(sys.maxsize)  # the default of 128 KB would end the file at a long answer
    lines = _Lines(list(io.StringIO(text, newline="")), delimiter)
    wanted, after_broken = 0, False  # wanted: the number of columns
    while lines.next < len(lines.lines):
        begin, row = lines.next, lines.row()
        first = lines.lines[begin]
        if row == []:
            continue
        is_long = lines.next > begin + 1
        if wanted and is_long and isinstance(row, str):
            # A text over several lines that does not end well. If each of them could be a row, it was of one line.
            if all(_is_row(line, wanted, delimiter) for line in lines.lines[begin + 1 : lines.next]):
                row, lines.next = "a quotation mark opens a text that this line does not close", begin + 1
            else:
                last = "the end of the file" if lines.next == len(lines.lines) else f"line {lines.next}"
                row = f"{row}, so nothing is used from there to {last}"
        elif after_broken and not is_long and isinstance(row, list) and _is_odd(first):
            row = "with one quotation mark too many, it seems to be the rest of the broken row before it"
        yield f"line {begin + 1}: {row}. {_TWICE}" if isinstance(row, str) else row
        after_broken = isinstance(row, str)
        if not (wanted or after_broken):
            wanted = len(row)


class _Lines:
    """Reads rows from a list of lines, from any of them on."""

    def __init__(self, lines: list[str], delimiter: str) -> None:
        self.lines, self.next = lines, 0
        self._reader = csv.reader(self, delimiter=delimiter, strict=True)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.next == len(self.lines):
            raise StopIteration
        self.next += 1
        return self.lines[self.next - 1]

    def row(self) -> list[str] | str:
        """The cells of the row that begins with the next line, or the mistake in it, behind which one can go on."""
        try:
            return next(self._reader)
        except csv.Error as error:
            return str(error)


def _is_row(line: str, wanted: int, delimiter: str) -> bool:
    """Whether a line alone is a row of so many cells, more than one, or empty."""
    cells = _Lines([line], delimiter).row()
    return cells == [] or (isinstance(cells, list) and len(cells) == wanted > 1 and not _is_odd(line))


def _is_odd(line: str) -> bool:
    return line.count('"') % 2 == 1
