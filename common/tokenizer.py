"""Loads the policy's tokenizer. It has a file of its own because transformers is slow to import."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.hub import why
from common.process import FatalError


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory or of a model on the hub.

    Raises:
        FatalError: ``path`` is empty, or is no such directory and no model that can be fetched from the hub.
    """
    if not path:
        raise FatalError("model.path is not set: give a Hugging Face directory or hub name, as --model.path DIR")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise FatalError(f"cannot load the tokenizer of model.path = {path!r}: {why(path, error)}") from None
    return tokenizer
