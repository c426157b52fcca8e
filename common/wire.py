"""Everything that travels between processes: MessagePack maps, checked against these types on arrival.

Arrays travel as raw little-endian bytes. A message is decoded straight into its type; its ``kind`` in
the map is the lower-case name of that, or its ``tag``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias, TypeVar

import msgpack
import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

PROTOCOL = 4  # goes into the hello; peers of another number are refused
MAX_MESSAGE_BYTES = 256 << 20
_INT, _FLOAT = np.dtype("<i4"), np.dtype("<f4")


class WireError(ValueError):
    """A message that is not what the protocol says."""


if TYPE_CHECKING:
    Int32: TypeAlias = NDArray[np.int32]
    Float32: TypeAlias = NDArray[np.float32]
else:  # decoded as pieces of the message itself, which ``__post_init__`` makes arrays, or refuses: no copy
    Int32 = Float32 = memoryview

Count = Annotated[int, Meta(ge=0, le=100_000)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]  # neither infinite nor no number


class Data(Struct, forbid_unknown_fields=True, gc=False):
    """What messages are made of. Types are checked on arrival, by ``decode``, and not when an object is made."""

    def model_copy(self, update: dict[str, Any]) -> Self:
        return msgspec.structs.replace(self, **update)


class Message(Data, tag_field="kind", tag=str.lower):
    """What travels by itself."""

    @property
    def kind(self) -> str:
        return str(self.__struct_config__.tag)


class Chat(Data):
    role: str
    content: str


class Question(Data):
    """A row of the data: what is asked, in which language, and the reference answer in that language."""

    index: int  # row in its file
    messages: list[Chat]
    reference: str
    language: str
    topics: list[str]
    regions: list[str]
    accepted: list[str] = []  # answers that a verifying term takes, in any language; empty: the reference


class Work(Data):
    """A leased question: answer it once in each of ``languages``."""

    id: str  # of the lease: "5:train-17" is the sixth lease given, of the question at position 17 of the run's order
    question: Question
    languages: list[str]  # [K]; "" where the policy chooses
    propensities: list[float]  # [K] probability with which the router drew each language; 1 for reserved ones
    router_version: int
    policy_version: int  # the newest published one when the lease was given
    greedy: bool

    @property
    def sequence(self) -> int:
        """The position: 17."""
        return int(self.id.rpartition("-")[2])


class Score(Data):
    """What the reward process says of one answer; reward = quality where compliant, else 0."""

    reward: float
    quality: float  # in [0, 1]; the weighted terms
    similarity: float  # raw cosine
    compliant: bool
    detected: str  # language code, "" when the text has none
    language: str = ""  # asked for, or chosen: then "" where the policy named none
    terms: dict[str, float] = {}  # value of each term of reward.terms, before its weight
    drift: float = 0.0  # of its pair of languages from the calibration, see reward.drift


class Rollout(Data):
    """One answer, with ids, log-probabilities and policy versions as the engine gave them."""

    language: str  # asked for, or chosen: then "" where the policy named none
    prompt_ids: Int32  # [prompt]
    response_ids: Int32  # [response], stop token included
    logprobs: Float32  # [response] behaviour log-probabilities at the sampling temperature
    versions: Int32  # [response] policy version that produced each token
    truncated: bool
    text: str
    score: Score
    header: int = 0  # tokens of the response in which the policy names its language

    def __post_init__(self) -> None:
        if isinstance(self.versions, memoryview):
            self.prompt_ids = np.frombuffer(self.prompt_ids, _INT)
            self.response_ids = np.frombuffer(self.response_ids, _INT)
            self.logprobs = np.frombuffer(self.logprobs, _FLOAT)
            self.versions = np.frombuffer(self.versions, _INT)


class Hello(Message):
    protocol: int
    engine_ranks: Annotated[int, Meta(ge=1, le=1024)]  # of its engine in the weight group: the tensor-parallel size
    slots: Count  # leases it can hold; work comes as admission allows
    transport: Literal["group", "shared", "disk"]  # how its engine takes weights
    drain_s: Seconds = 0.0  # how long answers in flight may still take when its engine is told to pause


class Leave(Message):
    """The actor has no engine for the moment: what it holds goes to others. A hello brings it back."""

    reason: str


class Welcome(Message):
    """The learner knows the actor; work comes once its engine has the current weights."""


class Unknown(Message):
    """The learner has started again, or gave the actor up: drop what you hold and say hello."""


class Leased(Message):
    work: list[Work]


class Timing(Data):
    """What the group cost its actor."""

    generate_s: Seconds  # without pauses for weights
    groups: Seconds  # being generated meanwhile, itself included, on average
    score_s: Seconds


class Submit(Message):
    id: str
    rollouts: list[Rollout]
    timing: Timing | None = None


class Release(Message):
    """The actor could not do a question; another may try."""

    id: str
    reason: str


class Ack(Message):
    """Submitted or released groups need no resending."""

    accepted: dict[str, bool]  # by id of the lease; false for a late duplicate


class Heartbeat(Message):
    """Keeps an actor's leases alive and says where its time went since it started."""

    holding: list[str]  # ids of its leases
    seconds: dict[str, Seconds]  # time in each state, see common.process.Stopwatch; also "reward_busy" of its reward
    slots: Count | None = None  # leases it can hold from now on
    # Of its engine: "usage" of KV memory in [0, 1], requests "running" and "waiting"; "probe_error" in nats a token.
    gauges: dict[str, Seconds] = {}


class Alive(Message):
    """Answers a heartbeat."""


class Join(Message):
    """Enter the group of the learner, rank 0, and this engine alone; answered by ``Joined`` or ``Leave``."""

    group: str
    host: str
    port: int
    world: int
    backend: str
    timeout_s: float


class Joined(Message):
    group: str


class Pause(Message):
    """Stop generating and make room for new weights; answered by ``Synced(stage="ready")``."""

    version: int
    timeout_s: float  # if nothing follows, generate on under the old weights


class Bucket(Data):
    """Tensors sent as one flat buffer of bytes, in this order."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


class Probe(Data):
    """A fixed sequence and what the learner's weights say of it: proof that an engine has the same ones."""

    ids: Int32  # [n]
    logprobs: Float32  # [n - 1] of all but the first, at temperature 1
    tolerance: float  # of the mean absolute difference, nats

    def __post_init__(self) -> None:
        if isinstance(self.ids, memoryview):
            self.ids, self.logprobs = np.frombuffer(self.ids, _INT), np.frombuffer(self.logprobs, _FLOAT)


class Loan(Data):
    """Where memory of the learner is for another process on its machine: what torch's IPC tells."""

    cuda: bool
    fields: list[bool | int | bytes]


class Receive(Message):
    """Take these buckets from the group, memory or file; generate on; answered by ``Synced(stage="done")``."""

    group: str
    path: str  # a directory with a safetensors file instead of a group; "" for none
    version: int
    buckets: list[Bucket]
    probe: Probe
    timeout_s: float
    loans: list[list[Loan]] = []  # instead of group and path: of each bucket, for each rank of the engine


class Synced(Message):
    version: int
    stage: Literal["ready", "done"]
    pause_s: float  # how long generation stood still


class Eject(Message):
    """The engine failed an update, so its weights are unknown: start it again, then say hello."""

    reason: str


class Stop(Message):
    """The run is over (``error`` empty) or the actor cannot be used."""

    error: str


class ScoreRequest(Message, tag="score"):
    id: int
    reference: str
    reference_language: str
    answers: list[str]
    languages: list[str]  # asked of each answer; "" where its header tells
    truncated: list[bool] = []  # of each answer; empty: none
    topics: list[str] = []  # choose the terms
    accepted: list[str] = []  # answers that count as verified; empty: the reference
    deadline_s: float = 60.0  # after its arrival nobody waits for the scores any more


class ScoreReply(Message, tag="scores"):
    id: int
    scores: list[Score]
    error: str  # "" when it worked
    busy_s: float  # the reward process's seconds of work since it started
    waiting_s: float
    full: bool = False  # the queue is: ask another replica, or later


class Health(Message):
    """Asks a reward process or a learner how it is; anyone may, without a hello."""


class Healthy(Message):
    """Answers at once, whatever is being scored."""

    life: str  # another one after a restart
    ready: bool  # false while models load; requests wait
    queued: int  # texts
    counts: dict[str, int]


class ActorStatus(Data):
    live: bool  # has the current weights
    groups: int
    slots: int
    silent_s: float
    seconds: dict[str, Seconds]
    gauges: dict[str, Seconds]


class Status(Message):
    """A learner's answer to ``Health``."""

    line: str  # of the newest step, as logged; empty before the first
    rates: dict[str, float]  # tokens/s of each actor
    actors: dict[str, ActorStatus]
    counts: dict[str, int]  # of groups: leased, finished; so far retried, orphaned, failed


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
    """A message, or whatever is made of ``Data``.

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
