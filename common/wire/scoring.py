"""Requests of actors to the reward service, and its replies."""

from __future__ import annotations

from common.wire.base import Message
from common.wire.groups import Chat, Score


class ScoreRequest(Message, tag="score"):
    """Score these answers to one question."""

    id: int
    reference: str
    reference_language: str
    answers: list[str]
    languages: list[str]  # asked for, one for each answer; POLICY_CHOOSES where the answer's header names it
    truncated: list[bool] = []  # whether each answer ended at the length limit; empty means none did
    thinking_opened: bool = False  # whether the prompts ended with <think>, so that the answers begin inside a thought
    topics: list[str] = []  # these choose the terms
    accepted: list[str] = []  # answers that a verifying term accepts; empty means the reference
    row: int = -1  # number of the question's row in its file, by which errors name it; -1 where there is none
    messages: list[Chat] = []  # the question as it was asked
    extra: dict[str, str] = {}  # further columns of its row, by their names
    tokens: list[int] = []  # number of tokens of each answer; empty where nobody has counted them
    deadline_s: float = 60.0  # seconds after its arrival from which nobody waits for the scores any more


class ScoreReply(Message, tag="scores"):
    """The scores of a request, or why there are none."""

    id: int
    scores: list[Score]
    error: str  # empty when it worked
    busy_s: float  # seconds that the reward process has worked since it started
    waiting_s: float  # seconds that it has waited for requests
    full: bool = False  # its queue is full: ask another replica, or ask later
    later: bool = False  # the error lies not in the answers (a judge is out of reach, say): ask again later
