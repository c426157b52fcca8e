"""The model of the offline world's policy."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from scripts.world.settings import Settings
from scripts.world.tokenizer import END, PAD, START


def build_model(tokenizer: PreTrainedTokenizerFast, settings: Settings) -> Qwen3ForCausalLM:
    """An untrained model in float32, with the special tokens of the tokenizer."""
    torch.manual_seed(settings.seed)
    roles = (("pad_token_id", PAD), ("bos_token_id", START), ("eos_token_id", END))
    ids: dict[str, Any] = {role: tokenizer.convert_tokens_to_ids(token) for role, token in roles}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=1,
        head_dim=settings.head_dim,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        dtype="float32",
        **ids,
    )
    model = Qwen3ForCausalLM(config)
    model.set_attn_implementation("eager")  # faster than fused attention for a CPU and sequences this short
    model.generation_config = GenerationConfig(**ids)
    return model
