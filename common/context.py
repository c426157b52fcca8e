"""How many tokens a model can hold, and whether prompts and answers fit."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from common.config import Config
from common.hub import why
from common.process import FatalError

_STRETCHED = ("linear", "dynamic", "yarn")  # kinds of rotary embeddings that hold `factor` times as many positions


def context_length(config: Config) -> int | None:
    """The tokens of prompt and answer together that engine and model hold; None where the model names no limit.

    ``actor.engine_args.context_length`` counts where it is given, as the engine then takes that.

    Raises:
        FatalError: the configuration of model.path cannot be read.
    """
    if (given := config.actor.engine_args.get("context_length")) is not None:
        return int(given)
    try:
        shape: Any = AutoConfig.from_pretrained(config.model.path).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        reason = why(config.model.path, error)
        raise FatalError(f"cannot load model.path = {config.model.path!r}: {reason}") from None
    longest: int | None = getattr(shape, "max_position_embeddings", None)
    rope = getattr(shape, "rope_parameters", None) or {}
    if longest is None or rope.get("rope_type") not in _STRETCHED:
        return longest
    # Some configurations name the stretched length, and the original one beside it.
    return (
        longest if rope.get("original_max_position_embeddings", longest) != longest else int(longest * rope["factor"])
    )


def check_context(config: Config, longest_prompt: int) -> None:
    """Returns if a prompt of so many tokens and an answer of ``sampling.max_new_tokens`` fit.

    Otherwise the engine would refuse that question, at every attempt.

    Raises:
        FatalError: they do not fit.
    """
    context, answer = context_length(config), config.sampling.max_new_tokens
    if context is None or longest_prompt + answer <= context:
        return
    room = context - answer
    advice = (
        f"set data.max_prompt_tokens = {room}, which leaves longer questions out, or lower sampling.max_new_tokens"
        if room > 0
        else "lower sampling.max_new_tokens"
    )
    raise FatalError(
        f"the longest prompt ({longest_prompt} tokens) and sampling.max_new_tokens = {answer} are more than the "
        f"{context} tokens that {config.model.path} holds: {advice}"
    )
