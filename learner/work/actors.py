"""The actors of a run and their leases: who is present, who may lease, who holds what, and who has fallen silent.

Everything here is bookkeeping. The time is passed in. Sockets, threads and locks are in ``learner/work/server.py``.
Nothing is lost with an actor, because the groups of one that leaves, fails or falls silent are leased to others.
"""

from __future__ import annotations

import itertools
import logging
import queue
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from common import wire
from common.config import HEARTBEAT_S
from common.rollout_settings import find_difference
from learner.groups import Group
from learner.work import admission
from learner.work.admission import Limits
from learner.work.scheduler import WorkQueue
from learner.work.turns import FreeActors

log = logging.getLogger("learner.server")

MAX_VIOLATIONS = 2  # groups of one actor that break a rule before the actor is given up
MAX_EXPULSIONS = 3  # how often in a row an actor of one name is given up for that before the name is refused
FORGIVEN_AFTER = 100  # groups of one life that were accepted: those of its name before it no longer count
MAX_REPLIES = 100  # of one actor to orders of the weight sync that nobody has read; two or three are usual
_CLAIM_S = 3 * HEARTBEAT_S  # how long a second actor of a name waits for a sign of life of the first, at least
_LONGEST_NAME = 200  # characters
# So many groups that come back because their answers cannot be scored, before any was scored, show that none can be; or
# all those of a step, where these are fewer, so that no step is trained before. A judge may refuse one or two for good.
UNSCORABLE_GROUPS = 16
FEWEST_UNSCORABLE = 4
_NEVER_SCORED = (
    "no answer of a group has a score, and none would have one another time: a judge refuses each or gives no grade "
    "that can be read (the log of the reward process has what it says), or the reward function returns tools.never"
)
# How many attempts may fail for a cause; for the others learner.group_attempts. An outage is no attempt.
_ATTEMPTS: dict[wire.Cause, int] = {"refusal": 1}


@dataclass(eq=False)
class ActorState:
    """What the learner knows of one life of an actor, from its hello until it leaves or is given up.

    Every life has its own object. Compare with ``is`` to tell whether an actor has left and returned in the meantime.
    """

    name: str
    peer: str  # where its messages come from, and messages to it go; one for each process
    life: str  # that its messages must belong to
    process: wire.ActorProcess
    engine_ranks: int  # ranks of its engine in the weight group; 0 while the engine starts
    transport: str  # how its engine takes weights: a value of sync.transport
    drain_s: float  # how much longer than usual its engine may take to pause, because it finishes its answers first
    settings: dict[str, str]  # that its rollouts depend on
    slots: int  # most leases that it can hold
    last_heard: float  # time of its last message, on the clock of whoever calls ``ActorRegistry``
    awaited: bool = True  # a group waits for its start, see ``ActorRegistry.remove``
    has_weights: bool = False  # its engine has the current weights, so that it may lease
    violations: int = 0  # number of its groups that broke a rule of ``learner/work/admission.py``
    accepted: int = 0  # number of its groups that were accepted
    leases: dict[str, wire.Work] = field(default_factory=dict)  # by the id of the lease
    seconds: dict[str, float] = field(default_factory=dict)  # time spent in each state, from its last heartbeat
    gauges: dict[str, float] = field(default_factory=dict)  # of its engine, from its last heartbeat
    # Its answers to the orders of a weight sync. The queue is thread-safe; the publisher's threads wait on it.
    replies: queue.Queue[wire.Joined | wire.Synced] = field(default_factory=lambda: queue.Queue(MAX_REPLIES))

    @property
    def may_lease(self) -> bool:
        """Whether it gets groups as soon as it has a free slot."""
        return self.has_weights and self.slots > 0


@dataclass(frozen=True)
class ServedQueue:
    """A work queue, and how its groups are made and judged."""

    queue: WorkQueue[Group]
    make_work: Callable[[int], wire.Work]  # the work of a sequence number
    on_failed: Callable[[int, str], None]  # called with the sequence number and the reason when a group is given up
    limits: Limits  # of the answers, see ``learner/work/admission.py``
    # Called with the sequence number and the reason when a finished group has become too old and is asked for again.
    on_stale: Callable[[int, str], None] = lambda _sequence, _reason: None
    trains: bool = False  # whether steps are made of the groups, see ``UNSCORABLE_GROUPS``


class ActorRegistry:
    """The actors that are present, and the leases they hold on the groups of one work queue at a time.

    Not thread-safe, and no method blocks. ``now`` is in seconds on a monotonic clock, the same for all calls.

    Attributes:
        actors: those that are present, by name; also those whose engines still start.
        served: what is leased.
        life: of this learner; random.
        foreign: number of messages that were dropped because they belong to other lives.
        newest_version: the newest policy version that an engine may have by now. The next training step starts from it.
        refused_groups: number of groups that were refused because an answer broke a rule, or that became too old while
            they waited.
        accepted: number of groups that were accepted, of all queues.
        unscorable: how many groups, of all queues, came back unscored before any answer was scored, and the newest
            reason: its scoring failed, or none of its answers has a score. ``None`` as long as these are fewer than
            ``UNSCORABLE_GROUPS`` says, and for good once any answer was scored.

    Args:
        lease_timeout_s: how long an actor may be silent, and a lease may last without a heartbeat that mentions it.
    """

    def __init__(self, lease_timeout_s: float) -> None:
        self.actors: dict[str, ActorState] = {}
        self.served: ServedQueue | None = None
        self.newest_version = 0
        self.refused_groups = self.accepted = 0
        self.unscorable: tuple[int, str] | None = None
        self._scored = False  # any answer in this life
        self._unscored: set[str] = set()  # the groups that came back unscored, by their ids without that of the lease
        self.life = secrets.token_hex(6)
        self.foreign = 0
        self._names: dict[str, str] = {}  # of the actors that are present, by life
        self._lease_timeout_s = lease_timeout_s
        self._lease_numbers = itertools.count()
        self._required: dict[str, str] = {}  # the learner's own settings, which actors need to share; empty until known
        self._expulsions: dict[str, list[str]] = {}  # by name, why actors were given up in a row for their groups
        self._given_back: dict[int, tuple[wire.Work, str]] = {}  # by sequence number, with the newest reason
        self._worked: set[str] = set()  # the names whose last life had weights
        self._failed_hosts: set[str] = set()  # where a start has failed, and none since has ended with weights

    def serve(self, served: ServedQueue) -> None:
        """Leases from this queue from now on. The leases on the queue before it end, and their answers are refused."""
        for name, actor in self.actors.items():
            if self.served is not None:
                self.served.queue.release_all(name)
            actor.leases.clear()
        self._given_back.clear()
        self.served = served
        self._ask_again_for_stale()

    # -- who is present --------------------------------------------------------------------------------------------

    def admit(self, peer: str, hello: wire.Hello, now: float) -> wire.Welcome | wire.Taken | wire.Stop:
        """An actor says hello. Returns the answer, which belongs to the life of the hello.

        A name belongs to the actor that has it. Another one gets it only if the first has left, was silent for
        ``lease_timeout_s``, or is known to the other one as a process that is gone.

        Args:
            peer: where the hello came from.
        """
        problem = _find_problem(hello) or self._find_unfitness(hello.name, hello.settings)
        if not problem and self._names.get(hello.actor_life, hello.name) != hello.name:
            problem = "another actor has this life"
        if problem:
            return wire.Stop(error=problem)
        holder = self.actors.get(hello.name)
        if holder is not None and holder.peer == peer and holder.life == hello.actor_life:
            holder.last_heard = now
            return wire.Welcome()  # it has not heard the first one yet
        if holder is not None and holder.peer != peer and holder.life != hello.replaces:
            silent_s = now - holder.last_heard
            if hello.waited_s >= _CLAIM_S and silent_s <= hello.waited_s / 2:
                return wire.Stop(error=_describe_holder(holder, silent_s))
            return wire.Taken(holder=holder.process, holder_life=holder.life, silent_s=max(0.0, silent_s))
        # One that is ready goes on with the start that its hello before told of.
        starts = holder if hello.engine_ranks else None
        self.remove(hello.name, failed=starts is None)
        awaited = hello.name in self._worked or hello.process.host not in self._failed_hosts
        self._names[hello.actor_life] = hello.name
        self.actors[hello.name] = ActorState(
            name=hello.name, peer=peer, life=hello.actor_life, process=hello.process,
            engine_ranks=hello.engine_ranks, transport=hello.transport, drain_s=hello.drain_s,
            settings=hello.settings, slots=hello.slots, last_heard=now,
            awaited=awaited or (starts is not None and starts.awaited),
        )  # fmt: skip
        return wire.Welcome()

    def require(self, settings: Mapping[str, str]) -> list[tuple[ActorState, str]]:
        """Refuses actors with other settings from now on.

        Returns: those that were present and are removed, with the reason.
        """
        self._required = dict(settings)
        refused = [
            (actor, problem)
            for name, actor in self.actors.items()
            if (problem := self._find_unfitness(name, actor.settings))
        ]
        for actor, _ in refused:
            self.remove(actor.name)
        return refused

    def _find_unfitness(self, name: str, settings: Mapping[str, str]) -> str:
        """Why the learner takes no groups of an actor of this name with these settings; empty if it does."""
        expulsions = self._expulsions.get(name, [])
        if len(expulsions) >= MAX_EXPULSIONS:
            return (
                f"actor {name} was given up {len(expulsions)} times in a row because its groups broke a rule, the last "
                f"time for this: {expulsions[-1]}. Look at its machine and its software; when it is mended, give it "
                "another actor.name, or start the learner again"
            )
        return find_difference(self._required, settings, name) if self._required else ""

    def find_sender(self, peer: str, message: wire.LifeMessage) -> ActorState | None:
        """The actor that sent a message; None, and counted, if the message does not belong to lives of now."""
        actor = self.actors.get(self._names.get(message.actor_life, ""))
        if actor is None or actor.peer != peer or message.learner_life != self.life:
            self.foreign += 1
            return None
        return actor

    def lives_of(self, actor: ActorState) -> wire.Lives:
        """What messages to and from this actor belong to."""
        return wire.Lives(actor.life, self.life)

    def remove(self, name: str, *, failed: bool = True) -> None:
        """An actor is gone: its groups are leased to others. Does nothing for an unknown name.

        Groups that have failed wait for those that start. One that goes without ever having had the weights has failed
        to start, and may do so again and again: no group waits for a start that begins on its host, whatever the name,
        until one there has the weights. The next start of an actor that had them is waited for.

        Args:
            failed: whether it has failed where it never had the weights.
        """
        actor = self.actors.pop(name, None)
        if actor is not None:
            del self._names[actor.life]
            if actor.has_weights:
                self._worked.add(name)
            elif failed:
                self._worked.discard(name)
                self._failed_hosts.add(actor.process.host)
            if self.served is not None:
                self.served.queue.release_all(name)

    def leave(self, name: str, message: wire.Leave) -> None:
        """An actor leaves. If its engine has ended by itself, that is held against the groups that were in it."""
        actor = self.actors[name]
        if self.served is not None:
            works = [actor.leases[lease] for lease in message.generating if lease in actor.leases]
            given_up = self.served.queue.end_engine(name, [work.sequence for work in works], self._present(name))
            for work in works:
                if work.sequence == given_up:
                    ended = self.served.queue.engines
                    reason = f"engines have ended while they generated its answers, {ended} at least: {message.reason}"
                    self._report_failed(work, reason)
        self.remove(name)

    def heartbeat(self, name: str, message: wire.Heartbeat, now: float) -> None:
        """Extends the leases that the message mentions; the actor's other leases run out at their deadlines."""
        actor = self.actors[name]
        if message.slots is not None:
            actor.slots = message.slots
        actor.seconds, actor.gauges = message.seconds, message.gauges
        if self.served is not None:
            held = [actor.leases[lease].sequence for lease in message.holding if lease in actor.leases]
            self.served.queue.extend(name, held, now + self._lease_timeout_s)

    def mark_published(self, members: Mapping[str, ActorState]) -> None:
        """The engines of ``members`` have the newest weights: they may lease, and the last step's slots are free."""
        for actor in members.values():
            if not actor.has_weights:
                self._failed_hosts.discard(actor.process.host)
            actor.has_weights = True  # if the actor has returned in the meantime, this is not its present state
        if self.served is not None:
            self.served.queue.mark_published()
            self._ask_again_for_stale()

    def has_newcomers(self) -> bool:
        """Whether an engine is there that does not have the current weights."""
        return any(actor.engine_ranks and not actor.has_weights for actor in self.actors.values())

    def excuse_silence(self, seconds: float, now: float) -> None:
        """Nobody could be heard for so long: it counts neither as silence of the actors nor against their leases."""
        for actor in self.actors.values():
            actor.last_heard = min(now, actor.last_heard + seconds)
        if self.served is not None:
            self.served.queue.postpone(seconds, now + self._lease_timeout_s)

    def remove_silent(self, now: float) -> None:
        """Removes the actors from which nothing was heard for ``lease_timeout_s``."""
        for name, actor in list(self.actors.items()):
            if actor.last_heard < now - self._lease_timeout_s:
                log.warning(
                    "actor %s was silent for %.0f s: its groups are leased to others", name, now - actor.last_heard
                )
                self.remove(name)

    def status(self, now: float) -> dict[str, wire.ActorStatus]:
        """What ``scripts.ops.status`` shows of every actor, by name."""
        return {
            name: wire.ActorStatus(
                live=actor.has_weights, groups=len(actor.leases), slots=actor.slots, silent_s=now - actor.last_heard,
                seconds=actor.seconds, gauges=actor.gauges,
            )
            for name, actor in sorted(self.actors.items())
        }  # fmt: skip

    # -- leases ----------------------------------------------------------------------------------------------------

    def grant(self, now: float) -> dict[str, list[wire.Work]]:
        """Leases as many groups as the queue and the free slots allow.

        The oldest group is first, and goes to the actor with the fewest leases, the first by name among equals. Where
        actors could not do it, ``learner/work/turns.py`` says who gets it.

        Returns: the new leases by the name of the actor. Each work's ``id`` is that of its lease.
        """
        granted: dict[str, list[wire.Work]] = {}
        if self.served is None:
            return granted
        work_queue, deadline = self.served.queue, now + self._lease_timeout_s
        asking = {
            name: (len(actor.leases), actor.slots)
            for name, actor in self.actors.items()
            if actor.has_weights and len(actor.leases) < actor.slots and not self._holds_suspect(actor)
        }
        if not asking:
            return granted
        free = FreeActors(
            asking, lambda: ([name for name, actor in self.actors.items() if actor.may_lease], self._present())
        )
        emptied = False  # whether an actor gets no more until it holds nothing, and then the suspect
        for sequence in work_queue.suspects():
            trials = work_queue.trials(sequence)
            if (name := free.choose_empty(trials)) is not None:
                work_queue.lease(name, deadline, sequence)
                granted[name] = [self._lease(name, sequence)]
                free.remove(name)
            elif not emptied and (name := free.choose_soonest_empty(trials)) is not None:
                emptied = True
                free.remove(name)
        for sequence in work_queue.offers() if free else ():
            if (name := free.choose(work_queue.trials(sequence))) is not None:
                work_queue.lease(name, deadline, sequence)
                granted.setdefault(name, []).append(self._lease(name, sequence))
                free.add_lease(name)
            if not free:
                break
        return granted

    def _present(self, failing: str = "") -> dict[str, str]:
        """The hosts of the actors that are there and may do groups, or whose start is waited for, by name.

        Args:
            failing: an actor that has just failed at a group. It was there, even if it gets no more.
        """
        return {
            name: actor.process.host
            for name, actor in self.actors.items()
            if name == failing or actor.may_lease or (actor.awaited and not actor.has_weights)
        }

    def _holds_suspect(self, actor: ActorState) -> bool:
        if len(actor.leases) != 1 or self.served is None:
            return False
        return self.served.queue.is_suspect(next(iter(actor.leases.values())).sequence)

    def _lease(self, name: str, sequence: int) -> wire.Work:
        assert self.served is not None
        work = self.served.make_work(sequence)
        # A number of its own for each lease: an answer under an earlier lease of the same group does not count.
        work = work.model_copy(update={"id": f"{next(self._lease_numbers)}:{work.id}"})
        self.actors[name].leases[work.id] = work
        return work

    def submit(self, name: str, message: wire.Submit) -> bool:
        """Takes the answers of a group, and returns whether they will be trained on.

        They are refused if the actor does not hold the lease, or if they break a rule of ``learner/work/admission.py``.
        In the second case the group is offered again. An actor for which ``is_untrustworthy`` then holds is to be given
        up, and its name is refused after ``MAX_EXPULSIONS`` such times in a row, because a new engine did not help. A
        life of which ``FORGIVEN_AFTER`` groups were accepted ends the row: rare faults do not add up over a long run.
        """
        work = self.actors[name].leases.pop(message.id, None)
        if work is None or self.served is None:
            return False
        self._scored = self._scored or any(one.score.scored for one in message.rollouts)
        problem = admission.find_problem(work, message.rollouts, self.served.limits, self.newest_version)
        if problem:
            self.refused_groups += 1
            self.actors[name].violations += 1
            log.error("group %s of actor %s is refused: %s", work.id, name, problem)
            self._release(name, work, problem)
            if self.actors[name].violations == MAX_VIOLATIONS:
                self._expulsions.setdefault(name, []).append(problem)
            return False
        rollouts, note = admission.cut_to_fit(message.rollouts, self.served.limits)
        group = Group(work=work, actor=name, rollouts=rollouts, note=note, timing=message.timing)
        accepted = self.served.queue.submit(work.sequence, name, group)
        self.accepted += accepted
        self.actors[name].accepted += accepted
        if self.actors[name].accepted >= FORGIVEN_AFTER:
            self._expulsions.pop(name, None)
        self._given_back.pop(work.sequence, None)
        if not any(one.score.scored for one in message.rollouts):
            self._note_unscored(work, _NEVER_SCORED)
        return accepted

    def is_untrustworthy(self, name: str) -> bool:
        """Whether so many groups of an actor have broken rules that no other may be leased to it."""
        return self.actors[name].violations >= MAX_VIOLATIONS

    def release(self, name: str, message: wire.Release) -> bool:
        """An actor could not do its group and gives the lease back. Returns whether it held the lease."""
        work = self.actors[name].leases.pop(message.id, None)
        if work is None:
            return False
        log.warning("actor %s gives back group %s: %s", name, message.id, message.reason)
        self._release(name, work, message.reason, message.cause)
        if message.cause == "scoring":
            self._note_unscored(work, message.reason)
        return True

    def _note_unscored(self, work: wire.Work, reason: str) -> None:
        """A group came back without any score: once there are many and nothing else, nothing can be scored."""
        if self._scored or self.served is None:
            return
        self._unscored.add(work.id.partition(":")[2])
        step = max(FEWEST_UNSCORABLE, self.served.queue.groups_per_step)
        if len(self._unscored) >= (min(UNSCORABLE_GROUPS, step) if self.served.trains else UNSCORABLE_GROUPS):
            self.unscorable = len(self._unscored), reason

    def release_expired(self, now: float) -> None:
        """Ends the leases that no heartbeat has extended in time, although their actors are present."""
        for sequence, name in self.served.queue.expired(now) if self.served is not None else []:
            log.warning("the lease of group %d by actor %s ran out", sequence, name)
            leases = self.actors[name].leases
            work = next(work for work in leases.values() if work.sequence == sequence)
            del leases[work.id]
            # A message was lost with a connection, which is nobody's fault.
            self._release(name, work, "its lease ran out", "outage")

    def all_finished(self) -> bool:
        """Whether no group that was handed out is unfinished; finished ones may still wait for their step."""
        return self.served is None or len(self.served.queue.untaken()) == len(self.served.queue.finished())

    def describe_oldest(self) -> str:
        """The oldest group that is leased or was given back: its row, who has it, and why it was given back last.

        Empty where there is none.
        """
        leased = {work.sequence: (work, name) for name, actor in self.actors.items() for work in actor.leases.values()}
        if not leased and not self._given_back:
            return ""
        sequence = min({*leased, *self._given_back})
        work, holder = leased.get(sequence) or (self._given_back[sequence][0], "")
        where = f"is with actor {holder}" if holder else "waits for an actor"
        _, reason = self._given_back.get(sequence, (work, ""))
        before = f"; it was given back before: {reason}" if reason else ""
        return f"the oldest is group {sequence}, of row {work.question.index}, which {where}{before}"

    def counts(self) -> dict[str, int]:
        """Numbers of groups of the served queue; empty if there is none.

        ``leased`` groups, and finished ones that are ``waiting`` for their step, are the present numbers. Since the
        beginning of the run: ``retried`` leases ended without a valid answer, ``orphaned`` of these because their actor
        was gone, and ``failed`` groups were given up.
        ``refused`` answers broke a rule, and ``foreign`` messages belonged to other lives, since this process began.
        """
        if self.served is None:
            return {}
        served = self.served.queue
        return {
            "waiting": len(served.finished()), "leased": served.count_leased(),
            "retried": served.retried, "orphaned": served.orphaned, "failed": served.failed,
            "refused": self.refused_groups, "foreign": self.foreign,
        }  # fmt: skip

    def _ask_again_for_stale(self) -> None:
        """Has every finished group made again that the next step would train with a larger lag than is allowed.

        There is none as long as the queue keeps its promise; this is where the promise is checked.
        """
        if self.served is None:
            return
        limits = self.served.limits
        for sequence, group in self.served.queue.finished().items():
            if admission.is_too_old(group.work, group.rollouts, limits, self.newest_version):
                reason = (
                    f"actor {group.actor} made it with a policy too old for the staleness bound of {limits.lag}: the "
                    f"newest version is {self.newest_version}, the lease was given at {group.work.policy_version}"
                )
                log.error("group %s is asked for again: %s", group.work.id, reason)
                self.refused_groups += 1
                self.served.queue.ask_again(sequence)
                self.served.on_stale(sequence, reason)

    def _release(self, name: str, work: wire.Work, reason: str, cause: wire.Cause = "unforeseen") -> None:
        assert self.served is not None  # there are no leases without a queue
        self._given_back[work.sequence] = work, reason
        if cause == "outage":
            self.served.queue.put_back(work.sequence, name)
        elif self.served.queue.release(work.sequence, name, cause, _ATTEMPTS.get(cause), self._present(name)):
            self._report_failed(work, reason)

    def _report_failed(self, work: wire.Work, reason: str) -> None:
        assert self.served is not None
        self._given_back.pop(work.sequence, None)
        log.error("group %s has failed for good: %s", work.id, reason)
        self.served.on_failed(work.sequence, reason)


def protocol_problem(name: str, protocol: int) -> str:
    """Why an actor that speaks this protocol is refused; empty if it is not."""
    if protocol == wire.PROTOCOL:
        return ""
    who = name[:_LONGEST_NAME] or "without a name"
    return f"this learner speaks protocol {wire.PROTOCOL}, actor {who} speaks {protocol}: update it"


def _find_problem(hello: wire.Hello) -> str:
    if problem := protocol_problem(hello.name, hello.protocol):
        return problem
    if not hello.name or len(hello.name) > _LONGEST_NAME or not hello.actor_life:
        return f"an actor needs a name of at most {_LONGEST_NAME} characters, and a life"
    return ""


def _describe_holder(holder: ActorState, silent_s: float) -> str:
    process = holder.process
    return (
        f"the name {holder.name!r} is held by an actor on host {process.host}, process {process.pid}, which was heard "
        f"{silent_s:.0f} s ago. Give this one another actor.name, or end that one"
    )
