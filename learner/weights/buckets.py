"""How tensors are cut into buckets. A bucket is a flat buffer of bytes in which tensors lie one after another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from common import wire


def cut_into_buckets(layout: Mapping[str, list[int]], dtype: str, limit_mb: float) -> list[wire.Bucket]:
    """Puts consecutive tensors into one bucket for as long as they take at most ``limit_mb`` MiB together.

    Args:
        layout: the shape of every tensor by its published name, in the order in which the tensors are gathered.
        dtype: of all tensors, as torch calls it: "bfloat16".
        limit_mb: MiB. A tensor larger than this has a bucket of its own.

    Returns:
        All tensors of ``layout``, in its order. No bucket is empty.
    """
    buckets: list[wire.Bucket] = []
    for name, shape in layout.items():
        single = wire.Bucket(names=[name], dtypes=[dtype], shapes=[shape])
        if buckets and bytes_of(buckets[-1]) + bytes_of(single) <= limit_mb * 2**20:
            buckets[-1].names.append(name)
            buckets[-1].dtypes.append(dtype)
            buckets[-1].shapes.append(shape)
        else:
            buckets.append(single)
    return buckets


def dtype_of(bucket: wire.Bucket) -> torch.dtype:
    """The dtype of the bucket's tensors, which all have the same one."""
    dtype: torch.dtype = getattr(torch, bucket.dtypes[0])
    return dtype


def bytes_of(bucket: wire.Bucket) -> int:
    """How many bytes the bucket's tensors take together."""
    return dtype_of(bucket).itemsize * sum(map(math.prod, bucket.shapes))


def smallest_tensor(buckets: Sequence[wire.Bucket]) -> wire.Bucket:
    """A bucket of the smallest tensor alone."""
    every = [single for bucket in buckets for single in zip(bucket.names, bucket.dtypes, bucket.shapes, strict=True)]
    name, dtype, shape = min(every, key=lambda single: math.prod(single[2]))
    return wire.Bucket(names=[name], dtypes=[dtype], shapes=[shape])


def wait_for_copies(device: torch.device) -> None:
    """Blocks until the copies that this thread has ordered on a GPU are done; does nothing on a CPU.

    Other threads, streams and processes read a bucket, and none of them waits for this thread's stream: broadcasts are
    started on another one, see ``sending_stream``.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def tensors_in(buffer: Tensor, bucket: wire.Bucket) -> list[Tensor]:
    """The bucket's tensors as views of ``buffer``, in the order of ``bucket.names``.

    Args:
        buffer: [at least ``bytes_of(bucket)``] uint8. What it has beyond the bucket's bytes is not used.
    """
    flat = buffer[: bytes_of(bucket)].view(dtype_of(bucket)).split([math.prod(shape) for shape in bucket.shapes])
    return [tensor.view(shape) for tensor, shape in zip(flat, bucket.shapes, strict=True)]
