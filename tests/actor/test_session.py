"""What the session does when the learner is unknown to it, moves, or falls silent; with a fake connection."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import zmq.asyncio

from actor import session
from actor.engine.errors import EngineError
from actor.identity import is_gone, own_process
from actor.session import RunEnded, Session
from common import wire
from common.config import RunConfig
from common.net import rendezvous
from common.net.rendezvous import Place, Route
from common.process import FatalError
from tests.support.groups import question

_PATIENCE_S = 30


class FakeRoute:
    """A connection whose other end is the test."""

    def __init__(self) -> None:
        self.place = Place(address="ipc://learner")
        self.socket = self
        self.sent: list[wire.AnyMessage] = []
        self.arriving: asyncio.Queue[bytes] = asyncio.Queue()
        self.moved = self.over = False  # what the learner's file says

    async def send(self, message: wire.AnyMessage) -> None:
        self.sent.append(message)

    async def recv_multipart(self) -> list[bytes]:
        return [await self.arriving.get()]

    def look(self) -> Place:
        return self.place.model_copy(update={"over": self.over, "life": self.place.life + self.moved})

    def follow(self, place: Place | None) -> bool:
        if place is None or place.over or place == self.place:
            return False
        self.place, self.moved = place, False
        return True

    def put(self, *messages: wire.Message) -> None:
        for message in messages:
            self.arriving.put_nowait(wire.encode(message))

    def of_kind(self, kind: type[wire.Message]) -> list[Any]:
        return [message for message in self.sent if isinstance(message, kind)]

    async def until_sent(self, kind: type[wire.Message], count: int) -> Any:
        """The newest message of the kind, once there are ``count``."""
        async with asyncio.timeout(_PATIENCE_S):
            while len(self.of_kind(kind)) < count:
                await asyncio.sleep(0.001)
        return self.of_kind(kind)[-1]


OWN = wire.ActorProcess(host="here", pid=os.getpid(), started_s=1.0, machine="this one")


class FakeActor:
    """What a session belongs to.

    Args:
        engine: its engine is there from the beginning.
        silence_timeout_s, lease_timeout_s: of the session. A busy machine may take the time of most tests away for
            longer than a test of them can wait.
    """

    def __init__(self, *, engine: bool = True, silence_timeout_s: float = 1000.0, lease_timeout_s: float = 0.5) -> None:
        self.work: list[str] = []
        self.orders: list[Any] = []
        self.route = FakeRoute()
        self.session = Session(
            cast(Any, self.route),
            "a",
            OWN,
            settings={},
            lease_timeout_s=lease_timeout_s,
            silence_timeout_s=silence_timeout_s,
        )
        self.engine = engine
        self.tasks: list[asyncio.Task[Any]] = []

    def make_hello(self) -> wire.Hello:
        return wire.Hello(protocol=wire.PROTOCOL, engine_ranks=1, slots=1, transport="group")

    def make_heartbeat(self) -> wire.Heartbeat:
        return wire.Heartbeat(holding=self.work, seconds={})

    def take_work(self, work: wire.Work, lives: wire.Lives) -> None:
        assert lives == self.lives
        self.work.append(work.id)

    def drop_work(self) -> int:
        dropped, self.work = len(self.work), []
        return dropped

    def take_order(self, order: wire.Join | wire.Pause | wire.Receive | wire.LoadAdapter) -> None:
        self.orders.append(order)

    @property
    def lives(self) -> wire.Lives:
        return self.session._lives

    async def begin(self) -> asyncio.Task[Any]:
        """Begins to receive, and says hello. Returns the task that receives."""
        if self.engine:
            await self.session.begin(self)
        self.tasks.append(asyncio.create_task(self.session.receive()))
        await self.route.until_sent(wire.Hello, 1)
        return self.tasks[-1]

    async def be_welcome(self, learner: str = "one") -> asyncio.Task[Any]:
        """Begins, and is welcomed by this life of the learner."""
        receiving = await self.begin()
        await self.welcome(learner)
        return receiving

    async def welcome(self, learner: str) -> None:
        self.route.put(wire.Welcome().of(wire.Lives(self.lives.actor, learner)))
        await self.until(lambda: bool(self.lives.learner))

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(_PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.001)


def leased(*ids: str) -> wire.Leased:
    work = [
        wire.Work(
            id=lease_id, question=question(), languages=["en"], propensities=[1.0], router_version=0,
            policy_version=0, greedy=False,
        )
        for lease_id in ids
    ]  # fmt: skip
    return wire.Leased(work=work)


def play(scene: Callable[[FakeActor], Awaitable[None]], **options: Any) -> FakeActor:
    """Plays a scene with an actor, whose tasks end with it."""

    async def run() -> FakeActor:
        actor = FakeActor(**options)
        await asyncio.wait_for(scene(actor), _PATIENCE_S)
        for task in actor.tasks:
            task.cancel()
        await asyncio.gather(*actor.tasks, return_exceptions=True)
        return actor

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(session, "_SILENCE_S", 0.02)


def test_an_unknown_actor_drops_its_groups_and_says_hello_as_a_new_life() -> None:
    async def scene(actor: FakeActor) -> None:
        receiving = await actor.be_welcome("one")
        before = actor.lives
        actor.route.put(leased("0:train-0", "1:train-1").of(before))
        for _ in range(3):  # as many as the messages that were under way; they are one reason to start over
            actor.route.put(wire.Unknown().of(wire.Lives(before.actor, "two")))
        await actor.route.until_sent(wire.Hello, 2)
        await actor.welcome("two")
        actor.route.put(leased("2:train-2").of(actor.lives), wire.Stop(error="").of(actor.lives))
        with pytest.raises(RunEnded):
            await receiving
        assert actor.work == ["2:train-2"] and actor.lives.actor != before.actor and actor.session.dropped == 2

    actor = play(scene)
    assert [message.kind for message in actor.route.sent] == ["hello", "hello"]


def test_what_belongs_to_other_lives_is_dropped_and_counted() -> None:
    """An order to end the engine that was meant for the one before, most of all."""

    async def scene(actor: FakeActor) -> None:
        receiving = await actor.be_welcome()
        ours = actor.lives
        for lives in (wire.Lives("an older one", "one"), wire.Lives(ours.actor, "another"), wire.Lives("", "")):
            actor.route.put(
                wire.Eject(reason="too slow").of(lives), leased("0:train-0").of(lives), wire.Alive().of(lives),
                wire.Pause(version=1, timeout_s=1.0).of(lives), wire.Ack(accepted={}).of(lives),
                wire.Stop(error="refused").of(lives._replace(actor="an older one")),
            )  # fmt: skip
        actor.route.put(wire.Stop(error="").of(ours._replace(learner="another")))  # its run is over, not this one
        await actor.until(lambda: actor.session.dropped == 19)
        assert not receiving.done() and not actor.work and not actor.orders
        actor.route.put(wire.Eject(reason="too slow").of(ours))
        with pytest.raises(EngineError, match="too slow"):
            await receiving

    play(scene)


def test_orders_go_to_the_owner_and_what_is_no_message_is_dropped() -> None:
    async def scene(actor: FakeActor) -> None:
        receiving = await actor.be_welcome()
        actor.route.arriving.put_nowait(b"nonsense")
        pause = wire.Pause(version=1, timeout_s=1.0).of(actor.lives)
        actor.route.put(pause, wire.Health(), wire.Eject(reason="too slow").of(actor.lives))
        with pytest.raises(EngineError, match="too slow"):
            await receiving
        assert [(order.version, order.lives) for order in actor.orders] == [(1, actor.lives)]

    play(scene)


@pytest.mark.parametrize("knows_lives", [True, False])
def test_a_refusal_is_told_apart_from_the_end_of_the_run(knows_lives: bool) -> None:
    """Also that of a learner with another protocol, which does not say whom it refuses."""

    async def scene(actor: FakeActor) -> None:
        receiving = await actor.begin()
        lives = wire.Lives(actor.lives.actor, "one") if knows_lives else wire.Lives("", "")
        actor.route.put(wire.Stop(error="protocol 3").of(lives))
        with pytest.raises(RunEnded) as end:
            await receiving
        assert end.value.error == "protocol 3"

    play(scene)


def test_a_group_is_sent_until_it_is_acknowledged() -> None:
    async def scene(actor: FakeActor) -> None:
        await actor.be_welcome()
        release = wire.Release(id="0:train-0", reason="").of(actor.lives)
        delivering = asyncio.create_task(actor.session.deliver(release))
        await actor.route.until_sent(wire.Release, 1)
        actor.route.put(wire.Alive().of(actor.lives))
        await actor.route.until_sent(wire.Release, 2)
        assert not delivering.done()
        actor.route.put(wire.Ack(accepted={"0:train-0": True, "another": True}).of(actor.lives))
        await delivering

    play(scene)


def test_a_hello_is_repeated_until_it_is_answered_and_heartbeats_follow() -> None:
    async def scene(actor: FakeActor) -> None:
        await actor.begin()
        actor.tasks.append(asyncio.create_task(actor.session.send_heartbeats()))
        await actor.route.until_sent(wire.Hello, 4)
        assert len({hello.actor_life for hello in actor.route.of_kind(wire.Hello)}) == 1, "the same hello"
        assert not actor.route.of_kind(wire.Heartbeat)
        await actor.welcome("one")
        beat = await actor.route.until_sent(wire.Heartbeat, 1)
        assert beat.lives == actor.lives and actor.lives.learner == "one"

    play(scene, lease_timeout_s=1000.0)


def test_a_learner_that_moved_is_told_hello_and_one_that_stays_silent_is_given_up() -> None:
    async def scene(actor: FakeActor) -> None:
        await actor.be_welcome()
        first = actor.lives.actor
        actor.route.moved = True
        beating = asyncio.create_task(actor.session.send_heartbeats())
        moved = await actor.route.until_sent(wire.Hello, 2)
        assert moved.actor_life != first
        with pytest.raises(FatalError, match="ipc://learner has sent nothing for"):
            await beating

    play(scene, silence_timeout_s=1.0)


def test_an_actor_without_an_engine_hears_of_the_end_of_the_run() -> None:
    async def scene(actor: FakeActor) -> None:
        receiving = await actor.be_welcome()
        assert actor.route.of_kind(wire.Hello)[-1].engine_ranks == 0
        actor.tasks.append(asyncio.create_task(actor.session.send_heartbeats()))
        assert (await actor.route.until_sent(wire.Heartbeat, 1)).holding == []
        actor.route.put(wire.Stop(error="").of(actor.lives))
        with pytest.raises(RunEnded):
            await receiving

    play(scene, engine=False)


def test_an_engine_that_becomes_ready_begins_a_new_life() -> None:
    async def scene(actor: FakeActor) -> None:
        await actor.be_welcome()
        await actor.session.begin(actor)
        hello = actor.route.of_kind(wire.Hello)[-1]
        assert hello.engine_ranks == 1 and hello.actor_life != actor.route.of_kind(wire.Hello)[0].actor_life

    play(scene, engine=False)


@pytest.mark.parametrize("before", [False, True])
def test_a_silent_learner_whose_run_is_over_is_not_waited_for(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_OVER_S", 0.2 if before else 1000.0)

    async def scene(actor: FakeActor) -> None:
        actor.route.place = Place(address="ipc://learner", over=before)
        actor.session = Session(
            cast(Any, actor.route), "a", OWN, settings={}, lease_timeout_s=0.05, silence_timeout_s=1000
        )
        await actor.begin()
        actor.route.over = True
        with pytest.raises(RunEnded):
            await actor.session.send_heartbeats()

    play(scene)


def test_time_in_which_the_actor_itself_stood_still_is_no_silence_of_the_learner() -> None:
    async def scene(actor: FakeActor) -> None:
        await actor.be_welcome()
        actor.route.put(leased("1").of(actor.lives))
        await actor.until(lambda: actor.work)
        lives = actor.lives
        actor.tasks.append(asyncio.create_task(actor.session.send_heartbeats()))
        beats = len(actor.route.of_kind(wire.Heartbeat))
        await actor.route.until_sent(wire.Heartbeat, beats + 1)
        time.sleep(3)  # as if the process were stopped
        beats = len(actor.route.of_kind(wire.Heartbeat))
        await actor.route.until_sent(wire.Heartbeat, beats + 1)
        assert actor.lives == lives and actor.work == ["1"]
        with pytest.raises(FatalError, match="has sent nothing for"):  # it still notices that the learner is silent
            await actor.tasks[-1]

    play(scene, silence_timeout_s=1.5)


def test_a_learner_that_was_silent_for_a_while_gets_the_groups_that_it_has_leased() -> None:
    """It may have been stopped, and knows the actor as before; one that has forgotten it says so."""

    async def scene(actor: FakeActor) -> None:
        await actor.be_welcome()
        actor.route.put(leased("1").of(actor.lives))
        await actor.until(lambda: actor.work)
        lives = actor.lives
        actor.tasks.append(asyncio.create_task(actor.session.send_heartbeats()))
        await asyncio.sleep(0.5)  # ten times the lease timeout
        delivering = asyncio.create_task(actor.session.deliver(wire.Submit(id="1", rollouts=[]).of(lives)))
        await asyncio.sleep(0.5)
        assert len(actor.route.of_kind(wire.Submit)) == 1, "copies do not pile up in the connection"
        actor.route.put(wire.Alive().of(lives))  # it goes on, but the group was lost on the way
        await actor.route.until_sent(wire.Submit, 2)
        actor.route.put(wire.Alive().of(lives), wire.Ack(accepted={"1": True}).of(lives))
        await delivering
        assert actor.lives == lives and actor.work == ["1"]
        actor.route.put(wire.Unknown().of(lives))
        await actor.until(lambda: not actor.work)

    play(scene, lease_timeout_s=0.05)


def test_a_rendezvous_whose_file_system_hangs_holds_nothing_up(tmp_path: Path) -> None:
    """A pipe in the place of the file: opening it blocks until somebody writes."""
    run = RunConfig(dir=Path("runs/one"), rendezvous=tmp_path)
    rendezvous.announce(run, "learner", f"ipc://{tmp_path}/queue")
    file = tmp_path / "learner.json"
    told = file.read_text()
    route = Route(run, "learner", "", 1)

    async def listen() -> None:
        file.unlink()
        os.mkfifo(file)
        context = zmq.asyncio.Context()
        route.connect(context)
        learner = Session(route, "a", OWN, settings={}, lease_timeout_s=1000, silence_timeout_s=1000)
        ending = asyncio.create_task(learner.send_heartbeats())
        longest_s, before = 0.0, asyncio.get_running_loop().time()
        for _ in range(50):
            await asyncio.sleep(0.01)
            now = asyncio.get_running_loop().time()
            longest_s, before = max(longest_s, now - before), now
        assert longest_s < 3 and not ending.done(), "the loop goes on"
        assert sum(thread.name == "a call that may block" for thread in threading.enumerate()) == 1, "one hangs"
        file.replace(tmp_path / "pipe")
        file.write_text(told.replace('"over":false', '"over":true'))
        (tmp_path / "pipe").write_text(told)  # which frees the thread
        with pytest.raises(RunEnded):
            await asyncio.wait_for(ending, _PATIENCE_S)
        context.destroy(linger=0)

    asyncio.run(listen())


def test_a_name_is_waited_for_and_the_learner_told_for_how_long() -> None:
    async def scene(actor: FakeActor) -> None:
        receiving = await actor.begin()
        actor.tasks.append(asyncio.create_task(actor.session.send_heartbeats()))
        holder = wire.ActorProcess(host="elsewhere", pid=7, started_s=2.0, machine="another one")
        lives = wire.Lives(actor.lives.actor, "one")
        actor.route.put(wire.Taken(holder=holder, holder_life="theirs", silent_s=1.0).of(lives))
        await actor.until(lambda: actor.route.of_kind(wire.Hello)[-1].waited_s > 0.05)
        hello = actor.route.of_kind(wire.Hello)[-1]
        assert hello.replaces == "" and hello.lives == wire.Lives(lives.actor, ""), "nobody knows whether it is gone"
        actor.route.put(wire.Stop(error="the name is held by 7").of(lives))
        with pytest.raises(RunEnded, match="held by 7"):
            await receiving

    play(scene)


def test_the_name_of_a_process_that_is_gone_is_taken_over_at_once() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()

    async def scene(actor: FakeActor) -> None:
        await actor.begin()
        holder = wire.ActorProcess(host="here", pid=gone.pid, started_s=2.0, machine=OWN.machine)
        taken = wire.Taken(holder=holder, holder_life="theirs", silent_s=1.0)
        actor.route.put(taken.of(wire.Lives(actor.lives.actor, "one")))
        assert (await actor.route.until_sent(wire.Hello, 2)).replaces == "theirs"

    play(scene)


def test_a_process_knows_itself_and_what_is_not_there() -> None:
    own = own_process()
    assert own.pid == os.getpid() and own.machine
    assert not is_gone(own, own), "it is here"
    assert is_gone(own.model_copy({"started_s": own.started_s - 60}), own), "another process has its number now"
    assert not is_gone(own.model_copy({"machine": "elsewhere", "pid": 1 << 30}), own), "nobody knows"


@pytest.mark.parametrize("jump_s", [-7200.0, 7200.0])
def test_a_process_knows_another_after_the_machines_clock_was_set(
    jump_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, own = psutil.Process(os.getppid()), own_process()
    started_s = other.create_time() - psutil.boot_time()
    held = wire.ActorProcess(host=own.host, pid=other.pid, started_s=started_s, machine=own.machine)
    real = psutil._pslinux.boot_time  # setting the clock moves what the kernel says of the boot
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: real() + jump_s)
    assert abs(psutil.Process(other.pid).create_time() - other.create_time() - jump_s) < 1
    assert not is_gone(held, own_process()) and not is_gone(own, own_process())
