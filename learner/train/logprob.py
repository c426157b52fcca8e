"""Log-probabilities of response tokens without ever holding all logits [R, V] in memory.

Shape suffixes: R response tokens, D hidden size, V vocabulary, C rows of one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def chunked_logp(
    hidden_R_D: Tensor, head_V_D: Tensor, targets_R: Tensor, temperature: float, chunk: int
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy at its position, both [R] float32, in nats.

    The softmax is over ``hidden_R_D @ head_V_D.T / temperature``, in float32, with at most ``chunk`` rows of logits
    in memory at a time. The backward pass computes the logits again. The entropy carries no gradient.

    Args:
        hidden_R_D: hidden states that predict the targets.
        head_V_D: the vocabulary projection.
        targets_R: [R] int64.
    """
    logp_R, entropy_R = _ChunkedLogp.apply(  # type: ignore[no-untyped-call]
        hidden_R_D, head_V_D, targets_R, temperature, chunk
    )
    return logp_R, entropy_R


class _ChunkedLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_R_D: Tensor, head_V_D: Tensor, targets_R: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        logp_R = torch.empty(len(targets_R), dtype=torch.float32, device=hidden_R_D.device)
        entropy_R, normalizer_R = torch.empty_like(logp_R), torch.empty_like(logp_R)
        for part in _slices(len(targets_R), chunk):
            logits_C_V = (hidden_R_D[part] @ head_V_D.T).float() / temperature
            normalizer_R[part] = logits_C_V.logsumexp(-1)
            logits_C_V -= normalizer_R[part, None]
            logp_R[part] = logits_C_V.gather(1, targets_R[part, None])[:, 0]
            entropy_R[part] = -(logits_C_V.exp() * logits_C_V).sum(-1)
        ctx.save_for_backward(hidden_R_D, head_V_D, targets_R, normalizer_R)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy_R)
        return logp_R, entropy_R

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_R_D, head_V_D, targets_R, normalizer_R = ctx.saved_tensors
        d_hidden_R_D = torch.empty_like(hidden_R_D)
        d_head_V_D = torch.zeros(head_V_D.shape, dtype=torch.float32, device=head_V_D.device)
        for part in _slices(len(targets_R), ctx.chunk):
            logits_C_V = (hidden_R_D[part] @ head_V_D.T).float() / ctx.temperature
            d_logits_C_V = -(logits_C_V - normalizer_R[part, None]).exp()
            d_logits_C_V.scatter_add_(1, targets_R[part, None], torch.ones_like(d_logits_C_V[:, :1]))
            d_logits_C_V *= gradients[0][part, None] / ctx.temperature
            d_logits_C_V = d_logits_C_V.to(hidden_R_D.dtype)
            d_hidden_R_D[part] = d_logits_C_V @ head_V_D
            d_head_V_D += (d_logits_C_V.T @ hidden_R_D[part]).float()
        return d_hidden_R_D, d_head_V_D.to(head_V_D.dtype), None, None, None


def _slices(length: int, chunk: int) -> list[slice]:
    return [slice(begin, begin + chunk) for begin in range(0, length, chunk)]
