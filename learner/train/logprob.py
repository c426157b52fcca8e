"""Log-probabilities of response tokens without ever holding all logits [R, V] in memory.

Shape suffixes: R response tokens, D hidden size, V vocabulary, C rows of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class LogitTransform:
    """What an architecture does to its logits x behind the projection: cap · tanh(scale · x / cap), or scale · x.

    Args:
        scale: 1 in most architectures; ``logit_scale`` of Cohere, 1 / ``logits_scaling`` of Granite.
        softcap: ``final_logit_softcapping`` of Gemma-2, in nats; None where there is no cap.
    """

    scale: float = 1.0
    softcap: float | None = None

    @property
    def is_identity(self) -> bool:
        """Whether it leaves logits as they are."""
        return self.scale == 1 and self.softcap is None

    def __call__(self, logits: Tensor) -> Tensor:
        """The transformed logits, of the same shape; float32 is expected, and kept."""
        logits = logits * self.scale if self.scale != 1 else logits
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def backward(self, gradient: Tensor, transformed: Tensor) -> Tensor:
        """The gradient with respect to the logits, given that with respect to the transformed ones, and these."""
        if self.softcap is not None:
            gradient = gradient * (1 - (transformed / self.softcap).square())
        return gradient * self.scale if self.scale != 1 else gradient


def chunked_logp(
    hidden_R_D: Tensor,
    head_V_D: Tensor,
    targets_R: Tensor,
    temperature: float,
    chunk: int,
    *,
    bias_V: Tensor | None = None,
    transform: LogitTransform = LogitTransform(),  # it is immutable
    with_entropy: bool = True,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy at its position, both [R] float32, in nats.

    The softmax is over ``transform(hidden_R_D @ head_V_D.T + bias_V) / temperature``, in float32, with at most
    ``chunk`` rows of logits in memory at a time. The backward pass computes the logits again, and the gradient of the
    head only where it needs one. Both results carry a gradient.

    Args:
        hidden_R_D: hidden states that predict the targets.
        head_V_D: the vocabulary projection.
        targets_R: [R] int64.
        bias_V: of the projection, where it has one.
        transform: what the architecture does to its logits.
        with_entropy: otherwise the entropy is not computed, and is [0].
        compiled: fuse what happens to a chunk of logits with ``torch.compile``.
    """
    logp_R, entropy_R = _ChunkedLogp.apply(  # type: ignore[no-untyped-call]
        hidden_R_D, head_V_D, bias_V, targets_R, temperature, chunk, transform, with_entropy, compiled
    )
    return logp_R, entropy_R


class _ChunkedLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_R_D: Tensor,
        head_V_D: Tensor,
        bias_V: Tensor | None,
        targets_R: Tensor,
        temperature: float,
        chunk: int,
        transform: LogitTransform,
        with_entropy: bool,
        compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        score = _maybe_compiled(_score, compiled)
        logp_R = torch.empty(len(targets_R), dtype=torch.float32, device=hidden_R_D.device)
        entropy_R = torch.empty_like(logp_R) if with_entropy else logp_R.new_empty(0)
        for part in _slices(len(targets_R), chunk):
            logits_C_V = _project(hidden_R_D[part], head_V_D, bias_V)
            chosen_C, entropy_C = score(logits_C_V, targets_R[part], temperature, transform, with_entropy)
            logp_R[part] = chosen_C
            if entropy_C is not None:
                entropy_R[part] = entropy_C
        ctx.save_for_backward(hidden_R_D, head_V_D, bias_V, targets_R)
        ctx.temperature, ctx.chunk, ctx.transform, ctx.compiled = temperature, chunk, transform, compiled
        ctx.set_materialize_grads(False)  # None in the backward pass for a result that is not in the loss
        return logp_R, entropy_R

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        d_logp_R, d_entropy_R = gradients
        hidden_R_D, head_V_D, bias_V, targets_R = ctx.saved_tensors
        if d_logp_R is None:
            d_logp_R = torch.zeros(len(targets_R), dtype=torch.float32, device=hidden_R_D.device)
        _, head_trains, bias_trains, *_ = ctx.needs_input_grad  # neither where adapters alone are trained
        gradient_of = _maybe_compiled(_gradient, ctx.compiled)
        d_hidden_R_D = torch.empty_like(hidden_R_D)
        d_head_V_D = torch.zeros(head_V_D.shape, dtype=torch.float32, device=head_V_D.device) if head_trains else None
        d_bias_V = torch.zeros(bias_V.shape, dtype=torch.float32, device=bias_V.device) if bias_trains else None
        dtype = torch.float32 if bias_trains else hidden_R_D.dtype  # a bias sums over rows, in float32
        for part in _slices(len(targets_R), ctx.chunk):
            logits_C_V = _project(hidden_R_D[part], head_V_D, bias_V)
            d_entropy_C = None if d_entropy_R is None else d_entropy_R[part]
            d_logits_C_V = gradient_of(
                logits_C_V, targets_R[part], d_logp_R[part], d_entropy_C, ctx.temperature, ctx.transform, dtype
            )
            if d_bias_V is not None:
                d_bias_V += d_logits_C_V.sum(0)
                d_logits_C_V = d_logits_C_V.to(hidden_R_D.dtype)
            torch.mm(d_logits_C_V, head_V_D, out=d_hidden_R_D[part])
            if d_head_V_D is not None:
                add_mm_float32(d_head_V_D, d_logits_C_V.T, hidden_R_D[part])
        return (
            d_hidden_R_D,
            None if d_head_V_D is None else d_head_V_D.to(head_V_D.dtype),
            None if d_bias_V is None or bias_V is None else d_bias_V.to(bias_V.dtype),
            *[None] * 6,
        )


def _project(hidden_C_D: Tensor, head_V_D: Tensor, bias_V: Tensor | None) -> Tensor:
    """The logits of some rows before they are transformed, [C, V] float32."""
    logits_C_V = mm_float32(hidden_C_D, head_V_D.T)
    return logits_C_V if bias_V is None else logits_C_V + bias_V.float()


def _score(
    logits_C_V: Tensor, targets_C: Tensor, temperature: float, transform: LogitTransform, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the targets, and the entropies −Σ p log p if they are asked for, each [C] float32."""
    logits_C_V = transform(logits_C_V)
    if temperature != 1:
        logits_C_V = logits_C_V / temperature
    logp_C_V = logits_C_V.log_softmax(-1)
    chosen_C = logp_C_V.gather(1, targets_C[:, None])[:, 0]
    if not with_entropy:
        return chosen_C, None
    # A product of matrices sums in one kernel, without an array of the products.
    return chosen_C, -torch.bmm(logp_C_V.exp()[:, None, :], logp_C_V[:, :, None])[:, 0, 0]


def _gradient(
    logits_C_V: Tensor,
    targets_C: Tensor,
    d_logp_C: Tensor,
    d_entropy_C: Tensor | None,
    temperature: float,
    transform: LogitTransform,
    dtype: torch.dtype,
) -> Tensor:
    """The gradient with respect to the projection's logits, [C, V] in ``dtype``.

    That of the transformed ones is d_logp · (onehot − softmax) / temperature, and with the entropy H in the loss also
    −d_entropy · softmax · (log softmax + H) / temperature.
    """
    transformed_C_V = transform(logits_C_V)
    scaled_C_V = transformed_C_V if temperature == 1 else transformed_C_V / temperature
    d_logits_C_V = scaled_C_V.softmax(-1)
    d_logits_C_V.scatter_add_(1, targets_C[:, None], d_logits_C_V.new_full((len(targets_C), 1), -1.0))
    scale_C = d_logp_C / -temperature
    if d_entropy_C is not None:
        logp_C_V = scaled_C_V.log_softmax(-1)
        probability_C_V = logp_C_V.exp()
        entropy_C = -(probability_C_V * logp_C_V).sum(-1)
        bonus_C_V = probability_C_V * (logp_C_V + entropy_C[:, None]) * (d_entropy_C / -temperature)[:, None]
        return transform.backward(d_logits_C_V * scale_C[:, None] + bonus_C_V, transformed_C_V).to(dtype)
    if not transform.is_identity:
        return transform.backward(d_logits_C_V.mul_(scale_C[:, None]), transformed_C_V).to(dtype)
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
