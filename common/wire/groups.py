"""What is asked and what comes back: questions, work, rollouts, scores, and the messages that carry them."""

from __future__ import annotations

import numpy as np

from common.wire.base import FLOAT32, INT32, Float32, Int32, Message, Seconds, WireStruct


class Chat(WireStruct):
    role: str
    content: str


class Question(WireStruct):
    """A row of the data: what is asked, in which language, and the reference answer in that language."""

    index: int  # row in its file
    messages: list[Chat]
    reference: str
    language: str
    topics: list[str]
    regions: list[str]
    accepted: list[str] = []  # answers that a verifying term takes, in any language; empty: the reference


class Work(WireStruct):
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


class Score(WireStruct):
    """What the reward process says of one answer; reward = quality where compliant, else 0."""

    reward: float
    quality: float  # in [0, 1]; the weighted terms
    similarity: float  # raw cosine
    compliant: bool
    detected: str  # language code, "" when the text has none
    language: str = ""  # asked for, or chosen: then "" where the policy named none
    terms: dict[str, float] = {}  # value of each term of reward.terms, before its weight
    drift: float = 0.0  # of its pair of languages from the calibration, see reward.drift


class Rollout(WireStruct):
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
            self.prompt_ids = np.frombuffer(self.prompt_ids, INT32)
            self.response_ids = np.frombuffer(self.response_ids, INT32)
            self.logprobs = np.frombuffer(self.logprobs, FLOAT32)
            self.versions = np.frombuffer(self.versions, INT32)


class Leased(Message):
    work: list[Work]


class Timing(WireStruct):
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
