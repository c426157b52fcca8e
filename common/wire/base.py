"""What messages are made of: typed structs, arrays as raw little-endian bytes, and the limits of the protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

PROTOCOL = 11  # number of this protocol; an actor whose hello has another one is refused
MAX_MESSAGE_BYTES = 256 << 20  # sockets drop the connection of a peer that sends more
# Data of a message that is larger travels in frames of this size. A socket takes whole frames alone for a sign of life,
# and gives up a peer after some seconds without one, however fast the bytes come.
FRAME_BYTES = 1 << 20
INT32, FLOAT32 = np.dtype("<i4"), np.dtype("<f4")  # the two types of array that travel


class WireError(ValueError):
    """A message is not what the protocol says."""


if TYPE_CHECKING:
    Int32: TypeAlias = NDArray[np.int32]
    Float32: TypeAlias = NDArray[np.float32]
else:
    # The decoder hands an array over as a view of the message, without a copy. ``__post_init__`` of the struct makes a
    # numpy array of it, or refuses it.
    Int32 = Float32 = memoryview

Count = Annotated[int, Meta(ge=0, le=100_000)]
Amount = Annotated[float, Meta(ge=0, le=1e12)]  # of anything; the bound keeps out infinity and NaN
Seconds = Amount


class WireStruct(Struct, forbid_unknown_fields=True, gc=False):
    """A record that travels. Its field types are checked when it is decoded, not when it is made."""

    def model_copy(self, update: dict[str, Any]) -> Self:
        """A copy with some fields replaced."""
        return msgspec.structs.replace(self, **update)


class Message(WireStruct, tag_field="kind", tag=str.lower):
    """A record that travels by itself; ``kind`` tells the receiver which one it is."""

    @property
    def kind(self) -> str:
        """The lower-case name of the class, or its tag."""
        return str(self.__struct_config__.tag)


class Lives(NamedTuple):
    """The two lives that a message between an actor and the learner belongs to; either may be empty while unknown.

    Both are random. An actor's life begins with its hello and ends when it leaves, is given up, or says hello with
    another one; a learner's is that of its process. What belongs to other lives is dropped by whoever receives it.
    """

    actor: str
    learner: str


class LifeMessage(Message, kw_only=True, omit_defaults=True):
    """A message between an actor and the learner.

    Fields with their default values do not travel, so that an actor of an older protocol can read a refusal without
    lives.
    """

    actor_life: str = ""  # see ``Lives``
    learner_life: str = ""

    @property
    def lives(self) -> Lives:
        """The lives that the message belongs to."""
        return Lives(self.actor_life, self.learner_life)

    def of(self, lives: Lives) -> Self:
        """This message, marked as one of these lives."""
        self.actor_life, self.learner_life = lives
        return self
