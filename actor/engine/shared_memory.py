"""SGLang's route for weights in shared memory takes a pickle: made here, read on this machine by the engine alone."""

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


class _Call:
    """Pickles as a call that the reader makes, so that the memory is not opened here."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._parts = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._parts


def pickled(bucket: wire.Bucket, loan: wire.Loan) -> str:
    """The bucket's tensors as views of the memory lent, ``[(name, tensor)]``, as torch's own IPC writes them."""
    dtype: torch.dtype = getattr(torch, bucket.dtypes[0])
    fields = loan.fields
    if not loan.cuda:
        storage = _Call(rebuild_storage_filename, torch.UntypedStorage, *fields)
        typed = _Call(rebuild_typed_storage, storage, dtype)
    tensors, offset = [], 0
    for name, shape in zip(bucket.names, bucket.shapes, strict=True):
        size, stride = torch.Size(shape), torch.empty(shape, device="meta").stride()
        if loan.cuda:
            where = size, stride, offset, torch.TypedStorage, dtype
            tensor = _Call(rebuild_cuda_tensor, torch.Tensor, *where, *fields[:4], False, *fields[4:])
        else:
            tensor = _Call(rebuild_tensor, torch.Tensor, typed, (offset, size, stride, False))
        tensors.append((name, tensor))
        offset += math.prod(shape)
    return base64.b64encode(pickle.dumps(tensors)).decode()
