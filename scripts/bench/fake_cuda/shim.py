"""Makes a CPU build of torch accept CUDA tensors that hold no data. To be loaded before torch is imported."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
import sys
import weakref
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.gpus import torch_has_cuda
from common.process import FatalError

_SOURCE = Path(__file__).with_name("guard.cpp")
_BUILD_S = 600
# Operations for which a build for CUDA has a kernel each, and a build for CPUs puts others together.
_KERNELS = ("silu_backward", "_fused_rms_norm", "_fused_rms_norm_backward")
_pinned = set[int]()  # storages in pinned memory
_kept: list[Any] = []  # registrations last as long as the object that made them


def why_not() -> str:
    """Why no GPU can be pretended here; empty if one can."""
    if torch_has_cuda():
        return "torch is a build for CUDA, and a GPU is pretended with the build for CPUs alone (LRPO_DEVICE=cpu)"
    if shutil.which("g++") is None:
        return "there is no C++ compiler: install g++"
    return ""


def build(directory: Path) -> Path:
    """Compiles the library into ``directory``; takes seconds.

    Raises:
        FatalError: the compiler is missing or fails.
    """
    if reason := why_not():
        raise FatalError(f"cannot pretend a GPU: {reason}")
    spec = find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch, library = Path(spec.origin).parent, directory / "pretended_cuda.so"
    command = ["g++", "-shared", "-fPIC", "-O0", "-std=c++20", f"-I{torch / 'include'}", str(_SOURCE)]
    command += [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch / 'lib'}", "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_S, check=False)
    if done.returncode:
        raise FatalError(f"cannot pretend a GPU: {_SOURCE.name} does not compile:\n{done.stderr[-2000:]}")
    return library


def load(library: Path) -> None:
    """Loads the library into this process, before torch, which looks for its parts once."""
    assert "torch" not in sys.modules, "the library must be loaded before torch is imported"
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    _replace_runtime()


class _Event:
    """A CUDA event of a device on which everything is done at once."""

    def __init__(self, *_: object, **__: object) -> None: ...
    def record(self, *_: object) -> None: ...
    def wait(self, *_: object) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True


class _Stream:
    """A CUDA stream of such a device. ``synchronized`` counts the waits of the host."""

    stream_id, device_index, device_type = 0, 0, 1
    synchronized = 0

    def __init__(self, *_: object, **__: object) -> None: ...
    def wait_event(self, _: object) -> None: ...
    def wait_stream(self, _: object) -> None: ...
    def record_event(self, _: object = None) -> _Event:
        return _Event()

    def synchronize(self) -> None:
        _Stream.synchronized += 1

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None: ...


def host_waits() -> int:
    """How often the host has waited for a stream or for the device, so far."""
    return _Stream.synchronized


def is_pinned(tensor: Any) -> bool:
    """Whether a tensor lies in memory that ``pin_memory`` has made, from which copies can be asynchronous."""
    return tensor.untyped_storage()._cdata in _pinned


def _pin_memory(tensor: Any, *_: object) -> Any:
    copy = tensor.clone()
    storage = copy.untyped_storage()
    _pinned.add(storage._cdata)
    weakref.finalize(storage, _pinned.discard, storage._cdata)
    return copy


def _replace_runtime() -> None:
    """Puts what torch.cuda would ask the driver for in place of functions that a CPU build does not have."""
    import torch

    runtime: Any = torch.cuda
    runtime.Stream, runtime.Event = _Stream, _Event
    runtime.current_stream = lambda *_: _Stream()
    runtime.stream = runtime.device = lambda *_: contextlib.nullcontext()
    runtime.set_device = lambda *_: None
    runtime.synchronize = lambda *_: _Stream().synchronize()
    runtime.current_device = lambda: 0
    runtime.device_count = lambda: 1
    runtime.is_initialized = runtime.is_available = lambda: True
    runtime._lazy_init = lambda: None
    tensor: Any = torch.Tensor
    tensor.pin_memory = _pin_memory
    make_library: Any = torch.library.Library
    library = make_library("aten", "IMPL")
    for name in _KERNELS:
        library.impl(name, _no_data, "CUDA")
    _kept.append(library)


def _no_data(*_: object, **__: object) -> None:
    """Stands for a kernel. Tensors without data never come to it: their shapes are computed elsewhere."""
    raise NotImplementedError
