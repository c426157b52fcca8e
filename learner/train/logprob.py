"""Log-probabilities of response tokens without ever holding all logits [R, V] in memory.

Shape suffixes: R response tokens, D hidden size, V vocabulary, C rows of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

_Function = TypeVar("_Function", bound=Callable[..., Any])


def chunked_logp(
    hidden_R_D: Tensor,
    head_V_D: Tensor,
    targets_R: Tensor,
    temperature: float,
    chunk: int,
    *,
    with_entropy: bool = True,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy at its position, both [R] float32, in nats.

    The softmax is over ``hidden_R_D @ head_V_D.T / temperature``, in float32, with at most ``chunk`` rows of logits
    in memory at a time. The backward pass computes the logits again. The entropy carries no gradient.

    Args:
        hidden_R_D: hidden states that predict the targets.
        head_V_D: the vocabulary projection.
        targets_R: [R] int64.
        with_entropy: otherwise the entropy is not computed, and is [0].
        compiled: fuse what happens to a chunk of logits with ``torch.compile``.
    """
    logp_R, entropy_R = _ChunkedLogp.apply(  # type: ignore[no-untyped-call]
        hidden_R_D, head_V_D, targets_R, temperature, chunk, with_entropy, compiled
    )
    return logp_R, entropy_R


class _ChunkedLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_R_D: Tensor,
        head_V_D: Tensor,
        targets_R: Tensor,
        temperature: float,
        chunk: int,
        with_entropy: bool,
        compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        score = _maybe_compiled(_score, compiled)
        logp_R = torch.empty(len(targets_R), dtype=torch.float32, device=hidden_R_D.device)
        entropy_R = torch.empty_like(logp_R) if with_entropy else logp_R.new_empty(0)
        for part in _slices(len(targets_R), chunk):
            logits_C_V = mm_float32(hidden_R_D[part], head_V_D.T)
            logp_R[part], entropy_C = score(logits_C_V, targets_R[part], temperature, with_entropy)
            if with_entropy:
                entropy_R[part] = entropy_C
        ctx.save_for_backward(hidden_R_D, head_V_D, targets_R)
        ctx.temperature, ctx.chunk, ctx.compiled = temperature, chunk, compiled
        ctx.mark_non_differentiable(entropy_R)
        return logp_R, entropy_R

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_R_D, head_V_D, targets_R = ctx.saved_tensors
        gradient_of = _maybe_compiled(_gradient, ctx.compiled)
        d_hidden_R_D = torch.empty_like(hidden_R_D)
        d_head_V_D = torch.zeros(head_V_D.shape, dtype=torch.float32, device=head_V_D.device)
        for part in _slices(len(targets_R), ctx.chunk):
            logits_C_V = mm_float32(hidden_R_D[part], head_V_D.T)
            d_logits_C_V = gradient_of(
                logits_C_V, targets_R[part], gradients[0][part], ctx.temperature, hidden_R_D.dtype
            )
            torch.mm(d_logits_C_V, head_V_D, out=d_hidden_R_D[part])
            add_mm_float32(d_head_V_D, d_logits_C_V.T, hidden_R_D[part])
        return d_hidden_R_D, d_head_V_D.to(head_V_D.dtype), None, None, None, None, None


def _score(
    logits_C_V: Tensor, targets_C: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the targets, and the entropies −Σ p log p if they are asked for, each [C] float32."""
    if temperature != 1:
        logits_C_V = logits_C_V / temperature
    logp_C_V = logits_C_V.log_softmax(-1)
    chosen_C = logp_C_V.gather(1, targets_C[:, None])[:, 0]
    if not with_entropy:
        return chosen_C, None
    # A product of matrices sums in one kernel, without an array of the products.
    return chosen_C, -torch.bmm(logp_C_V.exp()[:, None, :], logp_C_V[:, :, None])[:, 0, 0]


def _gradient(
    logits_C_V: Tensor, targets_C: Tensor, d_logp_C: Tensor, temperature: float, dtype: torch.dtype
) -> Tensor:
    """The gradient with respect to the logits, d_logp · (onehot − softmax) / temperature, [C, V] in ``dtype``."""
    if temperature != 1:
        logits_C_V = logits_C_V / temperature
    d_logits_C_V = logits_C_V.softmax(-1)
    d_logits_C_V.scatter_add_(1, targets_C[:, None], d_logits_C_V.new_full((len(targets_C), 1), -1.0))
    scale_C = d_logp_C / -temperature
    if dtype == d_logits_C_V.dtype:
        return d_logits_C_V.mul_(scale_C[:, None])
    return torch.mul(d_logits_C_V, scale_C[:, None], out=torch.empty_like(d_logits_C_V, dtype=dtype))


def mm_float32(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` in float32. On CUDA the sums of half-precision products are never rounded to half precision.

    A logit above 16 rounded to bfloat16 is off by up to 0.06, which would be noise in every ratio and KL.
    """
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


def add_mm_float32(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right`` in place, for a float32 ``total``; on CUDA without an array of the product."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.ops.aten.addmm.dtype_out(total, left, right, torch.float32, out=total)
    else:
        total += (left @ right).float()


@cache
def _compiled(function: _Function) -> _Function:
    compiled: Any = torch.compile(function, dynamic=True)
    return compiled  # type: ignore[no-any-return]


def _maybe_compiled(function: _Function, compiled: bool) -> _Function:
    return _compiled(function) if compiled else function


def _slices(length: int, chunk: int) -> list[slice]:
    return [slice(begin, begin + chunk) for begin in range(0, length, chunk)]
