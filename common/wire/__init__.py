"""Everything that travels between processes. Import it as a whole: ``from common import wire``."""

from common.wire.base import MAX_MESSAGE_BYTES, PROTOCOL, LifeMessage, Lives, Message, WireError, WireStruct
from common.wire.codec import AnyMessage, decode, encode, unpack
from common.wire.groups import Ack, Cause, Chat, Leased, Question, Release, Rollout, Score, Submit, Timing, Work
from common.wire.scoring import ScoreReply, ScoreRequest
from common.wire.session import ActorProcess, Alive, Eject, Heartbeat, Hello, Leave, Stop, Taken, Unknown, Welcome
from common.wire.status import ActorStatus, Health, Healthy, Status
from common.wire.weights import Bucket, Join, Joined, LoadAdapter, Pause, Probe, Receive, SharedMemoryHandle, Synced

__all__ = [
    "MAX_MESSAGE_BYTES",
    "PROTOCOL",
    "Ack",
    "ActorProcess",
    "ActorStatus",
    "Alive",
    "AnyMessage",
    "Bucket",
    "Cause",
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
    "LifeMessage",
    "Lives",
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
    "Taken",
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
