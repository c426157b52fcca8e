"""Answers of endpoints on disk, so that nobody pays twice for the same question."""

from __future__ import annotations

import itertools
import logging
import sqlite3
from contextlib import suppress
from pathlib import Path

from common.process import FatalError
from common.sparse_log import is_logged

log = logging.getLogger("endpoint")

_LOCK_S = 0.5  # how long it waits for another process that writes to the file


class AnswerCache:
    """Usable answers by the hash of what was asked, in an SQLite file that several processes of a host may use.

    Those of several hosts may not, as what they share of such a file is memory.

    Args:
        path: of the file; it is made where there is none, and one that is damaged is set aside.

    Raises:
        FatalError: the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._problems = path, 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connection = _open(path)
            except sqlite3.OperationalError:
                raise  # it is locked, or may not be written
            except sqlite3.DatabaseError as error:
                log.warning("answers are asked for anew: %s is set aside as %s: %s", path, _move_damaged(path), error)
                self._connection = _open(path)
        except (OSError, sqlite3.Error) as error:
            raise FatalError(f"cannot keep answers in {path}: {error}") from None

    def get(self, key: str) -> str | None:
        """The answer, or None where there is none."""
        try:
            row = self._connection.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            self._warn("cannot read answers from", error)
            return None
        return None if row is None else str(row[0])

    def put(self, key: str, answer: str) -> None:
        """Keeps an answer. Where that fails (a full disk, a locked file) there is a warning, and it is asked again."""
        try:
            with suppress(UnicodeEncodeError):  # SQLite takes no lone surrogates
                self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, answer))
        except sqlite3.Error as error:
            self._warn("cannot keep an answer in", error)

    def close(self) -> None:
        self._connection.close()

    def _warn(self, what: str, error: sqlite3.Error) -> None:
        self._problems += 1
        if is_logged(self._problems):  # there are two calls for each question
            log.warning("%s %s (%d problems so far): %s", what, self._path, self._problems, error)


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_LOCK_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _move_damaged(path: Path) -> Path:
    """Renames a file that is damaged, and what SQLite keeps beside it; returns its new name."""
    free = next(one for n in itertools.count(1) if not (one := path.with_name(f"{path.name}.damaged-{n}")).exists())
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(free.with_name(free.name + suffix))
    return free
