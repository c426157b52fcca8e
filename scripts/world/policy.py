"""The offline world's policy: its size, its architecture, and everything else that its warm start depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from common.config import ModelConfig
from scripts.world.tokenizer import END, PAD, START

Style = Literal["tag", "select"]


@dataclass(frozen=True)
class Settings:
    """Everything that the warm-started policy depends on, besides the world."""

    seed: int = 0
    style: Style = "tag"  # how the language is asked for: by a tag, or by the header that the policy selects
    header: str = ModelConfig().header
    favourite: str = "en"  # the language whose header is always a part of what is learned
    others: float = 0.1  # how often the header of another language is learned; else it is a part of the prompt
    unseen: str = "pt,ru"  # languages, separated by commas, whose header is always a part of the prompt
    steps: int = 700
    batch: int = 16  # sequences a step
    lr: float = 4e-3  # peak; warmed up over 50 steps, then a cosine to a twentieth
    weight_decay: float = 0.05
    own_language: float = 0.4  # share of examples asked in the answer's language; else in a random one
    vocabulary: int = 4000
    hidden: int = 128
    intermediate: int = 1024  # wide, because facts are stored here, and a CPU is most efficient at large products
    layers: int = 4
    heads: int = 2
    head_dim: int = 64


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
