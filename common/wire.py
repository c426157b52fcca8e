"""Everything that travels between processes: MessagePack maps, checked against these types on arrival.

Arrays travel as raw little-endian bytes and are viewed by numpy without another copy. A ``kind`` names each message.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgpack
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, TypeAdapter, ValidationError

PROTOCOL = 1  # goes into the hello; peers of another number are refused
MAX_MESSAGE_BYTES = 256 << 20


class WireError(ValueError):
    """A message that is not what the protocol says."""


def _array(dtype: str) -> Any:
    def view(value: Any) -> Any:
        if isinstance(value, bytes):
            if len(value) % np.dtype(dtype).itemsize:
                raise ValueError(f"{len(value)} bytes are no array of {dtype}")
            return np.frombuffer(value, dtype)
        if isinstance(value, np.ndarray) and value.ndim == 1:
            return value.astype(dtype, copy=False)
        raise ValueError(f"expected the bytes of a {dtype} array")

    return BeforeValidator(view), PlainSerializer(lambda array: array.tobytes(), return_type=bytes)


Int32 = Annotated[NDArray[np.int32], *_array("<i4")]
Float32 = Annotated[NDArray[np.float32], *_array("<f4")]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


class Chat(Message):
    role: str
    content: str


class Question(Message):
    """A row of the data: what is asked, in which language, and the reference answer in that language."""

    index: int  # row in its file
    messages: list[Chat]
    reference: str
    language: str
    topics: list[str]
    regions: list[str]
    accepted: list[str] = []  # answers that a verifying term takes, in any language; empty: the reference


class Work(Message):
    """A leased question: answer it once in each of ``languages``."""

    id: str  # of the lease: "5:train-17" is the sixth lease given, of the question at position 17 of the run's order
    question: Question
    languages: list[str]  # [K]
    propensities: list[float]  # [K] probability with which the router drew each language; 1 for reserved ones
    router_version: int
    policy_version: int  # the newest published one when the lease was given
    greedy: bool


class Score(Message):
    """What the reward process says of one answer; reward = quality where compliant, else 0."""

    reward: float
    quality: float  # in [0, 1]; the weighted terms
    similarity: float  # raw cosine
    compliant: bool
    detected: str  # language code, "" when the text has none
    terms: dict[str, float] = {}  # value of each term of reward.terms, before its weight
    drift: float = 0.0  # of its pair of languages from the calibration, see reward.drift


class Rollout(Message):
    """One answer, with ids, log-probabilities and policy versions as the engine gave them."""

    language: str
    prompt_ids: Int32  # [prompt]
    response_ids: Int32  # [response], stop token included
    logprobs: Float32  # [response] behaviour log-probabilities at the sampling temperature
    versions: Int32  # [response] policy version that produced each token
    truncated: bool
    text: str
    score: Score


class Hello(Message):
    kind: Literal["hello"] = "hello"
    protocol: int
    engine_ranks: int  # of its engine in the weight group: the tensor-parallel size
    slots: int  # leases it can hold


class Welcome(Message):
    """The learner knows the actor; work comes once its engine has the current weights."""

    kind: Literal["welcome"] = "welcome"


class Unknown(Message):
    """The learner has started again, or gave the actor up: drop what you hold and say hello."""

    kind: Literal["unknown"] = "unknown"


class Lease(Message):
    """An actor has ``slots`` more leases free; work for them comes as admission allows."""

    kind: Literal["lease"] = "lease"
    slots: int


class Leased(Message):
    kind: Literal["leased"] = "leased"
    work: list[Work]


class Submit(Message):
    kind: Literal["submit"] = "submit"
    id: str
    rollouts: list[Rollout]


class Release(Message):
    """The actor could not do a question; another may try."""

    kind: Literal["release"] = "release"
    id: str
    reason: str


class Ack(Message):
    """A submitted or released group needs no resending; ``accepted`` is false for a late duplicate."""

    kind: Literal["ack"] = "ack"
    id: str
    accepted: bool


class Heartbeat(Message):
    """Keeps an actor's leases alive and says where its time went since it started."""

    kind: Literal["heartbeat"] = "heartbeat"
    holding: list[str]  # ids of its leases
    seconds: dict[str, float]  # time in each state, see common.process.Stopwatch; also "reward_busy" of its reward


class Join(Message):
    """Enter the group through which weights are broadcast; the learner is rank 0."""

    kind: Literal["join"] = "join"
    group: str
    host: str
    port: int
    rank: int
    world: int
    backend: str
    timeout_s: float


class Alive(Message):
    """Answers a heartbeat."""

    kind: Literal["alive"] = "alive"


class Joined(Message):
    kind: Literal["joined"] = "joined"
    group: str
    error: str  # "" when it worked


class Bucket(Message):
    """Tensors sent as one flat buffer of bytes, in this order."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


class Pause(Message):
    """Stop generating and make room for new weights; answered by ``Synced(stage="ready")``."""

    kind: Literal["pause"] = "pause"
    version: int
    timeout_s: float  # if nothing follows, generate on under the old weights


class Receive(Message):
    """Take these buckets from the group, then generate on; answered by ``Synced(stage="done")``."""

    kind: Literal["receive"] = "receive"
    group: str
    version: int
    buckets: list[Bucket]
    timeout_s: float


class Synced(Message):
    kind: Literal["synced"] = "synced"
    version: int
    stage: Literal["ready", "done", "failed"]
    error: str
    pause_s: float  # how long generation stood still


class Stop(Message):
    """The run is over (``error`` empty) or the actor cannot be used any more."""

    kind: Literal["stop"] = "stop"
    error: str


class ScoreRequest(Message):
    kind: Literal["score"] = "score"
    id: int
    reference: str
    reference_language: str
    answers: list[str]
    languages: list[str]  # asked of each answer
    truncated: list[bool] = []  # of each answer; empty: none
    topics: list[str] = []  # choose the terms
    accepted: list[str] = []  # answers that count as verified; empty: the reference
    deadline_s: float = 60.0  # after its arrival nobody waits for the scores any more


class ScoreReply(Message):
    kind: Literal["scores"] = "scores"
    id: int
    scores: list[Score]
    error: str  # "" when it worked
    full: bool = False  # the queue is: ask another replica, or later
    busy_s: float  # the reward process's seconds of work since it started
    waiting_s: float


class Health(Message):
    """Asks a reward process how it is."""

    kind: Literal["health"] = "health"


class Healthy(Message):
    """Answers at once, whatever is being scored."""

    kind: Literal["healthy"] = "healthy"
    life: str  # another one after a restart
    ready: bool  # false while models load; requests wait
    queued: int  # texts
    counts: dict[str, int]


AnyMessage: TypeAlias = (
    Hello
    | Welcome
    | Unknown
    | Lease
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
    | Stop
    | ScoreRequest
    | ScoreReply
    | Health
    | Healthy
)
_ADAPTER: TypeAdapter[AnyMessage] = TypeAdapter(Annotated[AnyMessage, Field(discriminator="kind")])


def encode(message: AnyMessage) -> bytes:
    # A lone surrogate, which no encoding has, must not keep a whole group from travelling: it becomes a "?".
    packed = msgpack.packb(message.model_dump(), unicode_errors="replace")
    assert isinstance(packed, bytes)
    return packed


def decode(data: bytes) -> AnyMessage:
    """
    Raises:
        WireError: not MessagePack, of an unknown kind, or a field is missing or of another type.
    """
    try:
        return _ADAPTER.validate_python(msgpack.unpackb(data, strict_map_key=True))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise WireError(f"malformed message: {where}: {first['msg']}") from None
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"not a MessagePack message: {error}") from None
