"""What messages are made of: typed structs, arrays as raw little-endian bytes, and the limits of the protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Self, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

PROTOCOL = 4  # goes into the hello; peers of another number are refused
MAX_MESSAGE_BYTES = 256 << 20
INT32, FLOAT32 = np.dtype("<i4"), np.dtype("<f4")


class WireError(ValueError):
    """A message that is not what the protocol says."""


if TYPE_CHECKING:
    Int32: TypeAlias = NDArray[np.int32]
    Float32: TypeAlias = NDArray[np.float32]
else:  # decoded as pieces of the message itself, which ``__post_init__`` makes arrays, or refuses: no copy
    Int32 = Float32 = memoryview

Count = Annotated[int, Meta(ge=0, le=100_000)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]  # neither infinite nor no number


class WireStruct(Struct, forbid_unknown_fields=True, gc=False):
    """What messages are made of. Types are checked on arrival, by ``decode``, and not when an object is made."""

    def model_copy(self, update: dict[str, Any]) -> Self:
        return msgspec.structs.replace(self, **update)


class Message(WireStruct, tag_field="kind", tag=str.lower):
    """What travels by itself."""

    @property
    def kind(self) -> str:
        return str(self.__struct_config__.tag)
