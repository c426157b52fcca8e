"""Which NVIDIA GPUs this process may use. Asks the driver, so that light processes need not import torch."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from common.process import FatalError

_NO_GPU = ("-1", "NoDevFiles")  # in CUDA_VISIBLE_DEVICES these end the list; the second one is Slurm's
_LIST_S = 60.0  # nvidia-smi takes seconds where nothing keeps the driver loaded


def visible_gpus() -> list[str]:
    """The GPUs as CUDA_VISIBLE_DEVICES names them, or their numbers where it is not set; empty without a GPU.

    Also empty where the installed torch is a build for CPUs, which a driver alone does not enable to use a GPU, and
    where LRPO_DEVICE says ``cpu``.
    """
    count, _ = _count_visible()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def usable_gpus() -> list[str]:
    """``visible_gpus``, where none is missing of those that this process was given.

    They are those that CUDA_VISIBLE_DEVICES names, by number, UUID or MIG name. Where LRPO_DEVICE says ``gpu`` there
    must be one, unless CUDA_VISIBLE_DEVICES is set and names none.

    Raises:
        FatalError: one is missing or cannot be used. A process on the CPU would be slower by orders of magnitude.
    """
    found, device = visible_gpus(), os.environ.get("LRPO_DEVICE")
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = _names(given or "")
    wanted = len(named) or int(given is None and device == "gpu")
    nobody_wants = device == "cpu" or (device != "gpu" and not torch_has_cuda())
    if len(found) >= wanted or nobody_wants:
        return found
    _, why = _count_visible()
    raise FatalError(
        f"LRPO_DEVICE = {device or 'not set'} and CUDA_VISIBLE_DEVICES = {'not set' if given is None else given} ask "
        f"for {wanted} GPU{'s' if wanted > 1 else ''}, and {len(found) or 'none'} of them can be used"
        f"{f' ({why})' if why else ''}. nvidia-smi lists: {_list_gpus()}. Mend the driver, name GPUs of this machine, "
        "or set LRPO_DEVICE=cpu"
    )


def has_cuda() -> bool:
    """Whether this process computes on a GPU.

    Raises:
        FatalError: a GPU that it was given is missing or cannot be used.
    """
    return bool(usable_gpus())


def _names(given: str) -> list[str]:
    """The GPUs that a value of CUDA_VISIBLE_DEVICES names."""
    names = list[str]()
    for name in filter(None, map(str.strip, given.split(","))):
        if name in _NO_GPU:
            break
        names.append(name)
    return names


def _count_visible() -> tuple[int, str]:
    """How many GPUs torch and the driver let this process use, and where there is none, why."""
    if os.environ.get("LRPO_DEVICE") == "cpu":
        return 0, ""
    if not torch_has_cuda():
        return 0, "the installed torch is a build for CPUs"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return 0, f"the driver cannot be loaded: {error}"
    count = ctypes.c_int(0)
    if code := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0, f"the driver's cuInit fails with CUDA error {code}"
    return count.value, ""


def _list_gpus() -> str:
    """The GPUs of this machine, whatever CUDA_VISIBLE_DEVICES says, in a line."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_LIST_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nothing ({error})"
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return "; ".join(lines) or "nothing"


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
