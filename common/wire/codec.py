"""Turns messages into bytes and back. They are MessagePack maps, checked against their types when they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import msgpack
import msgspec
import numpy as np

from common.wire.base import FRAME_BYTES, WireError
from common.wire.groups import Ack, Leased, Release, Submit
from common.wire.scoring import ScoreReply, ScoreRequest
from common.wire.session import Alive, Eject, Heartbeat, Hello, Leave, Stop, Taken, Unknown, Welcome
from common.wire.status import Health, Healthy, Status
from common.wire.weights import Join, Joined, LoadAdapter, Pause, Receive, Synced

AnyMessage: TypeAlias = (
    Hello
    | Leave
    | Welcome
    | Taken
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
    | LoadAdapter
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
    """The bytes of a message, or of anything that is made of ``WireStruct``.

    Raises:
        TypeError: an array has a dtype other than int32 and float32.
    """
    try:
        return _ENCODER.encode(message)
    except UnicodeEncodeError:
        # A text holds a lone surrogate, which UTF-8 cannot encode. It becomes a "?", so that the group still travels.
        plain = msgspec.to_builtins(message, enc_hook=lambda value: bytes(_raw(value)), builtin_types=(bytes,))
        packed = msgpack.packb(plain, unicode_errors="replace")
        assert isinstance(packed, bytes)
        return packed


def encode_frames(message: Any) -> list[bytes | memoryview]:
    """The frames in which a message travels to an actor: the bytes that ``encode`` gives, and the data of an adapter.

    The data comes in views of at most ``FRAME_BYTES``, so that any number of actors may be sent the same memory.

    Raises:
        TypeError: an array has a dtype other than int32 and float32.
    """
    if not isinstance(message, LoadAdapter):
        return [encode(message)]
    data = memoryview(message.data)
    parts = [data[begin : begin + FRAME_BYTES] for begin in range(0, len(data), FRAME_BYTES)]
    return [encode(message.model_copy({"data": b""})), *parts]


def decode_frames(frames: Sequence[bytes]) -> AnyMessage:
    """Reads a message that ``encode_frames`` wrote.

    Raises:
        WireError: as ``decode``; or there are frames that do not belong to the message.
    """
    message = decode(frames[0])
    if len(frames) > 1:
        if not isinstance(message, LoadAdapter) or message.data or message.path:
            raise WireError(f"{len(frames)} frames instead of 1")
        message.data = b"".join(frames[1:])
    return message


def decode(data: bytes | memoryview) -> AnyMessage:
    """Reads a message that has arrived.

    Raises:
        WireError: it is no MessagePack, is of an unknown kind, or a field is missing or has the wrong type.
    """
    return _decoded(data, _DECODER)


class Heading(msgspec.Struct):
    """What all versions of this program understand of a message: its kind, and what an answer to it needs."""

    kind: str
    protocol: int | None = None  # of a hello
    name: str = ""  # of the actor that says it
    id: int | str | None = None  # of a request


_HEADINGS = msgspec.msgpack.Decoder(Heading)


def read_heading(data: bytes | memoryview) -> Heading | None:
    """What can be read of a message that ``decode`` refuses, as one of another version may be; None: nothing."""
    try:
        return _HEADINGS.decode(data)
    except (ValueError, RecursionError):
        return None


def unpack(data: bytes | memoryview, kind: type[T]) -> T:
    """Reads an object of this type that ``encode`` wrote.

    Raises:
        WireError: the bytes are anything else.
    """
    return _decoded(data, msgspec.msgpack.Decoder(kind))


def _decoded(data: bytes | memoryview, decoder: msgspec.msgpack.Decoder[T]) -> T:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise WireError(f"malformed message: {error}") from None
    except (ValueError, RecursionError) as error:  # msgspec's other errors and those of invalid UTF-8 are ValueErrors
        raise WireError(f"not a MessagePack message: {error}") from None
