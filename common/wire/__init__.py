"""Everything that travels between processes. Import it as a whole: ``from common import wire``."""

from common.wire.base import MAX_MESSAGE_BYTES, PROTOCOL, Message, WireError, WireStruct
from common.wire.codec import AnyMessage, decode, encode, unpack
from common.wire.groups import Ack, Chat, Leased, Question, Release, Rollout, Score, Submit, Timing, Work
from common.wire.scoring import ScoreReply, ScoreRequest
from common.wire.session import Alive, Eject, Heartbeat, Hello, Leave, Stop, Unknown, Welcome
from common.wire.status import ActorStatus, Health, Healthy, Status
from common.wire.weights import Bucket, Join, Joined, LoadAdapter, Pause, Probe, Receive, SharedMemoryHandle, Synced

__all__ = [
    "MAX_MESSAGE_BYTES",
    "PROTOCOL",
    "Ack",
    "ActorStatus",
    "Alive",
    "AnyMessage",
    "Bucket",
    "Chat",
    "Eject",
    "Health",
    "Healthy",
    "Heartbeat",
    "Hello",
    "Join",
    "Joined",
    "Leased",
    "Leave",
    "LoadAdapter",
    "Message",
    "Pause",
    "Probe",
    "Question",
    "Receive",
    "Release",
    "Rollout",
    "Score",
    "ScoreReply",
    "ScoreRequest",
    "SharedMemoryHandle",
    "Status",
    "Stop",
    "Submit",
    "Synced",
    "Timing",
    "Unknown",
    "Welcome",
    "WireError",
    "WireStruct",
    "Work",
    "decode",
    "encode",
    "unpack",
]
