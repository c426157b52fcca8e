"""The learner's socket to the actors: one thread of rank 0 that receives their messages and answers them.

This file moves messages and guards state with a lock. What the messages mean is decided elsewhere: who is present and
who holds which lease in ``learner/work/actors.py``, which group is next in ``learner/work/scheduler.py``, and which
answers are valid in ``learner/work/admission.py``.
"""

from __future__ import annotations

import gc
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import cast

import zmq

from common import wire
from common.net import sockets
from common.process import FatalError
from common.sparse_log import is_logged
from common.stood_still import WORTH_TELLING_S, stood_still_s
from learner.groups import Group
from learner.work.actors import (
    MAX_REPLIES,
    ActorRegistry,
    ActorState,
    ServedQueue,
    protocol_problem,
)
from learner.work.admission import UNLIMITED, Limits
from learner.work.scheduler import WorkQueue

log = logging.getLogger("learner.server")

_POLL_MS = 50  # longest wait for a message, and shortest time between two checks of deadlines
_MESSAGES_PER_TURN = 64  # received before leases are granted and answers are sent
_DONTWAIT, _SNDMORE = int(zmq.DONTWAIT), int(zmq.SNDMORE)  # as enumerations they would cost microseconds at every use


class EveryQuestionGivenUp(FatalError):
    """No group can come any more, because every question of the queue was given up."""


class WorkServer:
    """Serves one work queue at a time to the actors, on a thread of its own.

    Public methods may be called from any thread but the server's own. The thread runs from construction to ``close``.
    If it fails, ``take``, ``members`` and ``wait_until_all_finished`` raise FatalError. They also raise it if no answer
    can be scored: so many groups came back unscored as ``learner.work.actors.UNSCORABLE_GROUPS`` says, and none was
    scored since this process began.

    Attributes:
        address: where it listens.
        lock: guards the actors and the queue being served. Hold it to read or change the served queue, or anything that
            ``make_work`` and ``on_failed`` use. ``take`` waits on it as a condition.
        refused_messages: number of messages that could not be decoded, or were not meant for a learner.
        life: of this learner, see ``wire.Lives``.

    Args:
        address: where actors connect, as ``common.net.sockets`` takes it.
        lease_timeout_s: how long an actor may be silent, and a lease may last without a heartbeat that mentions it.

    Raises:
        FatalError: the address is taken, malformed, or needs keys that are not there.
    """

    def __init__(self, address: str, lease_timeout_s: float) -> None:
        self.address = address
        self.lock = threading.Condition()
        self.refused_messages = 0
        self._registry = ActorRegistry(lease_timeout_s)
        self.life = self._registry.life
        self._status: tuple[str, dict[str, float]] = "", {}  # line and rates of the newest step, see wire.Status
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = sockets.bind(self._context, address)  # used by the server's thread alone
        # A message for an actor may come from any thread. It goes into the outbox, and a byte into the wake-up socket
        # makes the server's thread send it at once, instead of after at most _POLL_MS.
        self._outbox: queue.SimpleQueue[tuple[str, wire.AnyMessage]] = queue.SimpleQueue()  # with the peer it is for
        self._wake_sender, self._wake_receiver = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._wake_receiver.bind("inproc://wake")
        self._wake_sender.connect("inproc://wake")
        self._wake_lock = threading.Lock()  # ZeroMQ sockets are not thread-safe, and several threads wake the server
        # Acknowledgements of this turn, sent as one message to each peer and life.
        self._acks: dict[tuple[str, wire.Lives], dict[str, bool]] = {}
        self._closing = False
        self._checked = 0.0  # when deadlines were last checked
        self._turned = time.monotonic()  # when the thread last came round
        self._crash: BaseException | None = None  # what ended the server's thread
        # Messages are garbage soon, so the collector runs often. It need not walk through all modules every time.
        gc.freeze()
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self._thread.start()

    # -- for the threads of training and publishing ------------------------------------------------------------------

    def serve(
        self,
        work_queue: WorkQueue[Group],
        make_work: Callable[[int], wire.Work],
        on_failed: Callable[[int, str], None],
        limits: Limits = UNLIMITED,
        on_stale: Callable[[int, str], None] = lambda _sequence, _reason: None,
        *,
        trains: bool = False,
    ) -> None:
        """Begins to lease the groups of ``work_queue`` instead of those served before, whose leases end.

        Args:
            work_queue: belongs to the server's thread from now on; hold ``lock`` to use it.
            make_work: makes the work of a sequence number. Runs on the server's thread, which holds ``lock``.
            on_failed: is called with a sequence number and a reason when a group is given up. Runs on the server's
                thread, which holds ``lock``.
            limits: answers beyond these are refused or cut.
            on_stale: as ``on_failed``, for a finished group that has become too old and is asked for again.
            trains: whether steps are made of the groups. Then none is made of groups of which no answer has a score as
                long as none has had one, unless a step has very few groups.
        """
        with self.lock:
            self._registry.serve(ServedQueue(work_queue, make_work, on_failed, limits, on_stale, trains))
        self._wake()

    def require(self, settings: Mapping[str, str]) -> None:
        """Refuses from now on every actor with other settings, those included that are there already.

        Args:
            settings: as ``common/rollout_settings.py`` has them.
        """
        with self.lock:
            refused = self._registry.require(settings)
        for actor, problem in refused:
            log.warning("refused an actor: %s", problem)
            self.send(actor, wire.Stop(error=problem))

    def take(self, timeout_s: float) -> list[Group] | None:
        """The groups of the next step, from old to young. Blocks for at most ``timeout_s``; None if they are not there.

        Raises:
            EveryQuestionGivenUp: there is nothing to wait for.
            FatalError: the server has failed, or no answer can be scored.
        """
        with self.lock:
            assert self._registry.served is not None, "serve() comes first"
            work_queue = self._registry.served.queue
            self._check()
            taken = work_queue.take()
            if taken is None:
                self.lock.wait(timeout_s)
                self._check()
                taken = work_queue.take()
            if taken is None and not work_queue.remaining:
                raise EveryQuestionGivenUp("every question was given up, for the reasons logged above")
            return None if taken is None else [group for _, group in taken]

    def begin_version(self, version: int) -> None:
        """Notes that engines may answer with tokens of this policy version from now on, but of no newer one."""
        with self.lock:
            self._registry.newest_version = version

    def mark_published(self, members: Mapping[str, ActorState]) -> None:
        """Notes that the engines of ``members`` have the newest weights.

        They may lease from now on, and the queue's slots of the step that made these weights are free.
        """
        with self.lock:
            self._registry.mark_published(members)
        self._wake()

    def members(self) -> dict[str, ActorState]:
        """The actors whose engines are there, with or without the current weights, sorted by name.

        The dictionary is a copy. The states in it are not: the server's thread goes on to change them.

        Raises:
            FatalError: the server has failed, or no answer can be scored.
        """
        with self.lock:
            self._check()
            return {name: actor for name, actor in sorted(self._registry.actors.items()) if actor.engine_ranks}

    def present(self) -> list[str]:
        """The names of all actors that are there, also of those whose engines still start, sorted."""
        with self.lock:
            return sorted(self._registry.actors)

    def is_present(self, name: str, actor: ActorState) -> bool:
        """Whether this actor has neither left nor been given up since ``members`` returned it.

        False, too, if an actor of the same name has said hello since. Does not wait for the lock, so that it may be
        called often: looking up one key is atomic.
        """
        return self._registry.actors.get(name) is actor

    def has_newcomers(self) -> bool:
        """Whether an actor is present that does not have the current weights."""
        with self.lock:
            return self._registry.has_newcomers()

    def accepted(self) -> int:
        """How many groups were accepted since this process began: while the number rises, a wait makes progress."""
        with self.lock:
            return self._registry.accepted

    def wait_until_all_finished(self, timeout_s: float, check: Callable[[], None]) -> bool:
        """Blocks until every group handed out is finished, as long as they come.

        Args:
            timeout_s: how long to wait for the next group.
            check: called several times a second; raises to end the wait.

        Returns: whether all are finished. False if none came for so long, or an actor has come that needs weights.
        """
        deadline, accepted = time.monotonic() + timeout_s, self.accepted()
        while time.monotonic() < deadline and not self.has_newcomers():
            began = time.monotonic()
            check()
            with self.lock:
                self._check()
                if self._registry.all_finished():
                    return True
                if self._registry.accepted > accepted:
                    deadline, accepted = time.monotonic() + timeout_s, self._registry.accepted
            time.sleep(_POLL_MS / 1000)
            deadline += stood_still_s(began, _POLL_MS / 1000)  # a learner that was stopped blames no actor for it
        return False

    def counts(self) -> dict[str, int]:
        """Numbers of groups, as ``ActorRegistry.counts`` describes them."""
        with self.lock:
            return self._registry.counts()

    def describe_oldest(self) -> str:
        """The oldest group that is leased or was given back, as ``ActorRegistry.describe_oldest`` has it."""
        with self.lock:
            return self._registry.describe_oldest()

    def update_status(self, line: str, rates: dict[str, float]) -> None:
        """Sets the line of the newest step and the tokens/s by actor, for whoever asks for the status of the run."""
        with self.lock:
            self._status = line, rates

    def eject(self, name: str, actor: ActorState, reason: str) -> None:
        """Gives an actor up, tells it why, and leases its groups to others.

        Does nothing if the actor is gone, even if another of the same name has come since.
        """
        with self.lock:
            if self._registry.actors.get(name) is not actor:
                return
            self._registry.remove(name)
        log.warning("giving up actor %s: %s", name, reason)
        self.send(actor, wire.Eject(reason=reason))

    def send(self, actor: ActorState, message: wire.LifeMessage) -> None:
        """Sends a message to this life of an actor, and to no later one.

        Does not block; the message is lost if the actor is not connected.
        """
        self._put(actor.peer, message.of(self._registry.lives_of(actor)))
        self._wake()

    def close(self, *, over: bool = True) -> None:
        """Ends the thread, after what is in the outbox was sent, and frees the address. Blocks for about 5 s at most.

        Args:
            over: whether the run is over, so that actors are told to stop. Otherwise they wait for the next learner.
        """
        if over:
            with self.lock:
                actors = list(self._registry.actors.values())
            for actor in actors:
                self.send(actor, wire.Stop(error=""))
        self._closing = True
        self._wake()
        self._thread.join(timeout=5)
        self._wake_sender.close()
        self._context.destroy(linger=500)

    def _check(self) -> None:
        if self._crash is not None:
            raise FatalError(f"the learner's server has failed: {self._crash!r}") from self._crash
        if self._registry.unscorable is not None:
            groups, reason = self._registry.unscorable
            raise FatalError(
                f"no answer can be scored: {groups} groups came back unscored, before any was scored. The newest "
                f"reason: {reason}. Mend it, start the reward processes anew, and give the same command again, which "
                "goes on from the newest checkpoint and asks again what was asked since"
            )

    def _wake(self) -> None:
        """Makes the server's thread look at the outbox and the queue now."""
        if threading.current_thread() is not self._thread:
            # An error means that the thread has ended or is being woken already. At worst it looks _POLL_MS later.
            with self._wake_lock, suppress(zmq.ZMQError):
                self._wake_sender.send(b"", zmq.DONTWAIT)

    # -- the server's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_receiver, zmq.POLLIN)
        try:
            while not self._closing or not self._outbox.empty():
                ready = dict(poller.poll(_POLL_MS))
                if self._wake_receiver in ready:
                    self._wake_receiver.recv()
                if self._socket in ready:
                    self._receive()
                with self.lock:
                    self._check_deadlines()
                    self._grant()
                    served = self._registry.served
                    if self._registry.unscorable or (served is not None and served.queue.has_full_batch()):
                        self.lock.notify_all()
                self._flush()
        except BaseException as error:  # whatever it is, the training thread must be told instead of waiting for ever
            log.exception("the server's thread has failed")
            with self.lock:
                self._crash = error
                self.lock.notify_all()
        finally:
            self._wake_receiver.close()
            self._socket.close(linger=500)

    def _receive(self) -> None:
        """Handles the messages that have arrived, up to _MESSAGES_PER_TURN. Refuses those that cannot be decoded."""
        for _ in range(_MESSAGES_PER_TURN):
            try:
                peer_frame = self._socket.recv(_DONTWAIT)
            except zmq.Again:
                break
            data: memoryview | None = None
            try:
                data = self._receive_rest()  # before anything is looked at, so that the next message is a whole one
                peer, message = peer_frame.decode(), wire.decode(data)
            except (wire.WireError, UnicodeDecodeError) as error:
                self._refuse(peer_frame.decode(errors="replace"), str(error))
                if data is not None:
                    self._answer_stranger(peer_frame, data)
                continue
            with self.lock:
                self._handle(peer, message, time.monotonic())
        for (peer, lives), accepted in self._acks.items():
            self._put(peer, wire.Ack(accepted=accepted).of(lives))
        self._acks.clear()

    def _receive_rest(self) -> memoryview:
        """The one frame that is to follow that of the peer, without a copy. A message arrives with all its frames.

        Raises:
            WireError: there are more.
        """
        frame, frames = self._socket.recv(_DONTWAIT, copy=False), 2
        while frame.more:
            frame, frames = self._socket.recv(_DONTWAIT, copy=False), frames + 1
        if frames != 2:
            raise wire.WireError(f"{frames} frames instead of 2")
        return frame.buffer

    def _answer_stranger(self, peer_frame: bytes, data: memoryview) -> None:
        """Tells an actor of another version, whose hello cannot be read as a whole, why it is refused."""
        heading = wire.read_heading(data)
        if heading is None or heading.kind != "hello" or heading.protocol is None:
            return
        if problem := protocol_problem(heading.name, heading.protocol):
            with suppress(UnicodeDecodeError):  # no actor has such a name
                self._put(peer_frame.decode(), wire.Stop(error=problem))

    def _refuse(self, peer: str, reason: str) -> None:
        self.refused_messages += 1
        if is_logged(self.refused_messages):
            log.warning("refused message number %d, from %s: %s", self.refused_messages, peer, reason)

    def _put(self, peer: str, message: wire.LifeMessage | wire.Status) -> None:
        self._outbox.put((peer, cast(wire.AnyMessage, message)))

    def _flush(self) -> None:
        while not self._outbox.empty():
            peer, message = self._outbox.get()
            *first, last = peer.encode(), *wire.encode_frames(message)
            for frame in first:
                self._send_frame(frame, _SNDMORE)
            self._send_frame(last)

    def _send_frame(self, frame: bytes | memoryview, flags: int = 0) -> None:
        """Copies short frames; the memory of an adapter is the same for all actors."""
        self._socket.send(frame, flags, copy=isinstance(frame, bytes))

    def _handle(self, peer: str, message: wire.AnyMessage, now: float) -> None:
        match message:
            case wire.Hello():
                self._welcome(peer, message, now)
            case wire.Health():  # anyone may ask
                line, rates = self._status
                status = wire.Status(line=line, rates=rates, actors=self._registry.status(now), counts=self.counts())
                self._put(peer, status)
            case wire.Submit() | wire.Release() | wire.Heartbeat() | wire.Joined() | wire.Synced() | wire.Leave():
                actor = self._registry.find_sender(peer, message)
                if actor is not None:
                    self._handle_actor(actor, message, now)
                elif not isinstance(message, wire.Leave):  # who leaves will say hello without being told
                    self._put(peer, wire.Unknown().of(wire.Lives(message.actor_life, self.life)))
            case _:
                self._refuse(peer, f"a learner does not take messages of the kind {message.kind!r}")

    def _handle_actor(
        self,
        actor: ActorState,
        message: wire.Submit | wire.Release | wire.Heartbeat | wire.Joined | wire.Synced | wire.Leave,
        now: float,
    ) -> None:
        actor.last_heard = now
        name, lives = actor.name, self._registry.lives_of(actor)
        match message:
            case wire.Submit():
                self._acks.setdefault((actor.peer, lives), {})[message.id] = self._registry.submit(name, message)
                if self._registry.is_untrustworthy(name):
                    self.eject(name, actor, f"{actor.violations} of its groups broke a rule, the last one {message.id}")
            case wire.Release():
                self._acks.setdefault((actor.peer, lives), {})[message.id] = self._registry.release(name, message)
            case wire.Heartbeat():
                self._registry.heartbeat(name, message, now)
                self._put(actor.peer, wire.Alive().of(lives))
            case wire.Joined() | wire.Synced():
                try:
                    actor.replies.put_nowait(message)
                except queue.Full:
                    self.eject(name, actor, f"it sent {MAX_REPLIES} replies that no order had asked for")
            case wire.Leave():
                log.warning("actor %s leaves: %s", name, message.reason)
                self._registry.leave(name, message)

    def _welcome(self, peer: str, hello: wire.Hello, now: float) -> None:
        before = self._registry.actors.get(hello.name)
        answer = self._registry.admit(peer, hello, now)
        # An actor of another protocol may know nothing of lives, and would not understand why it is refused.
        spoken = hello.protocol == wire.PROTOCOL
        self._put(peer, answer.of(wire.Lives(hello.actor_life, self.life) if spoken else wire.Lives("", "")))
        if self._registry.actors.get(hello.name) is not before:
            engine = f"{hello.engine_ranks} engine ranks" if hello.engine_ranks else "its engine is starting"
            log.info("actor %s is here (%s), as life %s", hello.name, engine, hello.actor_life)
        elif isinstance(answer, wire.Stop):
            log.warning("refused an actor: %s", answer.error)

    def _check_deadlines(self) -> None:
        stood_s, now = stood_still_s(self._turned, _POLL_MS / 1000), time.monotonic()
        self._turned = now
        if stood_s:
            level = logging.WARNING if stood_s > WORTH_TELLING_S else logging.DEBUG
            log.log(level, "the learner stood still for %.0f s, in which it could hear no actor", stood_s)
            self._registry.excuse_silence(stood_s, now)
        if now < self._checked + _POLL_MS / 1000:
            return
        self._checked = now
        self._registry.remove_silent(now)
        self._registry.release_expired(now)

    def _grant(self) -> None:
        for name, works in self._registry.grant(time.monotonic()).items():
            actor = self._registry.actors[name]
            self._put(actor.peer, wire.Leased(work=works).of(self._registry.lives_of(actor)))
