"""A bounded cache of the embeddings of references, kept in an SQLite file between two starts of the process."""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from reward.embedder import Embedder, Vectors

logger = logging.getLogger("reward")

_DTYPES = {"float32": 1, "bfloat16": 2}  # a file's user_version: what its embeddings were computed in; 0 before
_PROBE = "The capital of Japan is Tokyo."  # its embedding shows whether a file was written with the same encoder


class ReferenceCache:
    """Embeds references, each once while it stays in the cache.

    A question is asked many times in a run, and its reference is embedded only the first time. New embeddings are
    appended to the file at once, so that a process that is killed loses none.
    ``counts`` holds how many references came from the cache (``references_cached``) and how many were embedded
    (``references_embedded``).

    Args:
        embedder: makes the embeddings.
        entries: how many embeddings are kept. The least recently used leave first.
        file: where the embeddings are kept between two starts; it is read now if it exists. None: nowhere.
    """

    def __init__(self, embedder: Embedder, entries: int = 100_000, file: Path | None = None) -> None:
        self._embedder, self._entries, self._file = embedder, entries, file
        self._vectors: OrderedDict[bytes, Vectors] = OrderedDict()  # by hash of the text, the last used at the end
        self._connection: sqlite3.Connection | None = None
        self.counts: Counter[str] = Counter()
        if file is not None:
            self._attempt(self._open)

    def __len__(self) -> int:
        return len(self._vectors)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The embeddings of the texts: float32 [n, dimension], rows of length 1, in the order of the texts."""
        keys = [_key(text) for text in texts]
        known = {key: self._vectors.pop(key) for key in dict.fromkeys(keys) if key in self._vectors}
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        self.counts["references_cached"] += len(texts) - len(new)
        self.counts["references_embedded"] += len(new)
        if new:
            # Rows are copied, because a view of one row would keep the whole batch in memory.
            embedded = self._embedder.embed(list(new.values()))
            known |= {key: row.copy() for key, row in zip(new, embedded, strict=True)}
        # An embedding that is not finite is not kept, so that it is computed again the next time.
        self._vectors |= {key: row for key, row in known.items() if np.isfinite(row).all()}
        while len(self._vectors) > self._entries:
            self._vectors.popitem(last=False)
        added = [(key, self._vectors[key].tobytes()) for key in new if key in self._vectors]
        if added:
            self._attempt(lambda: self._append(added))
        return np.stack([known[key] for key in keys])

    def close(self) -> None:
        """Closes the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _attempt(self, body: Callable[[], None]) -> None:
        """Runs what touches the file. A full disk or a damaged file causes one warning; the cache goes on without."""
        try:
            body()
        except (OSError, sqlite3.Error, ValueError) as error:
            logger.warning(
                "reference embeddings are not kept in %s from now on, so they are embedded again after a restart: %s",
                self._file,
                error,
            )
            self.close()

    def _append(self, rows: list[tuple[bytes, bytes]]) -> None:
        if self._connection is not None:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO vectors (key, vector) VALUES (?, ?)", rows)

    def _open(self) -> None:
        """
        Raises:
            OSError, sqlite3.Error, ValueError: the file cannot be used.
        """
        assert self._file is not None
        self._file.parent.mkdir(parents=True, exist_ok=True)
        # The process makes the cache in one thread and uses it in another, never in both at a time.
        connection = self._connection = sqlite3.connect(self._file, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")  # what a power cut takes is embedded again
        with connection:
            connection.execute("CREATE TABLE IF NOT EXISTS probe (vector BLOB NOT NULL)")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS vectors "
                "(number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, vector BLOB NOT NULL)"
            )
            probe = self._embedder.embed([_PROBE])[0]
            saved = connection.execute("SELECT vector FROM probe").fetchone()
            (written_in,) = connection.execute("PRAGMA user_version").fetchone()
            same = saved is not None and _alike(np.frombuffer(saved[0], np.float32), probe)
            if not same or written_in != _DTYPES[self._embedder.dtype]:
                if saved is not None:
                    logger.warning(
                        "%s was made by another encoder, or in another dtype, so references are embedded again",
                        self._file,
                    )
                connection.execute("DELETE FROM vectors")
                connection.execute("DELETE FROM probe")
                connection.execute("INSERT INTO probe VALUES (?)", (probe.tobytes(),))
                # Last, as it is a part of the transaction that a DELETE begins, and before one would hold at once.
                connection.execute(f"PRAGMA user_version = {_DTYPES[self._embedder.dtype]}")
            connection.execute(
                "DELETE FROM vectors WHERE number NOT IN (SELECT number FROM vectors ORDER BY number DESC LIMIT ?)",
                (self._entries,),
            )
        for key, vector in connection.execute("SELECT key, vector FROM vectors ORDER BY number"):
            row = np.frombuffer(vector, np.float32)
            if row.shape == probe.shape:
                self._vectors[key] = row


def _alike(saved: Vectors, probe: Vectors) -> bool:
    return saved.shape == probe.shape and np.allclose(saved, probe, atol=1e-2)


def _key(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()
