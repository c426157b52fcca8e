"""Log-probabilities of response tokens without ever holding all logits [R, V] in memory.

Shape suffixes: R response tokens, D hidden size, V vocabulary, C rows of one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learner.train.kernels import kernel


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
        score = kernel(_score, compiled)
        logp_R = torch.empty(len(targets_R), dtype=torch.float32, device=hidden_R_D.device)
        normalizer_R = torch.empty_like(logp_R)
        entropy_R = torch.empty_like(logp_R) if with_entropy else logp_R.new_empty(0)
        for part in _slices(len(targets_R), chunk):
            logits_C_V = _project(hidden_R_D[part], head_V_D, bias_V)
            found = score(logits_C_V, targets_R[part], temperature, transform, with_entropy, compiled)
            logp_R[part], normalizer_R[part], entropy_C = found
            if entropy_C is not None:
                entropy_R[part] = entropy_C
        ctx.save_for_backward(hidden_R_D, head_V_D, bias_V, targets_R, normalizer_R, entropy_R)
        ctx.temperature, ctx.chunk, ctx.transform, ctx.compiled = temperature, chunk, transform, compiled
        ctx.set_materialize_grads(False)  # None in the backward pass for a result that is not in the loss
        return logp_R, entropy_R

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        d_logp_R, d_entropy_R = gradients
        hidden_R_D, head_V_D, bias_V, targets_R, normalizer_R, entropy_R = ctx.saved_tensors
        if d_logp_R is None:
            d_logp_R = torch.zeros(len(targets_R), dtype=torch.float32, device=hidden_R_D.device)
        _, head_trains, bias_trains, *_ = ctx.needs_input_grad  # neither where adapters alone are trained
        gradient_of = kernel(_gradient, ctx.compiled)
        d_hidden_R_D = torch.empty_like(hidden_R_D)
        d_head_V_D = torch.zeros(head_V_D.shape, dtype=torch.float32, device=head_V_D.device) if head_trains else None
        d_bias_V = torch.zeros(bias_V.shape, dtype=torch.float32, device=bias_V.device) if bias_trains else None
        dtype = torch.float32 if bias_trains else hidden_R_D.dtype  # a bias sums over rows, in float32
        for part in _slices(len(targets_R), ctx.chunk):
            logits_C_V = _project(hidden_R_D[part], head_V_D, bias_V)
            entropy_C, d_entropy_C = (None, None) if d_entropy_R is None else (entropy_R[part], d_entropy_R[part])
            d_logits_C_V = gradient_of(
                logits_C_V, targets_R[part], normalizer_R[part], d_logp_R[part], entropy_C, d_entropy_C,
                ctx.temperature, ctx.transform, dtype, ctx.compiled,
            )  # fmt: skip
            del logits_C_V  # the next ones take its place
            if d_bias_V is not None:
                d_bias_V += d_logits_C_V.sum(0)
                d_logits_C_V = d_logits_C_V.to(hidden_R_D.dtype)
            torch.mm(d_logits_C_V, head_V_D, out=d_hidden_R_D[part])
            if d_head_V_D is not None:
                add_mm_float32(d_head_V_D, d_logits_C_V.T, hidden_R_D[part])
            del d_logits_C_V
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
    logits_C_V: Tensor,
    targets_C: Tensor,
    temperature: float,
    transform: LogitTransform,
    with_entropy: bool,
    in_one_kernel: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Each [C] float32: log-probabilities of the targets; log Σ exp of the logits; entropies −Σ p log p if asked for.

    May overwrite the logits.
    """
    logits_C_V = transform(logits_C_V)
    if temperature != 1:
        logits_C_V = logits_C_V / temperature
    logp_C_V = logits_C_V.log_softmax(-1)
    chosen_C, logit_C = (one.gather(1, targets_C[:, None])[:, 0] for one in (logp_C_V, logits_C_V))
    if not with_entropy:
        return chosen_C, logit_C - chosen_C, None
    if in_one_kernel:
        return chosen_C, logit_C - chosen_C, -(logp_C_V.exp() * logp_C_V).sum(-1)
    probability_C_V = torch.exp(logp_C_V, out=logits_C_V)
    # A product of matrices sums in one kernel, without an array of the products.
    entropy_C = -torch.bmm(probability_C_V[:, None, :], logp_C_V[:, :, None])[:, 0, 0]
    return chosen_C, logit_C - chosen_C, entropy_C


def _gradient(
    logits_C_V: Tensor,
    targets_C: Tensor,
    normalizer_C: Tensor,
    d_logp_C: Tensor,
    entropy_C: Tensor | None,
    d_entropy_C: Tensor | None,
    temperature: float,
    transform: LogitTransform,
    dtype: torch.dtype,
    in_one_kernel: bool,
) -> Tensor:
    """The gradient with respect to the projection's logits, [C, V] in ``dtype``. May overwrite the logits.

    That of the transformed ones is d_logp · (onehot − softmax) / temperature, and with the entropy H in the loss also
    −d_entropy · softmax · (log softmax + H) / temperature.

    Args:
        normalizer_C: log Σ exp of the transformed logits / temperature.
        in_one_kernel: it is to be compiled, so that no array but the result exists, and nothing is overwritten.
    """
    transformed_C_V = transform(logits_C_V)
    scaled_C_V = transformed_C_V if temperature == 1 else transformed_C_V / temperature
    overwrites = not in_one_kernel and transform.is_identity
    normalizer_C_1, scale_C_1 = normalizer_C[:, None], (d_logp_C / -temperature)[:, None]
    logp_C_V = scaled_C_V.sub_(normalizer_C_1) if overwrites else scaled_C_V - normalizer_C_1
    probability_C_V = logp_C_V.exp_() if overwrites and d_entropy_C is None else logp_C_V.exp()
    bonus_C_V = None
    if entropy_C is not None and d_entropy_C is not None:
        bonus_C_V = probability_C_V * (logp_C_V + entropy_C[:, None]) * (d_entropy_C / -temperature)[:, None]
    if in_one_kernel:
        tokens_V = torch.arange(logits_C_V.shape[1], device=logits_C_V.device)
        probability_C_V = probability_C_V - (tokens_V == targets_C[:, None]).float()
    else:
        probability_C_V.scatter_add_(1, targets_C[:, None], scale_C_1.new_full((len(targets_C), 1), -1.0))
        if bonus_C_V is None and transform.is_identity and dtype != torch.float32:
            return torch.mul(probability_C_V, scale_C_1, out=torch.empty_like(probability_C_V, dtype=dtype))
    gradient_C_V = probability_C_V * scale_C_1 if in_one_kernel else probability_C_V.mul_(scale_C_1)
    if bonus_C_V is not None:
        gradient_C_V = gradient_C_V + bonus_C_V
    return transform.backward(gradient_C_V, transformed_C_V).to(dtype)


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


def _slices(length: int, chunk: int) -> list[slice]:
    return [slice(begin, begin + chunk) for begin in range(0, length, chunk)]
