"""Which NVIDIA GPUs this process may use. Asks the driver, so that light processes need not import torch."""

from __future__ import annotations

import ctypes
import os
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path


def visible_gpus() -> list[str]:
    """The GPUs as CUDA_VISIBLE_DEVICES names them, or their numbers where it is not set; empty without a GPU.

    Also empty where the installed torch is a build for CPUs, which a driver alone does not enable to use a GPU, and
    where LRPO_DEVICE says ``cpu``.
    """
    if os.environ.get("LRPO_DEVICE") == "cpu" or not torch_has_cuda():
        return []
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


@cache
def torch_has_cuda() -> bool:
    """Whether the installed torch is a build for CUDA, read from its ``version.py`` without importing it."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return True  # an unusual build; torch itself will say what it cannot do
    return re.search(r"^cuda\b[^=\n]*=\s*None\s*$", text, re.MULTILINE) is None
