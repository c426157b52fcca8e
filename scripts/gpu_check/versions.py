"""What is installed, and which GPU and driver there are."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from contextlib import suppress

from scripts.gpu_check.figures import Figure, Sizes

_PACKAGES = (
    "torch",
    "transformers",
    "sglang",
    "triton",
    "numpy",
    "msgspec",
    "pydantic",
    "pyzmq",
    "sentence-transformers",
)


def check_versions(sizes: Sizes) -> list[Figure]:
    """Versions, and whether torch can use the GPU at all."""
    found = [Figure("Python", platform.python_version())]
    for name in _PACKAGES:
        version = "absent"
        with suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
        found.append(Figure(name, version))
    import torch

    has_gpu = torch.cuda.is_available()
    found.append(Figure("GPU", torch.cuda.get_device_name() if has_gpu else "none", "", has_gpu or sizes.tiny, "one"))
    if has_gpu:
        found.append(Figure("compute capability", ".".join(map(str, torch.cuda.get_device_capability()))))
        found.append(Figure("GPU memory", torch.cuda.get_device_properties(0).total_memory / 1e9, "GB"))
        found.append(Figure("CUDA", str(torch.version.cuda)))
        found.append(Figure("NCCL", ".".join(map(str, torch.cuda.nccl.version()))))
        with suppress(OSError, subprocess.SubprocessError):
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            told = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
            found.append(Figure("driver", told.split()[0]))
    return found
