"""Memory of the learner that an engine on the same machine reads where it is, in host memory or on the GPU.

The two ends are torch's own inter-process communication, taken apart: a handle is made here and travels in a message,
and ``actor/engine/shared_memory.py`` makes of it what SGLang takes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common import wire


def allocate_shared_buffer(size: int, device: torch.device) -> Tensor:
    """Memory that other processes can be given handles of: [size] uint8 on ``device``, uninitialized.

    Host memory is a shared file from the start. Torch would otherwise move it into one when the first handle is made,
    while somebody may hold a view of the old place.
    """
    buffer = torch.empty(size, dtype=torch.uint8, device=device)
    if not buffer.is_cuda:
        buffer.untyped_storage()._share_filename_cpu_()
    return buffer


def create_handle(buffer: Tensor) -> wire.SharedMemoryHandle:
    """What one other process needs to open the memory of ``buffer``.

    Every process needs a handle of its own, because torch counts the handles to know when the memory may be freed.
    """
    storage = buffer.untyped_storage()
    if storage.is_cuda:
        return wire.SharedMemoryHandle(cuda=True, fields=list(storage._share_cuda_()))
    fields = list(storage._share_filename_cpu_())
    storage._shared_incref()
    return wire.SharedMemoryHandle(cuda=False, fields=fields)
