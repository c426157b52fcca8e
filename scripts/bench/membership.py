"""Hundreds of actors that join, leave and lie, and what the learner's server makes of them.

A part of ``scripts.bench.control_plane``. Most actors are honest, and some of these leave again and again and come back
as another life. The others lie, each in one way: their tokens are of versions that do not exist yet or were before the
lease, their log-probabilities are positive, they answer under a life of theirs that is over, or they claim the name of
an honest actor.
"""

from __future__ import annotations

import logging
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq
from numpy.typing import NDArray

from common import wire
from common.config import HEARTBEAT_S
from common.net import sockets
from common.net.ports import reserve_port
from common.process import FatalError
from learner.groups import Group
from learner.work.actors import MAX_VIOLATIONS
from learner.work.admission import Limits
from learner.work.ledger import Ledger, audit
from learner.work.scheduler import WorkQueue
from learner.work.server import WorkServer
from scripts.bench.queue import K, make_rollouts
from scripts.bench.support.groups import work
from scripts.bench.table import Row

_GROUPS_PER_STEP, _STALENESS, _SLOTS = 128, 15, 4
_PROCESSES = 4
_PACE_S = 10.0  # mean duration of a group
_STAY_S = 5.0  # after which an actor leaves, on average, if it is one of those that do
_AWAY_S = 0.5
_REST_S = 5.0  # for which heartbeats alone are measured
_LISTEN_S = 20.0  # at most, for answers that are under way when it is over
_START_S, _LEASE_S = 120.0, 60.0
_LIES: dict[str, tuple[str, float]] = {  # what of a rollout is false, and what it is then
    "versions to come": ("versions", 7),
    "versions of before": ("versions", -3),
    "log-probabilities": ("logprobs", 0.5),
}
_OLD_LIFE, _NAME = "an old life", "a name"
# These stand for the id of the lease and for the two lives in the message that is encoded beforehand.
_LEASE, _LIVES = "0" * 12, wire.Lives("1" * 12, "2" * 12)


@dataclass
class Told:
    """What an actor has seen of the server when it is over."""

    name: str
    kind: str  # "honest", "leaving", a key of _LIES, _OLD_LIFE or _NAME
    joined_s: list[float] = field(default_factory=list)  # from each hello to its welcome
    beats: list[tuple[float, float]] = field(default_factory=list)  # when each was answered, and after how long
    accepted: int = 0  # groups
    refused: int = 0
    sent: int = 0
    unknown: int = 0  # answers of a life that was over, as the server said
    sent_old: int = 0  # those answers
    end: str = ""  # why the server gave the actor up or refused it

    @property
    def unanswered(self) -> int:
        """Groups of which the server has yet to say what becomes of them."""
        return self.sent - self.accepted - self.refused - self.unknown


def encode_answers(kind: str) -> bytes:
    """The message with the answers of a group, as an actor of this kind makes it up."""
    rollouts = make_rollouts("Paris.")
    if kind in _LIES:
        name, value = _LIES[kind]
        given: NDArray[Any] = getattr(rollouts[0], name)
        rollouts[0] = rollouts[0].model_copy(update={name: np.full_like(given, value)})
    return wire.encode(wire.Submit(id=_LEASE, rollouts=rollouts).of(_LIVES))


class SimulatedActor:
    """One actor with a socket of its own; whoever drives it hands it its messages, and calls ``act`` all the time."""

    def __init__(self, context: zmq.Context[Any], address: str, told: Told, submit: bytes, victim: str) -> None:
        self.told, self._template, self._claims = told, submit, victim or told.name
        self.socket = sockets.connect(context, address, told.name)
        self._random = np.random.default_rng()
        self._number = 0
        self._lives, self._old = wire.Lives("", ""), wire.Lives("", "")
        self._held: dict[str, float] = {}  # when the group of each lease will be finished
        self._said_hello, self._taken_since = 0.0, 0.0
        self._next_hello = self._next_beat = self._leaves_at = np.inf
        if not victim:  # who claims another's name waits until that one is there, see ``claim``
            self._begin_life(time.monotonic() + float(self._random.random()) * HEARTBEAT_S)

    def claim(self, now: float) -> None:
        """All honest actors are there: those who claim a name begin."""
        if self.told.kind == _NAME:
            self._begin_life(now)

    def handle(self, message: dict[str, Any], now: float) -> None:
        told = self.told
        if message["kind"] == "welcome":
            if message["actor_life"] != self._life or self._lives.actor == self._life:
                return  # to a hello that was said again before it was answered
            told.joined_s.append(now - self._said_hello)
            self._lives = wire.Lives(message["actor_life"], message["learner_life"])
            self._next_hello, self._next_beat = np.inf, now + HEARTBEAT_S
            if told.kind == "leaving":
                self._leaves_at = now + float(self._random.exponential(_STAY_S))
            elif told.kind == _OLD_LIFE and not any(self._old):
                self._old = self._lives
                self._begin_life(now)  # another one, at once
        elif message["kind"] == "taken":
            self._taken_since = self._taken_since or now
        elif message["kind"] == "leased":
            if message["actor_life"] == self._lives.actor:
                for each in message["work"]:
                    self._held[each["id"]] = now + float(self._random.exponential(_PACE_S))
        elif message["kind"] == "ack":
            told.accepted += sum(message["accepted"].values())
            told.refused += sum(not accepted for accepted in message["accepted"].values())
        elif message["kind"] == "alive":
            told.beats.append((now, now - (self._next_beat - HEARTBEAT_S)))
        elif message["kind"] == "unknown":
            told.unknown += 1
        elif message["kind"] in ("eject", "stop"):
            told.end = told.end or message.get("reason") or message.get("error") or ""
            self._held.clear()
            self._next_hello = self._next_beat = self._leaves_at = np.inf

    def act(self, now: float) -> None:
        if now >= self._next_hello:
            self._say_hello(now)
        if now >= self._leaves_at:
            self._leaves_at = self._next_beat = np.inf
            self.socket.send(wire.encode(wire.Leave(reason="it likes to").of(self._lives)))
            self._begin_life(now + _AWAY_S)
        for lease in [lease for lease, finished in self._held.items() if finished <= now]:
            del self._held[lease]
            lives = self._lives if self.told.kind != _OLD_LIFE else self._old
            self.told.sent_old += self.told.kind == _OLD_LIFE
            self._submit(lease, lives)
        if now >= self._next_beat:
            self._next_beat = now + HEARTBEAT_S
            self.socket.send(wire.encode(wire.Heartbeat(holding=list(self._held), seconds={}).of(self._lives)))

    @property
    def _life(self) -> str:
        return f"{self.told.name}/{self._number}"

    def _begin_life(self, at: float) -> None:
        """What was leased to the life before is not its own any more."""
        self._number += 1
        self._lives = wire.Lives("", "")
        self._held.clear()
        self._said_hello = self._next_hello = at

    def _say_hello(self, now: float) -> None:
        """As an actor does: again and again, until it is answered."""
        self._next_hello = now + HEARTBEAT_S
        hello = wire.Hello(
            protocol=wire.PROTOCOL, engine_ranks=1, slots=_SLOTS, transport="group", name=self._claims,
            waited_s=now - self._taken_since if self._taken_since else 0.0,
        )  # fmt: skip
        self.socket.send(wire.encode(hello.of(wire.Lives(self._life, ""))))

    def _submit(self, lease: str, lives: wire.Lives) -> None:
        self.told.sent += 1
        data = self._template.replace(msgpack.packb(_LEASE), msgpack.packb(lease), 1)
        for placeholder, life in zip(_LIVES, lives, strict=True):
            data = data.replace(msgpack.packb(placeholder), msgpack.packb(life), 1)
        self.socket.send(data)


def play(address: str, cast: list[tuple[str, str, str]], all_here: Any, over: Any, results: Any) -> None:
    """Plays actors, each with its name, its kind and whom it claims to be, until ``over`` is set."""
    context, poller = zmq.Context(), zmq.Poller()
    answers = {kind: encode_answers(kind) for kind in {kind for _, kind, _ in cast}}
    actors = [SimulatedActor(context, address, Told(name, kind), answers[kind], victim) for name, kind, victim in cast]
    by_socket = {actor.socket: actor for actor in actors}
    for socket in by_socket:
        poller.register(socket, zmq.POLLIN)
    claimed = False
    ends = np.inf
    while (now := time.monotonic()) < ends:
        if not claimed and all_here.is_set():
            claimed = True
            for actor in actors:
                actor.claim(now)
        if over.is_set() and ends == np.inf:
            ends = now + _LISTEN_S
        if ends < np.inf and not any(actor.told.unanswered > 0 for actor in actors):
            break
        for socket, _ in poller.poll(5):
            by_socket[socket].handle(msgpack.unpackb(socket.recv()), time.monotonic())
        if ends == np.inf:
            for actor in actors:
                actor.act(time.monotonic())
    results.put([actor.told for actor in actors])
    context.destroy(linger=0)


@dataclass(frozen=True)
class Measured:
    """What came of it."""

    told: list[Told]
    rest: tuple[float, float]  # when nothing but heartbeats came: from when, until when
    rest_cpu_s: float  # processor time of the server's process in it
    busy_share: float  # of a core, while groups came
    taken: int  # groups that a step took, or that wait for one
    foreign: int
    failed: int
    lost: int
    doubled: int


def cast_of(actors: int) -> list[tuple[str, str, str]]:
    """Name, kind and claimed name of each actor: of every 16, ten are honest and one is of each other kind."""
    kinds = ["leaving", *_LIES, _OLD_LIFE, _NAME]
    found = []
    for n in range(actors):
        kind = kinds[n % 16] if n % 16 < len(kinds) else "honest"
        found.append((f"actor-{n}", kind, f"actor-{n + 15 - n % 16}" if kind == _NAME else ""))
    return found


def serve(scratch: Path, actors: int, seconds: float) -> Measured:
    """Serves so many actors for so long.

    Raises:
        FatalError: not all actors came in time.
    """
    spawn = multiprocessing.get_context("spawn")
    with reserve_port() as holder:
        server = WorkServer(f"tcp://127.0.0.1:{holder.getsockname()[1]}", lease_timeout_s=_LEASE_S)
    path = Path(tempfile.mkdtemp(dir=scratch)) / "ledger.jsonl"
    ledger, results, all_here, over = Ledger(path), spawn.Queue(), spawn.Event(), spawn.Event()
    cast = cast_of(actors)
    parts = [cast[first::_PROCESSES] for first in range(min(_PROCESSES, actors))]
    for part in parts:
        spawn.Process(target=play, args=(server.address, part, all_here, over, results), daemon=True).start()
    deadline = time.monotonic() + _START_S
    while missing := {name for name, kind, _ in cast if kind not in (_NAME, "leaving")} - server.members().keys():
        if time.monotonic() > deadline:
            raise FatalError(f"{len(missing)} of {actors} actors did not come: {', '.join(sorted(missing)[:3])}, ...")
        time.sleep(0.05)
    all_here.set()
    begin, cpu = time.monotonic(), time.process_time()
    time.sleep(_REST_S)
    rest, rest_cpu_s = (begin, time.monotonic()), time.process_time() - cpu
    queue: WorkQueue[Group] = WorkQueue(
        groups_per_step=_GROUPS_PER_STEP, staleness=_STALENESS, window=(_STALENESS + 1) * _GROUPS_PER_STEP,
        attempts=3, total=10**9,
    )  # fmt: skip
    entered = 0

    def fail(sequence: int, reason: str) -> None:
        ledger.enter(sequence, 0, "failed", 0, reason)

    server.serve(queue, lambda n: work(n, ["en"] * K), fail, Limits(vocabulary=10_000, tokens=4096))
    begin, cpu = time.monotonic(), time.process_time()
    while time.monotonic() < begin + seconds:
        batch = server.take(0.2) or []
        for group in batch:
            entered += 1
            ledger.enter(group.work.sequence, group.work.question.index, "trained", 0, "", group.work)
        if batch or server.has_newcomers():
            server.mark_published(server.members())
    busy_share = (time.process_time() - cpu) / (time.monotonic() - begin)
    over.set()
    told = [each for _ in parts for each in results.get(timeout=_START_S)]
    counts = server.counts()
    server.close()
    with server.lock:
        ledger.flush()
        found = audit(path, queue.next_sequence, queue.untaken())
    return Measured(
        told, rest, rest_cpu_s, busy_share, entered + counts["waiting"], counts["foreign"], counts["failed"],
        found.lost, found.duplicated,
    )  # fmt: skip


@contextmanager
def names_given_up() -> Iterator[list[str]]:
    """The names that the server's log gives up within the block. Its warnings are not shown: lies are many."""
    found: list[str] = []

    class Names(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg.startswith("giving up actor") and isinstance(record.args, tuple):
                found.append(str(record.args[0]))

    logger, handler = logging.getLogger("learner.server"), Names()
    logger.addHandler(handler)
    logger.propagate, before = False, logger.propagate
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def rows(scratch: Path, actors: int, seconds: float) -> list[Row]:
    """Runs it, and returns the rows of the table."""
    with names_given_up() as given_up:
        measured = serve(scratch, actors, seconds)
    return describe(measured, given_up, actors)


def describe(measured: Measured, given_up: Sequence[str], actors: int) -> list[Row]:
    """The rows of the table."""
    of_kind = {kind: [one for one in measured.told if one.kind == kind] for kind in {one.kind for one in measured.told}}
    honest = [*of_kind.get("honest", []), *of_kind.get("leaving", [])]
    liars = [one for kind in _LIES for one in of_kind.get(kind, [])]
    old, impostors = of_kind.get(_OLD_LIFE, []), of_kind.get(_NAME, [])
    joined = np.array([value for one in measured.told for value in one.joined_s])
    beats = [late_s for one in measured.told for at, late_s in one.beats if measured.rest[0] <= at <= measured.rest[1]]
    rest_s = measured.rest[1] - measured.rest[0]
    all_of = partial(_share, goal=1.0)
    names = {one.name for one in liars if one.refused >= MAX_VIOLATIONS}
    accepted, refused = sum(one.accepted for one in honest), sum(one.refused for one in honest)
    what = f"{actors} actors that join, leave and lie"
    return [
        Row(f"{what}: hello to welcome, p50", float(np.median(joined)), "s"),
        Row("hello to welcome, p99", float(np.percentile(joined, 99)), "s"),
        Row("processor time of a heartbeat", 1e6 * measured.rest_cpu_s / max(len(beats), 1), "us"),
        Row("share of a core, heartbeats alone", measured.rest_cpu_s / rest_s, "", f"{len(beats) / rest_s:.0f}/s"),
        Row("share of a core, with groups", measured.busy_share, "", f"{measured.taken / _seconds(measured):.0f}/s"),
        all_of("honest groups that were accepted", accepted, accepted + refused),
        all_of("accepted groups that arrived", min(accepted, measured.taken), accepted),
        all_of("liars given up, by name", len(names & set(given_up)), len(names)),
        Row("groups of a liar before it is given up, most", max((one.refused for one in liars), default=0), "groups",
            goal=f"<= {MAX_VIOLATIONS}", ok=all(one.refused <= MAX_VIOLATIONS for one in liars)),
        Row("false groups that were accepted", sum(one.accepted for one in [*liars, *old]), "groups", goal="0",
            ok=not any(one.accepted for one in [*liars, *old])),
        all_of("answers under an old life that were dropped", sum(one.unknown for one in old),
               sum(one.sent_old for one in old)),
        all_of("second actors of a name that were told who has it",
               sum("is held by an actor on host" in one.end for one in impostors), len(impostors)),
        all_of("honest actors that were left alone", sum(not one.end for one in honest), len(honest)),
        Row("groups lost, doubled", measured.lost + measured.doubled, "groups", goal="0",
            ok=not measured.lost and not measured.doubled),
        Row("groups given up, which liars alone got", measured.failed, "groups"),
    ]  # fmt: skip


def _seconds(measured: Measured) -> float:
    """How long groups came: from the end of the rest to the last heartbeat."""
    return max((at for one in measured.told for at, _ in one.beats), default=measured.rest[1]) - measured.rest[1]


def _share(metric: str, value: int, of: int, goal: float) -> Row:
    return Row(metric, value, "", f"of {of}", value / max(of, 1), f">= {goal:g}x", value >= goal * of)
