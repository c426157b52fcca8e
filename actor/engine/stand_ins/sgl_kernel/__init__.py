"""Stand-in for SGLang's compiled kernels, on the path of an engine without CUDA only.

SGLang's CPU engine runs on plain torch where the processor lacks AMX, but imports names from ``sgl_kernel`` on loading.
It must not define ``torch.ops.sgl_kernel``: their absence is what selects the plain path.

With ``LRPO_PAGEABLE_MEMORY`` torch ignores requests for pinned memory. SGLang's LoRA layers pin memory on every machine
(https://github.com/sgl-project/sglang/issues/31894), and torch cannot without an accelerator.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

__version__ = "0.0.0"


def _without_pinning(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def made(*arguments: Any, pin_memory: bool = False, **others: Any) -> Any:
        return make(*arguments, **others)

    return made


def _ignore_pinning() -> None:
    import torch

    torch.Tensor.pin_memory = lambda self, *_, **__: self  # type: ignore[method-assign, assignment]
    for name in ("tensor", "empty", "zeros", "ones", "full", "arange"):
        setattr(torch, name, _without_pinning(getattr(torch, name)))


if os.environ.get("LRPO_PAGEABLE_MEMORY"):
    _ignore_pinning()


def __getattr__(name: str) -> Callable[..., None]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: object, **__: object) -> None:
        raise NotImplementedError(f"sgl_kernel.{name} needs SGLang's compiled kernels, which this machine cannot run")

    return missing
