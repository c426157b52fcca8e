"""Stand-in for SGLang's compiled kernels, on the path of an engine without CUDA only.

SGLang's CPU engine runs on plain torch where the processor lacks AMX, but imports names from ``sgl_kernel`` on loading.
It must not define ``torch.ops.sgl_kernel``: their absence is what selects the plain path.
"""

from collections.abc import Callable

__version__ = "0.0.0"


def __getattr__(name: str) -> Callable[..., None]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: object, **__: object) -> None:
        raise NotImplementedError(f"sgl_kernel.{name} needs SGLang's compiled kernels, which this machine cannot run")

    return missing
