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

from common import wire

# Of the fields of a CUDA handle, see torch/csrc/StorageSharing.cpp.
_COUNTER = slice(4, 6)  # where torch counts the readers
_WAITS_FOR_EVENT = 7


class SharedBuffer:
    """Memory that other processes can be given handles of.

    Attributes:
        tensor: [size] uint8, uninitialized.

    Args:
        size: in bytes.
        device: where it lies.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.tensor = torch.empty(size, dtype=torch.uint8, device=device)
        storage = self.tensor.untyped_storage()
        self._cuda: list[Any] | None = None  # the fields of every handle, where this is memory of a GPU
        if self.tensor.is_cuda:
            self._cuda = _share_cuda(storage)
        else:
            # Host memory is a shared file from the start. Torch would otherwise move it into one when the first handle
            # is made, while somebody may hold a view of the old place.
            _share_file(storage)

    def create_handle(self) -> wire.SharedMemoryHandle:
        """What one other process needs to open the memory, once.

        Host memory needs a handle for each process and time, because torch counts the handles to know when to remove
        the file. The content must be complete, copies on a GPU included, before a handle is given to anybody.
        """
        if self._cuda is not None:
            return wire.SharedMemoryHandle(cuda=True, fields=list(self._cuda))
        storage = self.tensor.untyped_storage()
        fields = _share_file(storage)
        storage._shared_incref()
        return wire.SharedMemoryHandle(cuda=False, fields=fields)


def _share_cuda(storage: torch.UntypedStorage) -> list[Any]:
    """The fields of a handle of GPU memory, which any number of processes may open any number of times.

    Each time that torch is asked for one it wraps the memory once more and takes a place in a file of counters and an
    event, all of which stay until the memory is freed. So this is done once for each buffer. Two things of that handle
    are for senders that give one to each reader, and are switched off. The counter of readers, which begins at 1, would
    keep the memory for ever if an engine died before it opened it; the learner knows by itself how long it needs it.
    And the event would tell when the content of the first time is complete, for which the learner waits each time.
    """
    fields = list(storage._share_cuda_())
    torch.UntypedStorage._release_ipc_counter_cuda(*fields[_COUNTER])
    fields[_WAITS_FOR_EVENT] = False
    return fields


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
