"""The vocabulary projection: entropies on demand, half precision, and compiled pieces; each against whole logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from learner.train.logprob import chunked_logp

ROWS, HIDDEN, VOCABULARY = 37, 16, 101


def drawn(seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head, targets, and the gradient that comes from above."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator).to(dtype)
    head = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(dtype)
    return (
        hidden,
        head,
        torch.randint(0, VOCABULARY, (ROWS,), generator=generator),
        torch.randn(ROWS, generator=generator),
    )


def exact(hidden: Tensor, head: Tensor, targets: Tensor, upstream: Tensor, temperature: float) -> list[Tensor]:
    """Log-probability, entropy and both gradients, from whole logits in float64."""
    x, w = hidden.double().requires_grad_(), head.double().requires_grad_()
    table = torch.log_softmax(x @ w.T / temperature, -1)
    logp = table[torch.arange(ROWS), targets]
    (logp * upstream).sum().backward()
    assert x.grad is not None and w.grad is not None
    return [logp.detach(), -(table.exp() * table).sum(-1).detach(), x.grad, w.grad]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.15)])
def test_values_and_gradients_are_those_of_whole_logits(
    temperature: float, dtype: torch.dtype, tolerance: float, seed: int
) -> None:
    hidden, head, targets, upstream = drawn(seed, dtype)
    x, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    logp, entropy = chunked_logp(x, w, targets, temperature, 8)
    (logp * upstream).sum().backward()
    assert logp.dtype == entropy.dtype == torch.float32 and x.grad is not None and w.grad is not None
    assert x.grad.dtype == w.grad.dtype == dtype
    for got, wanted in zip((logp, entropy, x.grad, w.grad), exact(*drawn(seed, dtype), temperature), strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


def test_entropies_are_left_out_where_nobody_asks_for_them(seed: int) -> None:
    hidden, head, targets, _ = drawn(seed, torch.float32)
    wanted, _ = chunked_logp(hidden, head, targets, 0.7, 8)
    logp, entropy = chunked_logp(hidden, head, targets, 0.7, 8, with_entropy=False)
    assert torch.equal(logp, wanted) and entropy.shape == (0,)
