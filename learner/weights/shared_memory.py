"""Memory of the learner that an engine on the same machine reads where it is, in host memory or on the GPU.

The two ends are torch's own inter-process communication, taken apart: a handle is made here and travels in a message,
and ``actor/engine/shared_memory.py`` makes of it what SGLang takes.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
        _share_file(buffer.untyped_storage())
    return buffer


def create_handle(buffer: Tensor) -> wire.SharedMemoryHandle:
    """What one other process needs to open the memory of ``buffer``.

    Every process needs a handle of its own, because torch counts the handles to know when the memory may be freed.
    """
    storage = buffer.untyped_storage()
    if storage.is_cuda:
        return wire.SharedMemoryHandle(cuda=True, fields=list(storage._share_cuda_()))
    fields = _share_file(storage)
    storage._shared_incref()
    return wire.SharedMemoryHandle(cuda=False, fields=fields)


def _share_file(storage: torch.UntypedStorage) -> list[Any]:
    """The fields of a handle of host memory, which becomes a shared file if it is none yet.

    For the first one torch starts a process and reads from it. Where a signal interrupts that read, torch 2.13 loops
    for ever with Python's lock held, and only SIGKILL ends the process. So no signal is handled meanwhile.
    """
    with _signals_wait():
        return list(storage._share_filename_cpu_())


@contextmanager
def _signals_wait() -> Iterator[None]:
    """A block in which this thread is given no signal; those that come are handled after it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
