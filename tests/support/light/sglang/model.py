"""A dense Qwen3 with tied embeddings, computed anew for each token."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor


class WrongShape(ValueError):
    """A tensor is not of the shape that the model has."""


class Model:
    """Weights by their names in the checkpoint, in the checkpoint's dtype; computed in float32."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shape = json.loads((path / "config.json").read_text())
        self.weights = load_file(path / "model.safetensors")
        self.adapters: dict[str, dict[str, Tensor]] = {}  # name -> the weights that it changes, with its change
        self.version = "0"
        self.context = int(self.shape["max_position_embeddings"])
        self.ends = self._end_tokens(path)

    def _end_tokens(self, path: Path) -> set[int]:
        """The tokens that end an answer, as the checkpoint has them in two places."""
        found = [self.shape.get("eos_token_id")]
        if (path / "generation_config.json").exists():
            found.append(json.loads((path / "generation_config.json").read_text()).get("eos_token_id"))
        return {token for one in found if one is not None for token in (one if isinstance(one, list) else [one])}

    def replace(self, name: str, value: Tensor) -> None:
        """Copies a tensor into the memory of the weight, as SGLang's loaders do.

        As in SGLang an unknown name is ignored, and that is a success.

        Raises:
            WrongShape: the model's tensor has another shape.
        """
        if name not in self.weights:
            return
        if value.shape != self.weights[name].shape:
            raise WrongShape(f"{name}: shape {list(value.shape)}, expected {list(self.weights[name].shape)}")
        self.weights[name].copy_(value)

    def load_adapter(self, name: str, path: Path) -> None:
        """Takes a LoRA adapter of PEFT's format. As in SGLang a wrong shape is noticed when it is first used."""
        settings = json.loads((path / "adapter_config.json").read_text())
        tensors = load_file(path / "adapter_model.safetensors")
        scale = settings["lora_alpha"] / settings["r"]
        layers = {key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in tensors}
        self.adapters[name] = {
            f"{layer}.weight": scale * self._part(tensors, layer, "B") @ self._part(tensors, layer, "A")
            for layer in layers
        }

    @staticmethod
    def _part(tensors: dict[str, Tensor], layer: str, part: str) -> Tensor:
        return tensors[f"base_model.model.{layer}.lora_{part}.weight"].float()

    def logits(self, ids: list[list[int]], adapter: str = "") -> Tensor:
        """[n, longest, vocabulary]; what is behind the end of a sequence means nothing."""
        shape, w = self.shape, self.weights
        if adapter:
            w = {**w, **{name: w[name] + change for name, change in self.adapters[adapter].items()}}
        heads, kv, width = shape["num_attention_heads"], shape["num_key_value_heads"], shape["head_dim"]
        theta = shape.get("rope_theta") or shape["rope_parameters"]["rope_theta"]
        longest = max(map(len, ids))
        x = w["model.embed_tokens.weight"][torch.tensor([row + [0] * (longest - len(row)) for row in ids])].float()
        angles = torch.outer(torch.arange(longest), theta ** (-torch.arange(0, width, 2) / width)).repeat(1, 2)
        for n in range(shape["num_hidden_layers"]):
            layer = {k.split(f"layers.{n}.")[1]: v.float() for k, v in w.items() if f"model.layers.{n}." in k}
            h = self._norm(x, layer["input_layernorm.weight"])
            q, k, v = (
                (h @ layer[f"self_attn.{p}_proj.weight"].T).unflatten(-1, (-1, width)).transpose(1, 2) for p in "qkv"
            )
            q = self._rotate(self._norm(q, layer["self_attn.q_norm.weight"]), angles)
            k = self._rotate(self._norm(k, layer["self_attn.k_norm.weight"]), angles)
            k, v = (t.repeat_interleave(heads // kv, 1) for t in (k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + mixed @ layer["self_attn.o_proj.weight"].T
            h = self._norm(x, layer["post_attention_layernorm.weight"])
            gate = F.silu(h @ layer["mlp.gate_proj.weight"].T) * (h @ layer["mlp.up_proj.weight"].T)
            x = x + gate @ layer["mlp.down_proj.weight"].T
        return self._norm(x, w["model.norm.weight"].float()) @ w["model.embed_tokens.weight"].float().T

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.shape["rms_norm_eps"])

    @staticmethod
    def _rotate(x: Tensor, angles: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-b, a], -1) * angles.sin()
