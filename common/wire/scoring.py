"""Requests to the reward service, and its replies."""

from __future__ import annotations

from common.wire.base import Message
from common.wire.groups import Score


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
