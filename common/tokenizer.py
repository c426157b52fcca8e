"""The policy's tokenizer; apart from the rest of ``common``, because transformers is slow to import."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.process import FatalError


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """
    Raises:
        FatalError: ``path`` is no Hugging Face directory, and no hub is reached where it is a name.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise FatalError(f"cannot load the tokenizer of model.path = {path!r}: {error}") from None
    return tokenizer
