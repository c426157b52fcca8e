"""Causal attention over sequences that are laid end to end; importing this file registers it with transformers."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

PACKED_ATTENTION = "lrpo_packed"  # the name under which transformers finds it, for ``attn_implementation``
_KERNEL_ARGUMENTS = frozenset(inspect.signature(varlen_attn).parameters)
_QUERIES = 1024  # whose scores exist at a time, where the scores are computed here and not in a kernel


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention in which a token sees the tokens of its own sequence alone.

    The signature is the one transformers calls. On CUDA in half precision a kernel of PyTorch does it all. Elsewhere
    there is one SDPA call per sequence: on a CPU that is faster than any mask, and exact. No kernel of PyTorch knows
    soft caps or sinks; layers that have them compute their scores in the open, a block of queries at a time.

    What a model does besides, and its arguments do not say, is found by ``learner.train.fidelity`` when it is loaded.

    Args:
        query: [1, heads, T, d].
        key, value: [1, key-value heads, T, d].
        sliding_window: of some models' layers: a token sees itself and the ``sliding_window`` − 1 tokens before it.
        softcap: of Gemma-2: scores x become softcap · tanh(x / softcap).
        s_aux: of gpt-oss, [heads]: the score of a sink, which takes a share of the attention and has no value.
        cu_seq_lens_q: [number of sequences + 1] int32, the boundaries of the sequences.
        max_length_q: tokens of the longest sequence.

    Returns:
        [1, T, heads, d], and None in place of attention weights.

    Raises:
        ValueError: the model keeps the boundaries to itself.
    """
    if cu_seq_lens_q is None:
        raise ValueError("the model does not hand the boundaries of packed sequences on to its attention")
    in_the_open = softcap is not None or s_aux is not None
    if query.is_cuda and query.dtype != torch.float32 and not in_the_open:
        q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
        return _kernel(q, k, v, cu_seq_lens_q, max_length_q, scaling, sliding_window)[None], None
    pieces = []
    lengths = cu_seq_lens_q.diff().tolist()
    # Split and not cut out one by one: the gradient of each cut would be an array of all T tokens.
    for q, k, v in zip(*(tensor.split(lengths, 2) for tensor in (query, key, value)), strict=True):
        length = q.shape[2]
        if in_the_open:
            pieces.append(_attention_in_the_open(q, k, v, scaling, sliding_window, softcap, s_aux))
            continue
        mask = None
        if sliding_window is not None and length > sliding_window:
            mask = _seen(0, length, length, sliding_window, query.device)
        pieces.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
            )
        )
    return torch.cat(pieces, 2).transpose(1, 2).contiguous(), None


def _kernel(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float | None, window: int | None
) -> Tensor:
    """PyTorch's kernel for packed sequences, [T, heads, d]; its arguments are those of the installed version."""
    arguments: dict[str, Any] = {"scale": scale}
    if "window_size" in _KERNEL_ARGUMENTS:
        arguments["window_size"] = (-1 if window is None else window - 1, 0)
    elif window is None:
        arguments["is_causal"] = True
    else:
        raise NotImplementedError("varlen_attn of this version of torch has no sliding window: torch 2.13 has one")
    if "enable_gqa" in _KERNEL_ARGUMENTS:
        arguments["enable_gqa"] = True
    else:
        repeats = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(repeats, 1) for tensor in (key, value))
    return cast(Tensor, varlen_attn(query, key, value, bounds, bounds, longest, longest, **arguments))


def _attention_in_the_open(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention within one sequence of L tokens, [1, heads, L, d], of which at most 1024 · L scores exist at a time."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    repeats = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(repeats, 1) for tensor in (key, value))

    def attend(block: Tensor, first: int, seen_from: int, end: int) -> Tensor:
        k, v = key[:, :, seen_from:end], value[:, :, seen_from:end]
        scores = (block @ k.transpose(2, 3)).float() * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        seen = _seen(first - seen_from, end - first, end - seen_from, window, block.device)
        scores = scores.masked_fill(~seen, -torch.inf)
        if sinks is not None:
            sink = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, sink], -1)
        weights = scores.softmax(-1)[..., : v.shape[2]]
        return weights.to(v.dtype) @ v

    length = query.shape[2]
    pieces = []
    for first in range(0, length, _QUERIES):
        end = min(first + _QUERIES, length)
        seen_from = 0 if window is None else max(0, first + 1 - window)
        block = query[:, :, first:end]
        # The scores are computed again in the backward pass, so that those of one block exist at a time.
        pieces.append(checkpoint(attend, block, first, seen_from, end, use_reentrant=False))
    return torch.cat(pieces, 2)


def _seen(first: int, queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys each query sees, [queries, keys]; the first query is at the position of key number ``first``."""
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(first)
    return seen if window is None else seen.triu(first + 1 - window)


# No mask is registered under this name, because the boundaries already do what a mask would. Where one is, transformers
# looks for packed sequences in the positions, at each forward pass, and the host waits for the GPU to find them.
AttentionInterface.register(PACKED_ATTENTION, packed_attention)
