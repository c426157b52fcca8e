"""Causal attention over sequences that are laid end to end; importing this file registers it with transformers."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

PACKED_ATTENTION = "lrpo_packed"  # the name under which transformers finds it, for ``attn_implementation``
_KERNEL_ARGUMENTS = frozenset(inspect.signature(varlen_attn).parameters)


def packed_attention(
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
    """Causal attention in which a token sees the tokens of its own sequence alone.

    The signature is the one transformers calls. On CUDA in half precision a kernel of PyTorch does it all. Elsewhere
    there is one SDPA call per sequence: on a CPU that is faster than any mask, and exact.

    Args:
        query: [1, heads, T, d].
        key, value: [1, key-value heads, T, d].
        sliding_window: of some models' layers: a token sees itself and the ``sliding_window`` − 1 tokens before it.
        cu_seq_lens_q: [number of sequences + 1] int32, the boundaries of the sequences.
        max_length_q: tokens of the longest sequence.

    Returns:
        [1, T, heads, d], and None in place of attention weights.
    """
    assert cu_seq_lens_q is not None
    if query.is_cuda and query.dtype != torch.float32:
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return _kernel(q, k, v, cu_seq_lens_q, max_length_q, scaling, sliding_window)[None], None
    pieces = []
    for begin, end in pairwise(cu_seq_lens_q.tolist()):
        length, mask = end - begin, None
        if sliding_window is not None and length > sliding_window:
            mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - sliding_window)
        q, k, v = (tensor[:, :, begin:end] for tensor in (query, key, value))
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


# No mask is registered under this name, because the boundaries already do what a mask would. Where one is, transformers
# looks for packed sequences in the positions, at each forward pass, and the host waits for the GPU to find them.
AttentionInterface.register(PACKED_ATTENTION, packed_attention)
