"""The work queue's socket: one thread of learner rank 0 that leases questions to actors and collects their groups.

The training thread talks to it through ``take``, ``published`` and ``send``; what an actor says about weights waits in
``Peer.replies``. Actors hold nothing that matters: one that falls silent loses its leases.
"""

from __future__ import annotations

import gc
import heapq
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import zmq

from common import wire
from common.net import sockets
from common.process import FatalError
from learner.groups import Group
from learner.work import admission
from learner.work.admission import UNLIMITED, Limits
from learner.work.scheduler import WorkQueue

log = logging.getLogger("learner.server")

_POLL_MS = 50
_MESSAGES_A_TURN = 64


@dataclass(eq=False)
class Peer:
    """An actor as the learner sees it."""

    engine_ranks: int
    transport: str  # as sync.transport
    drain_s: float  # how long its engine may take to pause, beside the ordinary
    slots: int  # most leases it can hold
    heard: float  # time of its last message
    live: bool = False  # its engine has the current weights, so it may lease
    holding: dict[str, wire.Work] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    replies: queue.SimpleQueue[wire.Joined | wire.Synced] = field(default_factory=queue.SimpleQueue)


class Server:
    """Serves one ``WorkQueue`` at a time.

    Args:
        address: where actors connect.
        lease_timeout_s: an actor silent for this long is given up.
    """

    def __init__(self, address: str, lease_timeout_s: float) -> None:
        self.peers: dict[str, Peer] = {}
        self.lock = threading.Condition()  # guards peers and the queue being served
        self.address, self._lease_timeout_s = address, lease_timeout_s
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = sockets.bind(self._context, address)
        self._outbox: queue.SimpleQueue[tuple[str, wire.AnyMessage]] = queue.SimpleQueue()
        self._wake, self._woken = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._woken.bind("inproc://wake")
        self._wake.connect("inproc://wake")
        self._waking = threading.Lock()  # a socket is one thread's at a time, and publishing has many
        self._queue: WorkQueue[Group] | None = None
        self._ask: Callable[[int], wire.Work] | None = None
        self._on_failed: Callable[[int, str], None] = lambda sequence, reason: None
        self._limits = UNLIMITED
        self._acks: dict[str, dict[str, bool]] = {}  # to be sent, one message to each actor
        self._leases = itertools.count()
        self.newest: tuple[str, dict[str, float]] = "", {}  # line and rates of the newest step, see wire.Status
        self.refused = 0  # messages that could not be understood or did not belong here
        self._closing = False
        self._looked = 0.0  # when deadlines were last looked at
        self._crash: BaseException | None = None
        gc.freeze()  # the garbage of messages is collected often: that need not walk through every module each time
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self._thread.start()

    # -- the training thread's side ------------------------------------------------------------------------------

    def serve(
        self,
        work_queue: WorkQueue[Group],
        ask: Callable[[int], wire.Work],
        on_failed: Callable[[int, str], None],
        limits: Limits = UNLIMITED,
    ) -> None:
        """Begins to hand out ``work_queue``; ``ask(sequence)`` makes the work, ``on_failed`` learns what was given up.

        Both run on the server's thread under ``lock``. Answers beyond the ``limits`` are refused or cut.
        """
        with self.lock:
            for name, peer in self.peers.items():
                if self._queue is not None:
                    self._queue.drop(name)  # what is still out; served again, it is leased anew
                peer.holding.clear()
            self._queue, self._ask, self._on_failed, self._limits = work_queue, ask, on_failed, limits
        self._notify()

    def take(self, timeout_s: float) -> list[Group] | None:
        """The groups of the next step; None if they are not there yet, after waiting at most ``timeout_s``.

        Raises:
            FatalError: there will be none, as all were given up; or the server's thread has ended.
        """
        with self.lock:
            assert self._queue is not None
            taken = self._queue.take()
            if taken is None:
                self.lock.wait(timeout_s)
                taken = self._queue.take()
            self._check()
            if taken is None and not self._queue.remaining:
                raise FatalError("every question was given up, for the reasons logged above")
            return None if taken is None else [finished for _, finished in taken]

    def published(self, members: dict[str, Peer]) -> None:
        """The newest weights are with ``members``: they may lease, and the slots of the step are free."""
        with self.lock:
            for peer in members.values():
                peer.live = True  # one that came back under its old name meanwhile is another Peer
            if self._queue is not None:
                self._queue.published()
        self._notify()

    def members(self) -> dict[str, Peer]:
        """The actors that are there, live or waiting for weights, by name."""
        with self.lock:
            self._check()
            return dict(sorted(self.peers.items()))

    def newcomers(self) -> bool:
        with self.lock:
            return any(not peer.live for peer in self.peers.values())

    def quiet(self, timeout_s: float, check: Callable[[], None]) -> bool:
        """Waits until every group handed out is finished; False where actors come or go, or after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not self.newcomers():
            check()
            with self.lock:
                self._check()
                if self._queue is None or len(self._queue.untaken()) == len(self._queue.finished()):
                    return True
            time.sleep(_POLL_MS / 1000)
        return False

    def counts(self) -> dict[str, int]:
        """Groups that are finished, leased; so far given out again, of these for the loss of an actor, given up."""
        with self.lock:
            if (served := self._queue) is None:
                return {}
            so_far = {"retried": served.retried, "orphaned": served.orphaned, "failed": served.failed}
            return {"finished": len(served.finished()), "leased": served.leased(), **so_far}

    def eject(self, name: str, peer: Peer, reason: str) -> None:
        """Gives an actor up, tells it why, and leases its groups to others; not one that came back meanwhile."""
        with self.lock:
            if self.peers.get(name) is not peer:
                return
            self._forget(name)
        log.warning("giving up actor %s: %s", name, reason)
        self.send(name, wire.Eject(reason=reason))

    def send(self, name: str, message: wire.AnyMessage) -> None:
        self._outbox.put((name, message))
        self._notify()

    def close(self, *, over: bool = True) -> None:
        """Tells every actor that the run is over, if it is, and frees the address."""
        for name in list(self.peers) if over else []:
            self.send(name, wire.Stop(error=""))
        self._closing = True
        self._notify()
        self._thread.join(timeout=5)
        self._wake.close()
        self._context.destroy(linger=500)

    def _check(self) -> None:
        if self._crash is not None:
            raise FatalError(f"the learner's server stopped: {self._crash!r}") from self._crash

    def _notify(self) -> None:
        if threading.current_thread() is not self._thread:
            with self._waking, suppress(zmq.ZMQError):  # it looks by itself every _POLL_MS, or has ended
                self._wake.send(b"", zmq.DONTWAIT)

    # -- the server's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        try:
            while not self._closing or not self._outbox.empty():
                ready = dict(poller.poll(_POLL_MS))
                if self._woken in ready:
                    self._woken.recv()
                if self._socket in ready:
                    self._receive()
                with self.lock:
                    self._expire()
                    self._grant()
                    if self._queue is not None and self._queue.enough():
                        self.lock.notify_all()
                self._flush()
        except BaseException as error:  # whatever it is, the training thread must hear of it instead of waiting
            log.exception("server thread")
            with self.lock:
                self._crash = error
                self.lock.notify_all()
        finally:
            self._woken.close()
            self._socket.close(linger=500)

    def _receive(self) -> None:
        """What has arrived, some at a time; what cannot be understood is counted, logged and dropped."""
        for _ in range(_MESSAGES_A_TURN):
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                break
            try:
                if len(frames) != 2:
                    raise wire.WireError(f"{len(frames)} frames instead of 2")
                name, message = frames[0].bytes.decode(), wire.decode(frames[1].buffer)
            except (wire.WireError, UnicodeDecodeError) as error:
                self._refuse(frames[0].bytes.decode(errors="replace"), str(error))
                continue
            with self.lock:
                self._handle(name, message)
        for name, accepted in self._acks.items():
            self._outbox.put((name, wire.Ack(accepted=accepted)))
        self._acks.clear()

    def _refuse(self, name: str, reason: str) -> None:
        self.refused += 1
        if self.refused & (self.refused - 1) == 0:  # the first, second, fourth, …: noise must not fill the disk
            log.warning("refused a message of %s, the %dth: %s", name, self.refused, reason)

    def _flush(self) -> None:
        while not self._outbox.empty():
            name, message = self._outbox.get()
            self._socket.send_multipart([name.encode(), wire.encode(message)])

    def _handle(self, name: str, message: wire.AnyMessage) -> None:
        if isinstance(message, wire.Hello):
            self._hello(name, message)
            return
        if isinstance(message, wire.Health):
            self._outbox.put((name, self._status()))
            return
        peer = self.peers.get(name)
        if peer is None:
            if not isinstance(message, wire.Leave):  # one that was given up says so too, and comes back by itself
                self._outbox.put((name, wire.Unknown()))
            return
        peer.heard = time.monotonic()
        match message:
            case wire.Submit():
                self._finish(name, peer, message)
            case wire.Release():
                self._release(name, peer, message)
            case wire.Heartbeat():
                peer.slots = peer.slots if message.slots is None else message.slots
                peer.seconds, peer.gauges = message.seconds, message.gauges
                if self._queue is not None:
                    held = [peer.holding[id].sequence for id in message.holding if id in peer.holding]
                    self._queue.extend(name, held, peer.heard + self._lease_timeout_s)
                self._outbox.put((name, wire.Alive()))
            case wire.Joined() | wire.Synced():
                peer.replies.put(message)
            case wire.Leave():
                log.warning("actor %s leaves: %s", name, message.reason)
                self._forget(name)
            case _:
                self._refuse(name, f"a {message.kind} is not for the learner")

    def _hello(self, name: str, hello: wire.Hello) -> None:
        if hello.protocol != wire.PROTOCOL:
            reason = f"this learner speaks protocol {wire.PROTOCOL}, actor {name} speaks {hello.protocol}: update it"
            self._outbox.put((name, wire.Stop(error=reason)))
            return
        self._forget(name)
        self.peers[name] = Peer(
            engine_ranks=hello.engine_ranks, transport=hello.transport, drain_s=hello.drain_s, slots=hello.slots,
            heard=time.monotonic(),
        )  # fmt: skip
        self._outbox.put((name, wire.Welcome()))
        log.info("actor %s is here (%d ranks)", name, hello.engine_ranks)

    def _status(self) -> wire.Status:
        actors = {
            name: wire.ActorStatus(
                live=peer.live, groups=len(peer.holding), slots=peer.slots, silent_s=time.monotonic() - peer.heard,
                seconds=peer.seconds, gauges=peer.gauges,
            )
            for name, peer in sorted(self.peers.items())
        }  # fmt: skip
        return wire.Status(line=self.newest[0], rates=self.newest[1], actors=actors, counts=self.counts())

    def _finish(self, name: str, peer: Peer, message: wire.Submit) -> None:
        work = peer.holding.pop(message.id, None)
        accepted = False
        if work is not None and self._queue is not None:
            problem = admission.problem(work, message.rollouts, self._limits)
            if problem:
                log.warning("group %s of %s is malformed: %s", work.id, name, problem)
                self._give_back(name, work, problem)
            else:
                rollouts, note = admission.cut(message.rollouts, self._limits)
                finished = Group(work=work, actor=name, rollouts=rollouts, note=note, timing=message.timing)
                accepted = self._queue.submit(work.sequence, name, finished)
        self._acks.setdefault(name, {})[message.id] = accepted

    def _release(self, name: str, peer: Peer, message: wire.Release) -> None:
        work = peer.holding.pop(message.id, None)
        if work is not None:
            log.warning("actor %s hands back %s: %s", name, message.id, message.reason)
            self._give_back(name, work, message.reason)
        self._acks.setdefault(name, {})[message.id] = work is not None

    def _give_back(self, name: str, work: wire.Work, reason: str) -> None:
        assert self._queue is not None
        if self._queue.release(work.sequence, name):
            log.error("group %s failed for good: %s", work.id, reason)
            self._on_failed(work.sequence, reason)

    def _forget(self, name: str) -> None:
        if self.peers.pop(name, None) is not None and self._queue is not None:
            self._queue.drop(name)

    def _expire(self) -> None:
        now = time.monotonic()
        if now < self._looked + _POLL_MS / 1000:
            return
        self._looked = now
        for name, peer in list(self.peers.items()):
            if peer.heard < now - self._lease_timeout_s:
                log.warning("actor %s was silent for %.0f s: its groups go to the others", name, now - peer.heard)
                self._forget(name)
        for sequence, name in self._queue.expired(now) if self._queue is not None else []:
            log.warning("the lease of group %d by %s ran out", sequence, name)
            holding = self.peers[name].holding
            work = next(work for work in holding.values() if work.sequence == sequence)
            del holding[work.id]
            self._give_back(name, work, "its lease ran out")

    def _grant(self) -> None:
        """Leases to those who have room, to the one with the fewest groups in hand first."""
        if self._queue is None or self._ask is None:
            return
        granted: dict[str, list[wire.Work]] = {}
        asking = [(len(p.holding), n) for n, p in self.peers.items() if p.live and len(p.holding) < p.slots]
        heapq.heapify(asking)
        while asking:
            held, name = asking[0]
            sequence = self._queue.lease(name, time.monotonic() + self._lease_timeout_s)
            if sequence is None:
                break
            work = self._ask(sequence)
            work = work.model_copy(update={"id": f"{next(self._leases)}:{work.id}"})
            peer = self.peers[name]
            peer.holding[work.id] = work
            granted.setdefault(name, []).append(work)
            if held + 1 < peer.slots:
                heapq.heapreplace(asking, (held + 1, name))
            else:
                heapq.heappop(asking)
        for name, works in granted.items():
            self._outbox.put((name, wire.Leased(work=works)))
