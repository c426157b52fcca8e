"""An observer that measures lost and doubled questions and the staleness of tokens without asking the system.

It sits between the actors and the learner, and between one actor and its engine, reads what passes (``tap``), and keeps
books of its own. None of the system's code takes part: messages are decoded with MessagePack and JSON alone.

What it measures:

* The lag of a token is s - 1 - v where s is the step that trained its group and v the policy version that sampled it.
  The groups, with the versions of their tokens, are those that actors submitted on the wire.
* v of the actor with the watched engine is the observer's own: an engine says of every token under which label it got
  the weights, and the observer saw which policy version the learner had ordered when weights came under that label.
  The versions that the actor submits must be these, token by token.
* v of the other actors is what they submit, and must be possible: not older than the weights that the engine had taken,
  by the messages that passed, before the group was leased to it, and not newer than the newest it was told to take.
* A question is lost if it was leased, or is older than one that was, and the ledger does not say how it ended; it is
  doubled if the ledger says so twice. The run must have taken everything that it handed out, see ``cluster.conclude``.

What it trusts: s and the lines of the ledger, which the learner writes; the sizes P, S and W of each step in the run's
kept configurations, of which the bound is made (``verdict``); the engine's word on which label made a token; the
learner's order of which version is sent, which the probe of the weights proves in turn.
"""

from __future__ import annotations

import json
import threading
from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from scripts.bench.chaos.tap import HttpReader, Reader, ZmtpReader

_NO_END = ("stale", "passed_over")  # outcomes after which a question is asked again, or another one in its place
_AT_STEP = ("trained", "zero_variance", "masked", "skipped")  # outcomes of groups that a step took
_UPDATES = ("/update_weights_from_distributed", "/update_weights_from_tensor", "/update_weights_from_disk")
_KEPT = 100_000  # answers of the watched engine that are remembered


class Lives(NamedTuple):
    """The lives that a message names."""

    actor: str
    learner: str


@dataclass
class Submission:
    """A group as an actor submitted it."""

    actor: str
    lengths: list[int]
    oldest: int  # policy version of its oldest token
    times: int = 1  # how often it was sent, as an actor does that hears nothing
    accepted: bool | None = None  # what the learner said; None if that was not seen

    @property
    def refused(self) -> bool:
        """Whether the learner refused it, rather than a copy of it."""
        return self.accepted is False and self.times == 1


@dataclass
class Observed:
    """What the observer has found at the end of a run."""

    lost: list[int]  # sequence numbers
    doubled: list[int]
    lag_max: int
    over_bound: list[int]  # sequence numbers of groups whose lag exceeds the bound of their step
    unseen: list[int]  # that a step took though no such group was submitted
    wrong_versions: int  # submitted tokens whose version is not the one that sampled them, or is impossible
    tokens: int  # that steps took
    checked: int  # submitted tokens whose version the watched engine confirmed
    groups: int  # that steps took


@dataclass
class Observer:
    """The books; see the module.

    Args:
        watched: name of the actor whose engine is watched.
        on_phase: is called with the name of an actor and a phase of its weight sync, in the moment before it begins.
    """

    watched: str
    on_phase: Callable[[str, str], None]
    _names: dict[str, str] = field(default_factory=dict)  # of actors, by life: a connection that was cut says no hello
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _submissions: dict[int, dict[tuple[Lives, str], Submission]] = field(default_factory=lambda: defaultdict(dict))
    _leased: set[int] = field(default_factory=set)  # by the newest learner
    _learner: str = ""  # its life
    _floors: dict[tuple[Lives, str], int] = field(default_factory=dict)  # by lease: version of the weights at its begin
    _taken: dict[Lives, int] = field(default_factory=dict)  # newest version that an engine has taken
    _ordered: dict[Lives, int] = field(default_factory=dict)  # newest version that an engine was told to take
    _ordered_watched: int = -1  # the same, of the watched one, in whatever life
    _labels: dict[str, int] = field(default_factory=dict)  # policy version by label, of the watched engine
    _answers: dict[bytes, list[int]] = field(default_factory=dict)  # versions of its tokens, by answer
    _wrong_versions: int = 0
    _checked: int = 0

    # -- between actors and learner ----------------------------------------------------------------------------------

    def read_learner(self) -> tuple[Reader, Reader]:
        """The readers of a new connection of an actor with the learner."""
        return ZmtpReader(self._from_actor), ZmtpReader(self._to_actor)

    def _from_actor(self, message: dict[str, Any]) -> None:
        lives = _lives(message)
        name = self._names.get(lives.actor, "")
        match message["kind"]:
            case "hello":
                self._names[lives.actor] = message["name"]
            case "submit":
                with self._lock:
                    self._enter(name, lives, message)
            case "synced" if message["stage"] == "done":
                self._taken[lives] = message["version"]
                self._reached(name, "probe")

    def _to_actor(self, message: dict[str, Any]) -> None:
        lives = _lives(message)
        name = self._names.get(lives.actor, "")
        match message["kind"]:
            case "leased":
                with self._lock:
                    if lives.learner != self._learner:
                        self._learner, self._leased = lives.learner, set()
                    for work in message["work"]:
                        self._leased.add(_sequence(work["id"]))
                        self._floors[lives, work["id"]] = self._taken.get(lives, 0)
            case "ack":
                with self._lock:
                    for lease, accepted in message["accepted"].items():
                        submission = self._submissions[_sequence(lease)].get((lives, lease))
                        if submission is not None:
                            submission.accepted = accepted or bool(submission.accepted)
            case "pause":
                self._reached(name, "pause")
            case "receive":
                self._ordered[lives] = message["version"]
                if name == self.watched:
                    self._ordered_watched = message["version"]
                self._reached(name, "transfer")

    def _reached(self, name: str, phase: str) -> None:
        if name != self.watched:  # of which the engine's calls tell more exactly
            self.on_phase(name, phase)

    def _enter(self, name: str, lives: Lives, message: dict[str, Any]) -> None:
        key, rollouts = (lives, message["id"]), message["rollouts"]
        of_sequence = self._submissions[_sequence(message["id"])]
        if key in of_sequence:
            of_sequence[key].times += 1
            return
        versions = [_integers(rollout["versions"]) for rollout in rollouts]
        oldest, newest = min(map(min, versions)), max(map(max, versions))
        of_sequence[key] = Submission(name, list(map(len, versions)), oldest)
        low, high = self._floors.get(key, 0), self._ordered.get(lives, -1)
        if not low <= oldest <= newest <= high:
            self._wrong_versions += sum(not low <= version <= high for each in versions for version in each)
        if name == self.watched:
            for rollout, claimed in zip(rollouts, versions, strict=True):
                measured = self._answers.get(_integers(rollout["response_ids"]).tobytes() + rollout["logprobs"], [])
                self._checked += len(measured)
                if claimed.tolist() != measured:
                    self._wrong_versions += len(claimed)

    # -- between the watched actor and its engine ----------------------------------------------------------------------

    def read_engine(self) -> tuple[Reader, Reader]:
        """The readers of a new connection of the watched actor with its engine."""
        asked: deque[tuple[str, Any]] = deque()
        return (
            HttpReader(lambda line, body: asked.append(self._asked(line, body))),
            HttpReader(lambda line, body: self._answered(*asked.popleft(), line, body)),
        )

    def _asked(self, line: str, body: bytes) -> tuple[str, Any]:
        route = line.split(" ")[1].partition("?")[0]
        content: Any = json.loads(body) if body and route in ("/generate", *_UPDATES) else {}
        if route == "/pause_generation":
            self.on_phase(self.watched, "pause")
        elif route in _UPDATES and "weight_version" not in content:  # not the last call, so that others follow
            self.on_phase(self.watched, "transfer")
        elif route == "/generate" and content.get("logprob_start_len") == 0:
            self.on_phase(self.watched, "probe")
        elif route == "/continue_generation":
            self.on_phase(self.watched, "continue")
        if route in _UPDATES and "weight_version" in content:
            # Here and not with the reply: tokens under this label may be on their way before it.
            self._labels[content["weight_version"]] = self._ordered_watched
        return route, content

    def _answered(self, route: str, asked: Any, line: str, body: bytes) -> None:
        if route != "/generate" or asked.get("logprob_start_len") == 0 or line.split(" ")[1] != "200":
            return
        answers = json.loads(body)
        with self._lock:
            for answer in answers if isinstance(answers, list) else [answers]:
                meta = answer["meta_info"]
                versions = [-1] * len(answer["output_ids"])
                for span in meta.get("weight_versions") or ():
                    known = self._labels.get(str(span["version"]), -1)
                    versions[span["start"] : span["end"]] = [known] * (span["end"] - span["start"])
                logprobs = array("f", [entry[0] for entry in meta["output_token_logprobs"]])
                self._answers[array("i", answer["output_ids"]).tobytes() + logprobs.tobytes()] = versions
            while len(self._answers) > _KEPT:
                del self._answers[next(iter(self._answers))]

    # -- at the end ----------------------------------------------------------------------------------------------------

    def conclude(self, ledger: Path, bound_at: Callable[[int], int]) -> Observed:
        """Compares the books with the ledger of the run, which has ended.

        Args:
            bound_at: the staleness bound of a step.
        """
        lines = [json.loads(line) for line in ledger.read_bytes().splitlines()]
        ends = Counter(line["sequence"] for line in lines if line["outcome"] not in _NO_END)
        with self._lock:
            handed_out = self._leased | set(range(max([*ends, *self._leased, -1]) + 1))
            unseen: list[int] = []
            over_bound: list[int] = []
            lag_max = tokens = groups = 0
            for line in lines:
                if line["outcome"] not in _AT_STEP:
                    continue
                found = [
                    one
                    for one in self._submissions[line["sequence"]].values()
                    if not one.refused and (one.actor, one.lengths) == (line["actor"], line["lengths"])
                ]
                if not found:
                    unseen.append(line["sequence"])
                    continue
                # The last one: those before it are of learners whose training of them was undone by a resume.
                lag = line["step"] - 1 - found[-1].oldest
                lag_max = max(lag_max, lag)
                if lag > bound_at(line["step"]):
                    over_bound.append(line["sequence"])
                groups, tokens = groups + 1, tokens + sum(line["lengths"])
            return Observed(
                lost=sorted(handed_out - set(ends)), doubled=sorted(n for n, count in ends.items() if count > 1),
                lag_max=lag_max, over_bound=over_bound, unseen=unseen, wrong_versions=self._wrong_versions,
                tokens=tokens, checked=self._checked, groups=groups,
            )  # fmt: skip


def _lives(message: dict[str, Any]) -> Lives:
    return Lives(message.get("actor_life", ""), message.get("learner_life", ""))


def _sequence(lease: str) -> int:
    return int(lease.rpartition("-")[2])


def _integers(data: bytes) -> array[int]:
    found = array("i")
    found.frombytes(data)
    return found
