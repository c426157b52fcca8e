"""The policy under training: a transformers causal LM on packed sequences, sharded with FSDP2."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from common.process import FatalError
from learner.train.packing import Packed

_ATTENTION = "lrpo_packed"


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each packed sequence; query [1, heads, T, d], key and value [1, kv heads, T, d].

    With a ``sliding_window`` w, of some models' layers, a token sees itself and the w - 1 before it.

    On a CPU one SDPA call a sequence is faster than any mask, and exact; CUDA has a kernel for it, in half precision.
    """
    assert cu_seq_lens_q is not None
    if query.is_cuda and query.dtype != torch.float32:
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        bounds, longest, window = cu_seq_lens_q, max_length_q, ((sliding_window or 0) - 1, 0)
        out = varlen_attn(q, k, v, bounds, bounds, longest, longest, window_size=window, scale=scaling, enable_gqa=True)
        return cast(Tensor, out)[None], None
    ends = cu_seq_lens_q.tolist()
    pieces = []
    for a, b in pairwise(ends):
        mask = None
        if sliding_window is not None and b - a > sliding_window:
            mask = torch.ones(b - a, b - a, dtype=torch.bool, device=query.device).tril().triu(1 - sliding_window)
        q, k, v = (tensor[:, :, a:b] for tensor in (query, key, value))
        pieces.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
            )
        )
    return torch.cat(pieces, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(_ATTENTION, _packed_attention)
AttentionMaskInterface.register(_ATTENTION, lambda *_, **__: None)  # boundaries do the masking


class _ChunkedLogProb(torch.autograd.Function):
    """Log-probability and entropy of targets, softmax in float32, with ``chunk`` rows of logits alive at a time.

    Logits are computed again in the backward pass. The entropy carries no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        logp = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        entropy, normalizer = torch.empty_like(logp), torch.empty_like(logp)
        for part in _slices(len(targets), chunk):
            logits = (hidden[part] @ weight.T).float() / temperature
            normalizer[part] = logits.logsumexp(-1)
            logits -= normalizer[part, None]
            logp[part] = logits.gather(1, targets[part, None])[:, 0]
            entropy[part] = -(logits.exp() * logits).sum(-1)
        ctx.save_for_backward(hidden, weight, targets, normalizer)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normalizer = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for part in _slices(len(targets), ctx.chunk):
            logits = (hidden[part] @ weight.T).float() / ctx.temperature
            d_logits = -(logits - normalizer[part, None]).exp()
            d_logits.scatter_add_(1, targets[part, None], torch.ones_like(d_logits[:, :1]))
            d_logits *= gradients[0][part, None] / ctx.temperature
            d_logits = d_logits.to(hidden.dtype)
            d_hidden[part] = d_logits @ weight
            d_weight += (d_logits.T @ hidden[part]).float()
        return d_hidden, d_weight.to(weight.dtype), None, None, None


def _slices(length: int, chunk: int) -> list[slice]:
    return [slice(begin, begin + chunk) for begin in range(0, length, chunk)]


class Policy(nn.Module):
    """A causal LM that gives log-probabilities of the responses in a packed micro-batch.

    Backbone and vocabulary projection are one module, so that FSDP2 shards tied embeddings once.

    Args:
        path: Hugging Face directory or hub name.
        temperature: of sampling; logits are divided by it, as the engine does.
        head_chunk: rows of logits alive at a time.
    """

    def __init__(self, path: str, *, temperature: float, head_chunk: int, checkpointing: bool = False) -> None:
        super().__init__()
        try:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation=_ATTENTION)
        except (OSError, ValueError, SafetensorError) as error:
            raise FatalError(f"cannot load model.path = {path!r}: {error}") from None
        self.lm: PreTrainedModel = model
        self.temperature, self.head_chunk = temperature, head_chunk
        shape: Any = model.config.get_text_config()
        width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        self.layers: int = shape.num_hidden_layers
        self._attention: int = self.layers * shape.num_attention_heads * width
        self.vocabulary: int = model.get_output_embeddings().weight.shape[0]
        self._head: int = model.get_output_embeddings().weight.numel()
        self._body: int = sum(p.numel() for p in cast(nn.ModuleList, model.get_decoder().layers).parameters())
        if checkpointing:
            self.lm.gradient_checkpointing_enable()
            for layer in cast(nn.ModuleList, model.get_decoder().layers):
                layer.training = True  # else it is ignored; of the layer alone, so that nothing inside drops out

    def cost(self, prompt: int, response: int) -> float:
        """Multiply-adds of a forward pass over one sequence: layers, the head at response tokens, causal attention."""
        tokens = prompt + response
        return tokens * self._body + response * self._head + tokens**2 * self._attention

    def forward(self, batch: Packed, temperature: float | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities of ``batch.targets`` and entropies at their positions, each [R] float32.

        At the ``temperature`` of sampling, unless another one is given.
        """
        hidden = self.lm.get_decoder()(  # alone, where the model has an image encoder too
            input_ids=batch.ids,
            position_ids=batch.positions,
            attention_mask=None,
            use_cache=False,  # with a cache transformers would mix the packed sequences
            cu_seq_lens_q=batch.boundaries,
            cu_seq_lens_k=batch.boundaries,
            max_length_q=batch.longest,
            max_length_k=batch.longest,
        ).last_hidden_state[0]
        head = self.lm.get_output_embeddings().weight
        logp, entropy = _ChunkedLogProb.apply(  # type: ignore[no-untyped-call]
            hidden[batch.rows], head, batch.targets, temperature or self.temperature, self.head_chunk
        )
        return logp, entropy


def shard(policy: Policy, mesh: DeviceMesh, param_dtype: torch.dtype, *, on_cpu: bool = False) -> Policy:
    """Shards layer by layer, then the rest; forward in ``param_dtype``; gradients reduced, weights kept in float32.

    Args:
        mesh: of one dimension, or of two (replicas, shards) for hybrid sharding.
        on_cpu: weights rest in pinned host memory and visit the GPU layer by layer.
    """
    precision = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy() if on_cpu else OffloadPolicy()
    for layer in [*cast(nn.ModuleList, policy.lm.get_decoder().layers), policy]:
        fully_shard(layer, mesh=mesh, mp_policy=precision, offload_policy=offload)
    return policy


def layout(policy: Policy) -> dict[str, list[int]]:
    """Shapes by checkpoint name, in the order of ``full_weights``."""
    return {
        name.removeprefix("lm."): list(policy.get_parameter(name).shape)
        for _, names in _units(policy)
        for name in names
    }  # fmt: skip


def full_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its checkpoint name, whole, valid until the next is asked for; all ranks walk it together.

    Gathers one FSDP unit after the other with a single collective each, in the dtype of the forward pass.
    """
    for unit, names in _units(policy):
        unit.unshard()
        for name in names:
            yield name.removeprefix("lm."), policy.get_parameter(name).detach()
        unit.reshard()


def _units(policy: Policy) -> list[tuple[FSDPModule, list[str]]]:
    """What FSDP gathers at once, and the names of the parameters in it."""
    units = {name: module for name, module in policy.named_modules() if isinstance(module, FSDPModule)}
    owned: dict[str, list[str]] = {prefix: [] for prefix in units}
    for name, _ in policy.named_parameters():
        owned[max((p for p in units if not p or name.startswith(p + ".")), key=len)].append(name)
    return [(units[prefix], names) for prefix, names in owned.items()]
