"""Stand-in for torchvision, on the path of an engine without CUDA only.

transformers imports it for image processors, which text policies never call; published builds need CUDA.
"""

from collections.abc import Callable

__version__ = "0.28.0"


def __getattr__(name: str) -> Callable[..., None]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: object, **__: object) -> None:
        raise NotImplementedError(f"torchvision.{name}: engines without CUDA serve text only")

    return missing
