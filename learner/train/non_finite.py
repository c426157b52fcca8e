"""Finds out which losses and gradients made a step not finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from learner.train.packing import Sample

_NAMED = 4  # of the losses and gradients that are not finite


def finite_samples(assigned: Sequence[Sequence[int]], losses: Sequence[Tensor], samples: Sequence[Sample]) -> Tensor:
    """Which samples have finite losses, as far as this rank can tell.

    Args:
        assigned: indices of the samples in each micro-batch of this rank.
        losses: the losses [R] of the response tokens of each of these micro-batches.
        samples: all samples of the step.

    Returns:
        [number of samples] int32, on the CPU: 0 where this rank saw a loss that is not finite, else 1.
    """
    finite = torch.ones(len(samples), dtype=torch.int32)
    for members, loss_R in zip(assigned, losses, strict=True):
        parts = loss_R.isfinite().cpu().split([len(samples[n].rollout.response_ids) for n in members])
        finite[list(members)] = torch.tensor([int(part.all()) for part in parts], dtype=torch.int32)
    return finite


def describe_non_finite(samples: Sequence[Sample], finite: Tensor, model: nn.Module) -> str:
    """Names the losses and gradients that are not finite on any rank. A collective of all ranks.

    Args:
        finite: as ``finite_samples`` returns it.
        model: its gradients have been computed.
    """
    parameters = list(model.named_parameters())
    gradients = [value.grad.to_local() if isinstance(value.grad, DTensor) else value.grad for _, value in parameters]
    fine = torch.tensor([gradient is None or bool(gradient.isfinite().all()) for gradient in gradients])
    found = torch.cat([finite, fine.int()])
    dist.all_reduce(found, dist.ReduceOp.MIN)
    names = [f"loss of {sample.name}" for sample in samples] + [f"gradient of {name}" for name, _ in parameters]
    bad = [name for name, good in zip(names, found.tolist(), strict=True) if not good] or ["gradient norm"]
    more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    return f"not finite: {', '.join(bad[:_NAMED])}{more}"
