"""Messages as bytes and back: MessagePack maps, checked against their types on arrival.

A message is decoded straight into its type; its ``kind`` in the map is the lower-case name of that, or its ``tag``.
"""

from __future__ import annotations

from typing import Any, TypeAlias, TypeVar

import msgpack
import msgspec
import numpy as np

from common.wire.base import WireError
from common.wire.groups import Ack, Leased, Release, Submit
from common.wire.scoring import ScoreReply, ScoreRequest
from common.wire.session import Alive, Eject, Heartbeat, Hello, Leave, Stop, Unknown, Welcome
from common.wire.status import Health, Healthy, Status
from common.wire.weights import Join, Joined, Pause, Receive, Synced

AnyMessage: TypeAlias = (
    Hello
    | Leave
    | Welcome
    | Unknown
    | Leased
    | Submit
    | Release
    | Ack
    | Heartbeat
    | Alive
    | Join
    | Joined
    | Pause
    | Receive
    | Synced
    | Eject
    | Stop
    | ScoreRequest
    | ScoreReply
    | Health
    | Healthy
    | Status
)
T = TypeVar("T")


def _raw(value: Any) -> memoryview:
    if isinstance(value, np.ndarray) and value.dtype in ("<i4", "<f4"):
        return np.ascontiguousarray(value).data
    raise TypeError(f"a {type(value).__name__} of dtype {getattr(value, 'dtype', None)} does not travel")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_raw)
_DECODER: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Any) -> bytes:
    """A message, or whatever is made of ``WireStruct``.

    Raises:
        TypeError: an array is of another dtype than int32 and float32.
    """
    try:
        return _ENCODER.encode(message)
    except UnicodeEncodeError:
        # A lone surrogate, which no encoding has, must not keep a whole group from travelling: it becomes a "?".
        plain = msgspec.to_builtins(message, enc_hook=lambda value: bytes(_raw(value)), builtin_types=(bytes,))
        packed = msgpack.packb(plain, unicode_errors="replace")
        assert isinstance(packed, bytes)
        return packed


def decode(data: bytes | memoryview) -> AnyMessage:
    """
    Raises:
        WireError: not MessagePack, of an unknown kind, or a field is missing or of another type.
    """
    return _decoded(data, _DECODER)


def unpack(data: bytes | memoryview, kind: type[T]) -> T:
    """What ``encode`` made of an object of this type; raises WireError for anything else."""
    return _decoded(data, msgspec.msgpack.Decoder(kind))


def _decoded(data: bytes | memoryview, decoder: msgspec.msgpack.Decoder[T]) -> T:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise WireError(f"malformed message: {error}") from None
    except (ValueError, RecursionError) as error:  # ValueErrors are msgspec's others too, and those of a text's UTF-8
        raise WireError(f"not a MessagePack message: {error}") from None
