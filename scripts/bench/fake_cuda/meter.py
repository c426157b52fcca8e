"""Counts operations on CUDA tensors without data: kernels, bytes, multiply-adds, memory, and waits of the host.

Times are by the roofline of an H100: an operation takes the time of its arithmetic or that of its bytes, whichever is
longer, and at least that of a launch. Arithmetic of other operations than products and attention costs nothing, caches
do not exist, and communication between ranks overlaps with everything. Nothing here is measured on a GPU.
"""

from __future__ import annotations

import traceback
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scripts.bench.fake_cuda.shim import is_pinned

PEAK_FLOPS = 989e12  # of an H100 SXM in bfloat16, dense
_MATMUL, _ATTENTION, _ATTENTION_BACKWARD = 0.72, 0.35, 0.28  # shares of the peak that kernels reach
_FLOAT32_FLOPS = 50e12
_BYTES_PER_S = 3.35e12 * 0.85
_LAUNCH_S = 1.5e-6
_ROOT = Path(__file__).parents[3]
_NO_KERNEL = ("aten.empty", "aten.new_empty", "aten.detach", "aten.lift_fresh", "aten.alias")
_SPARSE = ("aten.gather", "aten.scatter_add_")
_SMALL = 16  # rows, columns or summands
# Operations whose kernels read their input more than once: softmax, for maximum, sum and result, where a row is larger
# than a multiprocessor's memory; the norm's backward pass, for the gradients of the input and of the weight.
_SOFTMAX, _LARGE_ROW, _SOFTMAX_READS = ("aten._softmax.", "aten._log_softmax."), 200_000, 3  # bytes
_TWO_READS = ("aten._fused_rms_norm_backward",)
_COPIES = ("aten._to_copy.", "aten.copy_.")
_PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm")


@dataclass
class Counts:
    """What the operations of one phase take together."""

    seconds: float = 0.0
    kernels: int = 0
    bytes: float = 0.0
    flops: float = 0.0
    sent: float = 0.0  # bytes that collectives were given
    by_operation: dict[str, float] = field(default_factory=dict)  # seconds


class Meter(TorchDispatchMode):
    """Counts, while it is active, within a FakeTensorMode.

    Args:
        pairs: query-key pairs of the attention of a micro-batch, Σ n²/2 over its sequences. Their number is data,
            which tensors do not hold here.

    Attributes:
        phases: the counts by phase.
        waits: where the host waited for the device, by phase.
        foreign: tensors on the CPU that an operation took together with CUDA tensors, by operation and phase.
        wide: products of float32 matrices, by operation and phase.
        live, peak: bytes of CUDA memory now, and at most since ``peak`` was last set.
    """

    def __init__(self, pairs: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phases: dict[str, Counts] = {}
        self.waits: list[tuple[str, str]] = []
        self.foreign: Counter[tuple[str, str]] = Counter()
        self.wide: Counter[tuple[str, str]] = Counter()
        self.live = self.peak = 0
        self.peak_at = ""
        self.phase = "start"
        self._pairs = pairs
        self._sizes: dict[int, int] = {}  # bytes by storage
        self._kernel: _Kernel | None = None  # that is being put together
        self._ignores = False

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Operations count to ``phase``."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    @contextmanager
    def ignoring(self) -> Iterator[None]:
        """Nothing is counted. Whatever is made within the block must not outlive it."""
        before, self._ignores = self._ignores, True
        try:
            yield
        finally:
            self._ignores = before

    @contextmanager
    def one_kernel(self, name: str, reads: int = 1) -> Iterator[None]:
        """Operations count as one kernel, which reads its inputs ``reads`` times and writes what outlives it."""
        assert self._kernel is None
        self._kernel = _Kernel()
        try:
            yield
        finally:
            kernel, self._kernel = self._kernel, None
            self._note_peak(name)
            self._add(self.phases.setdefault(self.phase, Counts()), name, 0.0, PEAK_FLOPS, kernel.bytes(reads))

    def enter(self, phase: str) -> None:
        """From now on operations count to ``phase``."""
        self.phase = phase

    def reset(self) -> None:
        """Forgets all counts but the memory that is in use."""
        self.phases.clear()
        self.waits.clear()
        self.foreign.clear()
        self.wide.clear()
        self.peak = self.live

    def resized(self, storage: torch.UntypedStorage, size: int) -> None:
        """A storage has another size now, as FSDP makes it to free gathered weights."""
        key = storage._cdata
        if key in self._sizes:
            self.live += size - self._sizes[key]
            self._sizes[key] = size
            self._note_peak("resize")

    def waited(self, what: str) -> None:
        """The host waited for the device."""
        frames = [f for f in traceback.extract_stack() if f.filename.startswith(str(_ROOT / "learner"))]
        place = f"{Path(frames[-1].filename).relative_to(_ROOT)}:{frames[-1].lineno}" if frames else "elsewhere"
        self.waits.append((self.phase, f"{what} at {place}"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes again with what this rank holds
        if self._ignores:
            return func(*args, **kwargs)
        name = str(func)
        inputs = _cuda_tensors((args, kwargs))
        if name == "aten._local_scalar_dense.default":
            if inputs:
                self.waited("a value is read")
            return _any_value(args[0].dtype)
        outputs_of = func(*args, **kwargs)
        outputs = _cuda_tensors(outputs_of)
        for tensor in outputs:
            self._note(tensor, name)
        if inputs and not outputs and _on_cpu(outputs_of) and not kwargs.get("non_blocking"):
            self.waited(f"{name} copies to the host")
        if name.startswith(_COPIES) and outputs:
            self._check_upload(name, args, kwargs)
        if inputs or outputs:
            self._check(name, args, inputs)
            self._count(func, name, args, inputs, outputs)
        return outputs_of

    # -- memory ----------------------------------------------------------------------------------------------------

    def _note(self, tensor: Tensor, name: str) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._sizes:
            self._sizes[key] = size
            self.live += size
            weakref.finalize(storage, self._freed, key)
        self._note_peak(name)

    def _freed(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)

    def _note_peak(self, name: str) -> None:
        if self._kernel is None and self.live > self.peak:  # a kernel keeps what is in between to itself
            self.peak, self.peak_at = self.live, f"{name} in {self.phase}"

    # -- work ------------------------------------------------------------------------------------------------------

    def _check_upload(self, name: str, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Notes that the host waits, if this copies from its memory to the device and not asynchronously."""
        source, flags = (args[0], args[1:]) if "_to_copy" in name else (args[1], args[2:])
        if source.device.type != "cpu" or not source.dim():  # a number travels with the launch of a kernel
            return
        if not (kwargs.get("non_blocking") or (flags and flags[0] is True)):
            self.waited(f"{name} copies to the device and waits for it")
        elif not is_pinned(source):
            self.waited(f"{name} copies to the device from memory that is not pinned")

    def _check(self, name: str, args: Any, inputs: list[Tensor]) -> None:
        mixed = [one for one in tree_leaves(args) if isinstance(one, Tensor) and one.device.type == "cpu" and one.dim()]
        if inputs and mixed and "copy" not in name:
            self.foreign[name, self.phase] += 1
        if name.startswith(_PRODUCTS):
            left, right = _cuda_tensors(args)[-2:]
            sizes = left.shape[-2], left.shape[-1], right.shape[-1]
            if left.dtype == torch.float32 and min(sizes) >= _SMALL:  # sums and outer products are no work
                self.wide[name, self.phase] += 1

    def _count(self, func: Any, name: str, args: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        counts = self.phases.setdefault(self.phase, Counts())
        if "c10d" in name:
            counts.sent += sum(one.nbytes for one in inputs)
            return
        old = {one.untyped_storage()._cdata for one in inputs}
        fresh = [one for one in outputs if one.untyped_storage()._cdata not in old]
        if name.startswith(_NO_KERNEL) or not (fresh or func._schema.is_mutable):
            return  # a view, or memory without content
        is_product = name.startswith(_PRODUCTS)
        if self._kernel is not None:
            assert not is_product and "varlen" not in name, f"{name} is a kernel of its own"
            self._kernel.add(inputs, fresh or outputs)
            return
        flops, rate = 0.0, PEAK_FLOPS * _MATMUL
        if "varlen" in name:
            back = "backward" in name
            query = inputs[1 if back else 0]  # [T, heads, width]; the gradient of the output comes first
            flops = (10 if back else 4) * self._pairs * query.shape[-2] * query.shape[-1]
            rate = PEAK_FLOPS * (_ATTENTION_BACKWARD if back else _ATTENTION)
        elif is_product:
            left, right = _cuda_tensors(args)[-2:]
            flops = 2 * left.numel() * right.shape[-1]
            if right.dtype == torch.float32:
                rate = _FLOAT32_FLOPS
        read = {(one.untyped_storage()._cdata, one.storage_offset(), one.nbytes): one.nbytes for one in inputs}
        sizes = [*read.values(), *(one.nbytes for one in fresh or outputs)]
        if name.startswith(_SPARSE):  # some elements of the largest tensor alone
            sizes = [size for size in sizes if size < max(sizes)]
        elif name.startswith(_TWO_READS):
            sizes += [one.nbytes for one in inputs]
        elif name.startswith(_SOFTMAX) and inputs[0].shape[-1] * inputs[0].itemsize > _LARGE_ROW:
            sizes += [inputs[0].nbytes] * (_SOFTMAX_READS - 1)
        self._add(counts, name, flops, rate, sum(sizes))

    @staticmethod
    def _add(counts: Counts, name: str, flops: float, rate: float, moved: float) -> None:
        seconds = max(flops / rate, moved / _BYTES_PER_S) + _LAUNCH_S
        counts.seconds += seconds
        counts.kernels += 1
        counts.bytes += moved
        counts.flops += flops
        counts.by_operation[name] = counts.by_operation.get(name, 0.0) + seconds


class _Kernel:
    """Operations that a compiler makes one kernel of."""

    def __init__(self) -> None:
        self._read: dict[int, int] = {}
        self._made: dict[int, tuple[weakref.ref[Any], int]] = {}

    def add(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        for one in inputs:
            if (key := one.untyped_storage()._cdata) not in self._made:
                self._read[key] = max(self._read.get(key, 0), one.nbytes)
        for one in outputs:
            storage = one.untyped_storage()
            self._made[storage._cdata] = (weakref.ref(storage), one.nbytes)

    def bytes(self, reads: int) -> float:
        """Its inputs, and those of its results that somebody still holds."""
        written = sum(size for storage, size in self._made.values() if storage() is not None)
        return reads * sum(self._read.values()) + written


def _cuda_tensors(tree: Any) -> list[Tensor]:
    return [
        one
        for one in tree_leaves(tree)
        if isinstance(one, Tensor) and not isinstance(one, DTensor) and one.device.type == "cuda"
    ]


def _on_cpu(tree: Any) -> bool:
    return any(isinstance(one, Tensor) and one.device.type == "cpu" for one in tree_leaves(tree))


def _any_value(dtype: torch.dtype) -> float | int | bool:
    if dtype == torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 1
