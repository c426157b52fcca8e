"""What the session does when the learner is unknown to it, moves, or falls silent; with a fake connection."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actor import session
from actor.engine.client import EngineError
from actor.session import RunEnded, Session
from common import wire
from common.process import FatalError
from tests.support.groups import question

_PATIENCE_S = 30


class FakeRoute:
    """A connection whose other end is the test."""

    def __init__(self) -> None:
        self.place = SimpleNamespace(address="ipc://learner")
        self.socket = self
        self.sent: list[wire.AnyMessage] = []
        self.arriving: asyncio.Queue[bytes] = asyncio.Queue()
        self.moved = False

    async def send(self, message: wire.AnyMessage) -> None:
        self.sent.append(message)

    async def recv(self) -> bytes:
        return await self.arriving.get()

    def follow(self) -> bool:
        moved, self.moved = self.moved, False
        return moved

    def put(self, *messages: wire.AnyMessage) -> None:
        for message in messages:
            self.arriving.put_nowait(wire.encode(message))

    async def until_sent(self, kind: type[wire.AnyMessage], count: int) -> None:
        async with asyncio.timeout(_PATIENCE_S):
            while sum(isinstance(message, kind) for message in self.sent) < count:
                await asyncio.sleep(0.001)


class FakeActor:
    """What a session belongs to."""

    def __init__(self) -> None:
        self.work: list[str] = []
        self.orders: list[Any] = []
        self.route = FakeRoute()
        self.session = Session(cast(Any, self.route), self, lease_timeout_s=0.05, silence_timeout_s=0.5)

    def make_hello(self) -> wire.Hello:
        return wire.Hello(protocol=wire.PROTOCOL, engine_ranks=1, slots=1, transport="group")

    def make_heartbeat(self) -> wire.Heartbeat:
        return wire.Heartbeat(holding=self.work, seconds={})

    def take_work(self, work: wire.Work) -> None:
        self.work.append(work.id)

    def drop_work(self) -> int:
        dropped, self.work = len(self.work), []
        return dropped

    def take_order(self, order: wire.Join | wire.Pause | wire.Receive | wire.LoadAdapter) -> None:
        self.orders.append(order)


def leased(*ids: str) -> wire.Leased:
    work = [
        wire.Work(
            id=lease_id, question=question(), languages=["en"], propensities=[1.0], router_version=0,
            policy_version=0, greedy=False,
        )
        for lease_id in ids
    ]  # fmt: skip
    return wire.Leased(work=work)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(session, "_SILENCE_S", 0.02)


def test_an_unknown_actor_drops_its_groups_and_says_hello_again() -> None:
    async def run() -> FakeActor:
        actor = FakeActor()
        actor.route.put(leased("0:train-0", "1:train-1"), wire.Unknown(), leased("2:train-2"), wire.Stop(error=""))
        with pytest.raises(RunEnded):
            await actor.session.receive()
        return actor

    actor = asyncio.run(run())
    assert actor.work == ["2:train-2"]
    assert [message.kind for message in actor.route.sent] == ["hello", "hello"]


def test_orders_go_to_the_owner_and_what_is_no_message_is_dropped() -> None:
    async def run() -> FakeActor:
        actor = FakeActor()
        actor.route.arriving.put_nowait(b"nonsense")
        actor.route.put(wire.Pause(version=1, timeout_s=1.0), wire.Health(), wire.Eject(reason="too slow"))
        with pytest.raises(EngineError, match="too slow"):
            await actor.session.receive()
        return actor

    assert [order.version for order in asyncio.run(run()).orders] == [1]


def test_a_refusal_is_told_apart_from_the_end_of_the_run() -> None:
    async def run() -> None:
        actor = FakeActor()
        actor.route.put(wire.Stop(error="protocol 3"))
        await actor.session.receive()

    with pytest.raises(RunEnded) as end:
        asyncio.run(run())
    assert end.value.error == "protocol 3"


def test_a_group_is_sent_until_it_is_acknowledged() -> None:
    async def run() -> FakeActor:
        actor = FakeActor()
        receiving = asyncio.create_task(actor.session.receive())
        delivering = asyncio.create_task(actor.session.deliver(wire.Release(id="0:train-0", reason="")))
        await actor.route.until_sent(wire.Release, 2)
        actor.route.put(wire.Ack(accepted={"0:train-0": True, "another": True}))
        await asyncio.wait_for(delivering, _PATIENCE_S)
        receiving.cancel()
        return actor

    assert len(asyncio.run(run()).route.sent) >= 3


def test_a_learner_that_moved_is_told_hello_and_one_that_stays_silent_is_given_up() -> None:
    async def run() -> None:
        actor = FakeActor()
        actor.route.moved = True
        beating = asyncio.create_task(actor.session.send_heartbeats())
        await actor.route.until_sent(wire.Hello, 2)  # one as it has moved, one after the lease timeout
        with pytest.raises(FatalError, match="ipc://learner has sent nothing for"):
            await asyncio.wait_for(beating, _PATIENCE_S)
        assert any(isinstance(message, wire.Heartbeat) for message in actor.route.sent)

    asyncio.run(run())
