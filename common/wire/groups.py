"""What is asked and what comes back: questions, work, rollouts, scores, and the messages that carry them."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from common.wire.base import FLOAT32, INT32, Amount, Float32, Int32, LifeMessage, Seconds, WireStruct


class Chat(WireStruct):
    """One turn of a conversation."""

    role: str
    content: str


class Question(WireStruct):
    """A row of the data: what is asked, in which language, and the reference answer in that language."""

    index: int  # number of the row in its file
    messages: list[Chat]
    reference: str
    language: str
    topics: list[str]
    regions: list[str]
    accepted: list[str] = []  # answers that a verifying term accepts, in any language; empty means the reference
    extra: dict[str, str] = {}  # further columns of the row that a reward wants to see, by their names


class Work(WireStruct):
    """A question with the languages it is to be answered in, once in each: what an actor holds a lease for."""

    id: str  # of the lease: "5:train-17" is the sixth lease that was given, for prompt group 17 of the run
    question: Question
    languages: list[str]  # [K]; POLICY_CHOOSES where the policy chooses
    propensities: list[float]  # [K] probability with which the router drew each language; 1 for reserved ones
    router_version: int
    policy_version: int  # the newest published one when the lease was given
    greedy: bool
    question_propensity: float = 1.0  # probability with which the question was not passed over, see data.curriculum

    @property
    def sequence(self) -> int:
        """The number of the prompt group, in the order in which groups were first leased; 17 in the example.

        With ``data.curriculum`` < 1 it is not the question's place in the run's order, because places are passed over.
        The place is in ``learner.work.curriculum``.
        """
        return int(self.id.rpartition("-")[2])


class PartLanguages(WireStruct):
    """Which languages a thought or a final answer is in; ``common/diagnostics.py`` has the definitions."""

    consistent: bool  # it is in the language asked for
    lines: bool  # none of its lines is in another language
    words: bool | None  # none of its words is of another script; None where ``lines`` is False
    switches: bool  # it holds two languages or more


# The names that these fields have had in messages and in recorded runs, which are still to be replayed.
_SCORE_ON_THE_WIRE = {"thought_languages": "thought", "final_languages": "answer"}


class Score(WireStruct, rename=_SCORE_ON_THE_WIRE):
    """What the reward process says of one answer.

    The reward is the quality where the answer is compliant and 0 elsewhere, unless ``reward.gated`` is off. An answer
    that could not be scored has ``scored`` False: its reward and quality are 0 and say nothing, and ``terms`` has the
    terms or parts that could be had.
    """

    reward: float
    quality: float  # the weighted terms or parts; in [0, 1] unless ``reward.bounded`` is off
    similarity: float  # raw cosine; 0 where no term of the run needs it
    compliant: bool  # the answer is in the language asked for, or chosen
    detected: str  # language code; "" when the text has no language
    language: str = ""  # asked for, or chosen; "" where the policy chose and named none
    terms: dict[str, float] = {}  # value of each term of reward.terms, or part of reward.parts, before its weight
    drift: float = 0.0  # of this pair of languages from its calibration, see reward/calibration/drift.py
    scored: bool = True  # False: a term or part is missing, so the answer takes no part in its group's advantages
    # Of the thought, by reward.diagnostics; None without these, and where there is no thought.
    thought_languages: PartLanguages | None = None
    final_languages: PartLanguages | None = None  # of the final answer; None without reward.diagnostics


class Rollout(WireStruct):
    """One answer, with token ids, log-probabilities and policy versions exactly as the engine gave them."""

    language: str  # asked for, or chosen; "" where the policy chose and named none
    prompt_ids: Int32  # [prompt tokens]
    response_ids: Int32  # [response tokens], stop token included
    logprobs: Float32  # [response tokens] behaviour log-probabilities at the sampling temperature, nats
    versions: Int32  # [response tokens] policy version that produced each token
    truncated: bool  # it ended at the length limit
    text: str
    score: Score
    thinking_opened: bool = False  # whether the prompt ended with <think>, so that the text begins inside a thought
    header: int = 0  # how many tokens of the response are the header in which the policy names its language

    def __post_init__(self) -> None:
        if isinstance(self.versions, memoryview):
            as_array, int32 = np.frombuffer, INT32  # local names, because this runs for every answer that comes
            self.prompt_ids = as_array(self.prompt_ids, int32)
            self.response_ids = as_array(self.response_ids, int32)
            self.logprobs = as_array(self.logprobs, FLOAT32)
            self.versions = as_array(self.versions, int32)


class Leased(LifeMessage):
    """Learner to actor: new leases."""

    work: list[Work]


class Timing(WireStruct):
    """What a group cost its actor."""

    generate_s: Seconds  # generation, without the pauses for weight updates
    groups: Amount  # how many groups were being generated meanwhile, on average, this one included
    score_s: Seconds  # waiting for scores


class Submit(LifeMessage):
    """Actor to learner: a finished group."""

    id: str  # of the lease
    rollouts: list[Rollout]
    timing: Timing | None = None


# Why a group is handed back. Attempts are counted for each cause apart, see learner/work/turns.py.
#   generation, scoring   this stage has failed as often as ``actor.attempts`` allows
#   refusal               this engine can never do it: it refuses the prompts, because they are too long for it, say
#   outage                nothing speaks against the group or the actor: a service is out of reach, the lease ran out,
#                         or the weights that made its answers were replaced before they were proved. None is counted.
#   unforeseen            anything else: an error that nobody expected; answers that break a rule
Cause: TypeAlias = Literal["generation", "scoring", "refusal", "outage", "unforeseen"]


class Release(LifeMessage):
    """Actor to learner: this actor could not finish the group. Another one may try, or this one again."""

    id: str  # of the lease
    reason: str
    cause: Cause = "unforeseen"


class Ack(LifeMessage):
    """Learner to actor: these submitted or released groups need not be sent again."""

    accepted: dict[str, bool]  # by id of the lease; false for a late duplicate
