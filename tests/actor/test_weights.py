"""The states of a weight update, with an engine that only writes down what it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

import numpy as np
import pytest

from actor import weights
from actor.engine.client import Engine
from actor.engine.errors import EngineError
from actor.proof import WeightState
from actor.times import ActorTimes
from actor.weights import WeightUpdates
from common import wire
from common.config import SyncConfig

PROBE = wire.Probe(ids=np.zeros(2, np.int32), logprobs=np.zeros(1, np.float32), tolerance=1.0)
_PATIENCE_S = 30
_LATER_S = 0.5


class FakeEngine(Engine):
    """Answers every call at once, except the routes in ``refused``, and a probe while ``probed`` is not set."""

    def __init__(self, probe_logprob: float = 0.0) -> None:
        super().__init__("http://nowhere", cast(Any, None), 1.0, "retract")
        self.routes: list[str] = []
        self.refused: set[str] = set()
        self.silent: set[str] = set()  # routes that do not answer in time
        self.probed = asyncio.Event()
        self.probe_answer: dict[str, Any] = {"meta_info": {"input_token_logprobs": [[None], [probe_logprob]]}}

    async def call(self, route: str, body: dict[str, Any] | None, timeout_s: float, *, missing_ok: bool = False) -> Any:
        self.routes.append(route)
        if route in self.silent:
            await asyncio.sleep(timeout_s)
            raise EngineError(f"{route}: TimeoutError")
        if route in self.refused:
            raise EngineError(f"{route}: refused")
        if route == "/generate":
            await self.probed.wait()
            return self.probe_answer
        return {"tp_size": 1} if route == "/server_info" else {}

    async def read_checkpoint_shapes(self, timeout_s: float) -> dict[str, list[int]]:
        return {}


class Learner:
    """Gives orders to the weight updates of an engine, and receives their messages."""

    def __init__(self, engine: FakeEngine, sync_timeout_s: float = 60.0) -> None:
        self.lives = wire.Lives("actor", "learner")
        self.sent: list[wire.Joined | wire.Synced] = []
        self.updates = WeightUpdates(
            engine, self._receive, ActorTimes(), SyncConfig(timeout_s=sync_timeout_s), 1.0, outlived=True
        )

    async def _receive(self, message: wire.Joined | wire.Synced) -> None:
        self.sent.append(message)

    def pause(self, version: int, timeout_s: float = _PATIENCE_S) -> None:
        self.updates.take_order(wire.Pause(version=version, timeout_s=timeout_s).of(self.lives))

    def publish(self, version: int) -> None:
        order = wire.Receive(group="", path="/weights", version=version, buckets=[], probe=PROBE, timeout_s=1.0)
        self.updates.take_order(order.of(self.lives))

    async def reach(self, state: WeightState) -> None:
        async with asyncio.timeout(_PATIENCE_S):
            while self.updates.state is not state:
                await asyncio.sleep(0)

    @property
    def stages(self) -> list[tuple[int, str]]:
        return [(message.version, message.stage) for message in self.sent if isinstance(message, wire.Synced)]

    def may_send(self, *versions: int) -> bool | None:
        """Whether answers with tokens of these versions may be sent; None if that is not known yet."""
        waiting = self.updates.wait_until_proved(set(versions))
        try:
            waiting.send(None)
        except StopIteration as end:
            return bool(end.value)
        finally:
            waiting.close()
        return None


def play(
    engine: Callable[[], FakeEngine],
    scene: Callable[[FakeEngine, Learner], Awaitable[None]],
    sync_timeout_s: float = 60.0,
) -> None:
    """Plays a scene beside the running updates, whose error it raises."""

    async def run() -> None:
        made = engine()
        learner = Learner(made, sync_timeout_s)
        running = asyncio.create_task(learner.updates.run())
        await scene(made, learner)
        if learner.updates.state is WeightState.FAILED:
            await running
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    asyncio.run(run())


def test_answers_are_held_back_until_the_weights_that_made_them_are_proved() -> None:
    async def scene(engine: FakeEngine, learner: Learner) -> None:
        assert learner.updates.state is WeightState.STARTED and learner.may_send(0) is False
        learner.pause(1)
        await learner.reach(WeightState.PAUSED)
        learner.publish(1)
        await learner.reach(WeightState.PROVING)
        assert learner.may_send(1) is None and learner.stages == [(1, "ready"), (1, "done")]
        assert {message.lives for message in learner.sent} == {learner.lives}, "they answer orders of these lives"
        engine.probed.set()
        await learner.reach(WeightState.PROVED)
        assert learner.may_send(1) and learner.may_send(1, 2) is False
        assert (learner.updates.proved_updates, learner.updates.probe_error) == (1, 0.0)
        learner.pause(2)
        await learner.reach(WeightState.PAUSED)
        assert learner.may_send(1), "a probe has proved the weights that made it, whatever the engine does now"
        learner.publish(1)  # of another update, which must be passed over
        learner.publish(2)
        await learner.reach(WeightState.PROVED)
        assert learner.may_send(1, 2)

    play(FakeEngine, scene)


def test_a_pause_waits_for_the_proof_and_then_cuts_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 1 is proved just in time. Version 2 is not, so answers with tokens of it can never be sent."""

    async def scene(engine: FakeEngine, learner: Learner) -> None:
        for version in (1, 2, 3):
            monkeypatch.setattr(weights, "_PROOF_SHARE", 1e-4 if version == 3 else 1.0)
            learner.pause(version)
            if version == 2:
                await asyncio.sleep(0.01)
                assert learner.updates.state is WeightState.PROVING and learner.stages[-1] == (1, "done")
                engine.probed.set()
            await learner.reach(WeightState.PAUSED)
            engine.probed.clear()
            learner.publish(version)
            await learner.reach(WeightState.PROVING)
        assert learner.may_send(1) and learner.may_send(2) is False and learner.may_send(1, 3) is None
        engine.probed.set()
        await learner.reach(WeightState.PROVED)
        assert engine.version == 3 and learner.updates.proved_updates == 2
        assert learner.may_send(1, 3) and learner.may_send(2, 3) is False

    play(FakeEngine, scene)


def test_the_pause_that_is_reported_begins_when_the_engine_stops() -> None:
    """Not with the order: until the proof before it has ended, and while answers end, the engine generates."""

    async def scene(engine: FakeEngine, learner: Learner) -> None:
        learner.pause(1)
        learner.publish(1)
        await learner.reach(WeightState.PROVING)
        engine.pause_mode, engine._running = "drain", 1
        learner.pause(2)
        learner.publish(2)
        states = list[WeightState]()
        await asyncio.sleep(_LATER_S)
        states.append(learner.updates.state)
        engine.probed.set()
        await learner.reach(WeightState.PAUSING)
        await asyncio.sleep(_LATER_S)
        states.append(learner.updates.state)
        assert states == [WeightState.PROVING, WeightState.PAUSING]
        engine._running = 0
        await learner.reach(WeightState.PROVED)
        pauses = [message.pause_s for message in learner.sent if isinstance(message, wire.Synced)]
        assert len(pauses) == 4 and pauses[3] < _LATER_S, pauses

    play(FakeEngine, scene)


def test_a_proof_that_was_cut_off_is_repeated_when_no_weights_follow() -> None:
    async def scene(engine: FakeEngine, learner: Learner) -> None:
        learner.pause(1)
        learner.publish(1)
        await learner.reach(WeightState.PROVING)
        for _ in range(2):
            learner.pause(2, timeout_s=0.01)
            await learner.reach(WeightState.PAUSED)
            await learner.reach(WeightState.PROVING)
            assert learner.may_send(1) is None
        engine.probed.set()
        await learner.reach(WeightState.PROVED)
        assert learner.may_send(1) and learner.updates.proved_updates == 1

    play(FakeEngine, scene, sync_timeout_s=0.1)


def test_weights_for_another_life_are_not_those_that_were_announced() -> None:
    async def scene(engine: FakeEngine, learner: Learner) -> None:
        engine.probed.set()
        learner.pause(1)
        ours, learner.lives = learner.lives, wire.Lives("actor", "the learner before")
        learner.publish(1)
        learner.lives = ours
        await learner.reach(WeightState.PAUSED)
        await asyncio.sleep(0.01)
        assert learner.updates.state is WeightState.PAUSED and engine.version == 0
        learner.publish(1)
        await learner.reach(WeightState.PROVED)

    play(FakeEngine, scene)


def test_the_engine_generates_on_with_its_weights_when_no_new_ones_come() -> None:
    async def scene(engine: FakeEngine, learner: Learner) -> None:
        engine.probed.set()
        learner.pause(1)
        learner.publish(1)
        await learner.reach(WeightState.PROVED)
        learner.pause(2, timeout_s=0.01)
        await learner.reach(WeightState.PAUSED)
        await learner.reach(WeightState.PROVED)
        assert engine.routes[-1] == "/continue_generation" and engine.version == 1

    play(FakeEngine, scene)


def test_a_pause_that_comes_instead_of_weights_is_carried_out_next() -> None:
    async def scene(engine: FakeEngine, learner: Learner) -> None:
        engine.probed.set()
        learner.pause(5)
        learner.pause(1)
        learner.publish(7)  # of an update that nobody announced, which must be passed over
        learner.publish(1)
        await learner.reach(WeightState.PROVED)
        while engine.version != 1:
            await asyncio.sleep(0)
        await learner.reach(WeightState.PROVED)
        assert learner.stages == [(5, "ready"), (1, "ready"), (1, "done")]

    play(FakeEngine, scene)


def test_an_engine_that_fails_an_update_is_resumed_and_given_up() -> None:
    async def scene(engine: FakeEngine, learner: Learner) -> None:
        engine.refused = {"/update_weights_from_disk"}
        learner.pause(1)
        learner.publish(1)
        await learner.reach(WeightState.FAILED)
        assert engine.routes[-2:] == ["/end_weight_update", "/continue_generation"]
        assert learner.may_send(1) is False

    with pytest.raises(EngineError, match="update_weights_from_disk: refused"):
        play(FakeEngine, scene)


def test_an_engine_that_is_paused_when_the_life_is_cancelled_goes_on() -> None:
    async def run() -> None:
        engine = FakeEngine()
        learner = Learner(engine)
        running = asyncio.create_task(learner.updates.run())
        learner.pause(1)
        await learner.reach(WeightState.PAUSED)
        engine.silent |= {"/end_weight_update", "/server_info"}  # as long as it still takes weights
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert engine.routes[-1] == "/continue_generation"

    asyncio.run(run())


@pytest.mark.parametrize("logprob", [-2.0, float("nan")])
def test_an_engine_whose_probe_is_too_far_from_the_learners_is_given_up(logprob: float) -> None:
    async def scene(engine: FakeEngine, learner: Learner) -> None:
        engine.probed.set()
        learner.pause(1)
        learner.publish(1)
        await learner.reach(WeightState.FAILED)
        assert learner.may_send(1) is False

    with pytest.raises(EngineError, match=r"with the weights of version 1 .* nats from the learner's"):
        play(lambda: FakeEngine(logprob), scene)


def test_an_engine_whose_probe_cannot_be_read_is_given_up_instead_of_waited_for() -> None:
    async def scene(engine: FakeEngine, learner: Learner) -> None:
        engine.probe_answer = {"meta_info": {}}
        engine.probed.set()
        learner.pause(1)
        learner.publish(1)
        await learner.reach(WeightState.FAILED)

    with pytest.raises(EngineError, match=r"probe.*input_token_logprobs"):
        play(FakeEngine, scene)
