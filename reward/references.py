"""A bounded cache of the embeddings of references, which can be kept in a file between two starts of the process."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from reward.embedder import Embedder, Vectors

logger = logging.getLogger("reward")

_PROBE = "The capital of Japan is Tokyo."  # its embedding shows whether a file was written with the same encoder
_SAVE_EVERY_S = 60


class ReferenceCache:
    """Embeds references, each once while it stays in the cache.

    A question is asked many times in a run, and its reference is embedded only the first time. ``counts`` holds how
    many references came from the cache (``references_cached``) and how many were embedded (``references_embedded``).

    Args:
        embedder: makes the embeddings.
        entries: how many embeddings are kept. The least recently used leave first.
        file: where the embeddings are kept between two starts; it is read now if it exists. None: nowhere.
    """

    def __init__(self, embedder: Embedder, entries: int = 100_000, file: Path | None = None) -> None:
        self._embedder, self._entries, self._file = embedder, entries, file
        self._vectors: OrderedDict[bytes, Vectors] = OrderedDict()  # by hash of the text, the last used at the end
        self._saved_at = time.monotonic()
        self.counts: Counter[str] = Counter()
        if file is not None and file.exists():
            self._restore(file)

    def __len__(self) -> int:
        return len(self._vectors)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The embeddings of the texts: float32 [n, dimension], rows of length 1, in the order of the texts.

        Saves the cache when the last time is more than a minute ago and something new was embedded.
        """
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
        if new and time.monotonic() - self._saved_at > _SAVE_EVERY_S:
            self.save()
        return np.stack([known[key] for key in keys])

    def save(self) -> None:
        """Writes the cache to its file. A full disk causes a warning and does not stop the service."""
        self._saved_at = time.monotonic()
        if self._file is None or not self._vectors:
            return
        partial = self._file.with_suffix(".partial")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                keys = np.frombuffer(b"".join(self._vectors), np.uint8).reshape(len(self._vectors), -1)
                probe, vectors = self._embedder.embed([_PROBE]), np.stack(list(self._vectors.values()))
                np.savez(file, probe=probe, keys=keys, vectors=vectors)
            os.replace(partial, self._file)
        except OSError as error:
            logger.warning("cannot save the reference embeddings: %s", error)

    def _restore(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as saved:
                probe, keys, vectors = saved["probe"], saved["keys"], saved["vectors"]
            if not np.allclose(probe, self._embedder.embed([_PROBE]), atol=1e-2):
                raise ValueError("they were made by another encoder")
            rows = zip(keys, vectors.astype(np.float32), strict=True)
            self._vectors.update((key.tobytes(), row.copy()) for key, row in list(rows)[-self._entries :])
        # numpy raises many kinds of errors for a damaged archive: BadZipFile, EOFError, KeyError and others.
        except Exception as error:
            logger.warning("cannot use the reference embeddings in %s, so they are embedded again: %s", path, error)


def _key(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()
