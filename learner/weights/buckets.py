"""How weights are cut into buckets, flat buffers of bytes, and how another process finds one in this one's memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common import wire


def lendable(size: int, device: torch.device) -> Tensor:
    """Memory for so many bytes that ``lend`` need not move, as somebody may be reading it then."""
    buffer = torch.empty(size, dtype=torch.uint8, device=device)
    if not buffer.is_cuda:
        buffer.untyped_storage()._share_filename_cpu_()
    return buffer


def lend(buffer: Tensor) -> wire.Loan:
    """Lets one other process read the memory of ``buffer``; each needs a loan of its own, as torch counts readers."""
    storage = buffer.untyped_storage()
    if storage.is_cuda:
        return wire.Loan(cuda=True, fields=list(storage._share_cuda_()))
    fields = list(storage._share_filename_cpu_())
    storage._shared_incref()
    return wire.Loan(cuda=False, fields=fields)


def plan(layout: dict[str, list[int]], dtype: str, limit_mb: float) -> list[wire.Bucket]:
    """Consecutive tensors of at most ``limit_mb`` MiB together in each bucket; a larger one is alone."""
    buckets: list[wire.Bucket] = []
    for name, shape in layout.items():
        one = wire.Bucket(names=[name], dtypes=[dtype], shapes=[shape])
        if buckets and size_of(buckets[-1]) + size_of(one) <= limit_mb * 2**20:
            buckets[-1].names.append(name)
            buckets[-1].dtypes.append(dtype)
            buckets[-1].shapes.append(shape)
        else:
            buckets.append(one)
    return buckets


def dtype_of(bucket: wire.Bucket) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, bucket.dtypes[0])
    return dtype


def size_of(bucket: wire.Bucket) -> int:
    """Bytes."""
    return dtype_of(bucket).itemsize * sum(map(math.prod, bucket.shapes))
