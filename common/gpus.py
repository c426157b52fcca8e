"""Which NVIDIA GPUs this process may use. Asks the driver, so that light processes need not import torch."""

from __future__ import annotations

import ctypes
import os


def visible_gpus() -> list[str]:
    """The GPUs as CUDA_VISIBLE_DEVICES names them, or their numbers where it is not set; empty without a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[: count.value] if named else [str(number) for number in range(count.value)]


def has_cuda() -> bool:
    """Whether this process may use a GPU."""
    return bool(visible_gpus())
