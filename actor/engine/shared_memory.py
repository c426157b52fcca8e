"""Makes of the learner's shared memory what SGLang's ``/update_weights_from_tensor`` takes.

That route takes a pickle. It is made here and is read by the engine on this machine alone: no pickle travels over a
socket of the learner.
"""

from __future__ import annotations

import base64
import math
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import (
    rebuild_cuda_tensor,
    rebuild_storage_filename,
    rebuild_tensor,
    rebuild_typed_storage,
)

from common import wire


class _DeferredCall:
    """Is pickled as a call that the reader of the pickle makes, so that this process does not open the memory."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


def pickle_shared_tensors(bucket: wire.Bucket, handle: wire.SharedMemoryHandle) -> str:
    """The bucket's tensors as views of the shared memory, in the format of torch's own inter-process communication.

    Args:
        bucket: which tensors lie in the memory, one after another.
        handle: of that memory, made for the one engine rank that reads the result.

    Returns:
        The pickle of ``[(name, tensor), …]`` in base64.
    """
    dtype: torch.dtype = getattr(torch, bucket.dtypes[0])
    fields = handle.fields
    if not handle.cuda:
        storage = _DeferredCall(rebuild_storage_filename, torch.UntypedStorage, *fields)
        typed = _DeferredCall(rebuild_typed_storage, storage, dtype)
    tensors, offset = [], 0  # the offset counts elements
    for name, shape in zip(bucket.names, bucket.shapes, strict=True):
        size, stride = torch.Size(shape), torch.empty(shape, device="meta").stride()
        if handle.cuda:
            view = size, stride, offset, torch.TypedStorage, dtype
            tensor = _DeferredCall(rebuild_cuda_tensor, torch.Tensor, *view, *fields[:4], False, *fields[4:])
        else:
            tensor = _DeferredCall(rebuild_tensor, torch.Tensor, typed, (offset, size, stride, False))
        tensors.append((name, tensor))
        offset += math.prod(shape)
    return base64.b64encode(pickle.dumps(tensors)).decode()
