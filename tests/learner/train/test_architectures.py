"""The learner's log-probabilities and gradients are the model's own, for every architecture that it accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from learner.train.fidelity import check_fidelity
from learner.train.packing import Sample, pack
from learner.train.policy import Policy
from tests.support.groups import random_rollout

SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
WIDE = {"head_dim": 16}  # not hidden_size / num_attention_heads
ALTERNATING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
MULTIPLIERS = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2}

# By name: the configuration class and what it is given besides the sizes.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2 window": ("Qwen2Config", {"use_sliding_window": True, **ALTERNATING}),
    "qwen3": ("Qwen3Config", WIDE),
    "mistral": ("MistralConfig", {"sliding_window": 6, **WIDE}),
    "gemma": ("GemmaConfig", WIDE),
    "gemma2": ("Gemma2Config", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, **WIDE, **ALTERNATING}),
    "gemma3": ("Gemma3TextConfig", WIDE | ALTERNATING),
    "granite": ("GraniteConfig", {"logits_scaling": 4.0, **MULTIPLIERS}),
    "cohere": ("CohereConfig", {"logit_scale": 0.3, "use_qk_norm": True}),
    "cohere2": ("Cohere2Config", {"logit_scale": 0.3, **ALTERNATING}),
    "phi": ("PhiConfig", {"partial_rotary_factor": 0.5}),  # its head has a bias
    "phi3": ("Phi3Config", {"sliding_window": 6}),
    "olmo2": ("Olmo2Config", {}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0]}),
    "gpt-oss": ("GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, **WIDE, **ALTERNATING}),
}


def saved(directory: Path, kind: str, seed: int, **settings: Any) -> str:
    """A random model in a directory, in which also norms and biases are random."""
    torch.manual_seed(seed)
    config = getattr(transformers, kind)(**SIZES | settings)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return str(directory)


def load(path: str) -> Policy:
    return Policy(path, temperature=1.0, head_chunk=7)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_values_gradients_and_names_are_those_of_transformers(
    name: str, tmp_path: Path, seed: int, rng: np.random.Generator
) -> None:
    kind, settings = ARCHITECTURES[name]
    path = saved(tmp_path, kind, seed, **settings)
    samples = [Sample(random_rollout(rng), 0.0) for _ in range(4)]
    policy = load(path)
    assert check_fidelity(policy).difference < 1e-5

    logp, _ = policy(pack(samples))
    weights = torch.cat([torch.full((n,), 1 / n) for n in (len(one.rollout.response_ids) for one in samples)])
    (-logp * weights).sum().backward()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    for sample, part in zip(samples, logp.split([len(one.rollout.response_ids) for one in samples]), strict=True):
        prompt, response = sample.rollout.prompt_ids, sample.rollout.response_ids
        ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None]
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        out = model(input_ids=ids, labels=labels, use_cache=False)
        wanted = out.logits[0, len(prompt) - 1 : -1].log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
        torch.testing.assert_close(part, wanted, rtol=1e-5, atol=2e-5)
        out.loss.backward()  # the mean over the response

    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert {f"lm.{key}" for key in file.keys()} == {key for key, _ in policy.named_parameters()}  # noqa: SIM118
    for key, parameter in model.named_parameters():
        theirs, ours = parameter.grad, policy.get_parameter(f"lm.{key}").grad
        assert (theirs is None) == (ours is None), key
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()) + 1e-7, msg=key)
