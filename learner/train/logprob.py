"""Log-probabilities of response tokens without ever holding all logits [R, V] in memory.

Shape suffixes: R response tokens, D hidden size, V vocabulary, C rows of one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitTransform:
    """What an architecture does to its logits x behind the projection: cap · tanh(scale · x / cap), or scale · x.

    Args:
        scale: 1 in most architectures; ``logit_scale`` of Cohere, 1 / ``logits_scaling`` of Granite.
        softcap: ``final_logit_softcapping`` of Gemma-2, in nats; None where there is no cap.
    """

    scale: float = 1.0
    softcap: float | None = None

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
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy at its position, both [R] float32, in nats.

    The softmax is over ``transform(hidden_R_D @ head_V_D.T + bias_V) / temperature``, in float32, with at most
    ``chunk`` rows of logits in memory at a time. The backward pass computes the logits again, and the gradient of the
    head only where it needs one. The entropy carries no gradient.

    Args:
        hidden_R_D: hidden states that predict the targets.
        head_V_D: the vocabulary projection.
        targets_R: [R] int64.
        bias_V: of the projection, where it has one.
        transform: what the architecture does to its logits.
    """
    logp_R, entropy_R = _ChunkedLogp.apply(  # type: ignore[no-untyped-call]
        hidden_R_D, head_V_D, bias_V, targets_R, temperature, chunk, transform
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
    ) -> tuple[Tensor, Tensor]:
        logp_R = torch.empty(len(targets_R), dtype=torch.float32, device=hidden_R_D.device)
        entropy_R, normalizer_R = torch.empty_like(logp_R), torch.empty_like(logp_R)
        for part in _slices(len(targets_R), chunk):
            logits_C_V = transform(_project(hidden_R_D[part], head_V_D, bias_V)) / temperature
            normalizer_R[part] = logits_C_V.logsumexp(-1)
            logits_C_V -= normalizer_R[part, None]
            logp_R[part] = logits_C_V.gather(1, targets_R[part, None])[:, 0]
            entropy_R[part] = -(logits_C_V.exp() * logits_C_V).sum(-1)
        ctx.save_for_backward(hidden_R_D, head_V_D, bias_V, targets_R, normalizer_R)
        ctx.temperature, ctx.chunk, ctx.transform = temperature, chunk, transform
        ctx.mark_non_differentiable(entropy_R)
        return logp_R, entropy_R

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_R_D, head_V_D, bias_V, targets_R, normalizer_R = ctx.saved_tensors
        _, head_trains, bias_trains, *_ = ctx.needs_input_grad  # neither where adapters alone are trained
        d_hidden_R_D = torch.empty_like(hidden_R_D)
        d_head_V_D = torch.zeros(head_V_D.shape, dtype=torch.float32, device=head_V_D.device) if head_trains else None
        d_bias_V = torch.zeros(bias_V.shape, dtype=torch.float32, device=bias_V.device) if bias_trains else None
        for part in _slices(len(targets_R), ctx.chunk):
            transformed_C_V = ctx.transform(_project(hidden_R_D[part], head_V_D, bias_V))
            d_logits_C_V = -(transformed_C_V / ctx.temperature - normalizer_R[part, None]).exp()
            d_logits_C_V.scatter_add_(1, targets_R[part, None], torch.ones_like(d_logits_C_V[:, :1]))
            d_logits_C_V *= gradients[0][part, None] / ctx.temperature
            d_logits_C_V = ctx.transform.backward(d_logits_C_V, transformed_C_V)
            if d_bias_V is not None:
                d_bias_V += d_logits_C_V.sum(0)
            d_logits_C_V = d_logits_C_V.to(hidden_R_D.dtype)
            d_hidden_R_D[part] = d_logits_C_V @ head_V_D
            if d_head_V_D is not None:
                d_head_V_D += (d_logits_C_V.T @ hidden_R_D[part]).float()
        return (
            d_hidden_R_D,
            None if d_head_V_D is None else d_head_V_D.to(head_V_D.dtype),
            None if d_bias_V is None or bias_V is None else d_bias_V.to(bias_V.dtype),
            *[None] * 4,
        )


def _project(hidden_C_D: Tensor, head_V_D: Tensor, bias_V: Tensor | None) -> Tensor:
    """The logits of some rows before they are transformed, [C, V] float32."""
    logits_C_V = (hidden_C_D @ head_V_D.T).float()
    return logits_C_V if bias_V is None else logits_C_V + bias_V.float()


def _slices(length: int, chunk: int) -> list[slice]:
    return [slice(begin, begin + chunk) for begin in range(0, length, chunk)]
