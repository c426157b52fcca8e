"""A group in the actor, when something fails: each stage has its own attempts, and every lease ends with a message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import numpy as np
import pytest

from actor.engine.errors import EngineError, EngineLost, EngineReplaced, RequestRefused
from actor.engine.generation import Generation
from actor.groups import PromptGroups
from actor.scoring import ScoringError
from actor.times import ActorTimes
from common import wire
from common.config import load
from common.tokenizer import load_tokenizer
from tests.support.groups import work

GOOD = wire.Score(reward=1, quality=1, similarity=1, compliant=True, detected="en")
LIVES = wire.Lives("actor", "learner")
OUTAGE, REFUSAL = ScoringError("out of reach", later=True), ScoringError("it cannot be read", later=False)


@pytest.fixture(autouse=True)
def _no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: sleep(seconds / 1000))


def answer_at_once(engine: Mock) -> None:
    """The engine answers whatever it is asked beside ``generate`` at once, and finds nothing wrong."""
    engine.read_gauges = AsyncMock(return_value={})
    engine.check_members, engine.wait_until_accepting = AsyncMock(), AsyncMock()


def answer(
    policy: Path,
    generated: list[Any],
    scored: list[Any],
    *flags: str,
    proved: bool = True,
    deliver: Any = None,
    prove: Any = None,
    parts: Any = None,
) -> tuple[Any, Mock]:
    """What becomes of a group whose engine and reward service do this, call after call; and the two."""
    config = load(["--model.path", str(policy), "--run.languages", '["en", "de"]', *flags])
    parts = parts or Mock()
    parts.engine.generate = AsyncMock(side_effect=generated)
    answer_at_once(parts.engine)
    parts.scoring.score = AsyncMock(side_effect=scored)
    parts.session.deliver, parts.session.send_heartbeat = AsyncMock(), AsyncMock()
    parts.session.deliver.side_effect = deliver
    parts.weights.wait_until_proved = AsyncMock(return_value=proved, side_effect=prove)

    async def run() -> Any:
        tokenizer = load_tokenizer(str(policy))
        held = PromptGroups(config, parts.engine, parts.scoring, tokenizer, parts.session, parts.weights, ActorTimes())
        running = asyncio.create_task(held.run())
        await asyncio.sleep(1)
        held.start(work(3, ["en", "de"]), LIVES)
        while held.holding:
            await asyncio.sleep(10)
        parts.generating = held.generating
        if not parts.session.deliver.called:
            await running  # which says why there is no message
        running.cancel()
        message = parts.session.deliver.call_args.args[0]
        assert message.lives == LIVES and message.id == "train-3"
        return message

    return asyncio.run(asyncio.wait_for(run(), 60)), parts


def generations() -> list[Generation]:
    ids = np.array([5, 6, 7], np.int32)
    one = Generation(
        ids=ids, logprobs=np.zeros(3, np.float32), versions=np.zeros(3, np.int32), truncated=False, retracted=False
    )
    return [one, one]


def test_an_outage_of_the_rewards_costs_time_and_no_answer(tiny_policy: Path) -> None:
    submitted, parts = answer(tiny_policy, [generations()], [*[OUTAGE] * 9, [GOOD, GOOD]])
    assert isinstance(submitted, wire.Submit) and len(submitted.rollouts) == 2
    assert parts.engine.generate.call_count == 1 and parts.scoring.score.call_count == 10
    asked = {str(call.args[1]) for call in parts.scoring.score.call_args_list}
    assert len(asked) == 1, "the same answers each time"


def test_each_stage_has_its_own_attempts(tiny_policy: Path) -> None:
    failing = EngineError("busy")
    submitted, _ = answer(tiny_policy, [failing, failing, generations()], [REFUSAL, REFUSAL, [GOOD, GOOD]])
    assert isinstance(submitted, wire.Submit)
    released, parts = answer(tiny_policy, [generations()], [REFUSAL] * 3)
    assert isinstance(released, wire.Release)
    assert (released.cause, released.reason) == ("scoring", "it cannot be read")
    assert parts.engine.generate.call_count == 1


def test_an_outage_that_does_not_end_hands_the_group_back(tiny_policy: Path) -> None:
    released, _ = answer(tiny_policy, [generations()], [OUTAGE] * 99, "--actor.score_patience_s", "3")
    assert isinstance(released, wire.Release)
    assert (released.cause, released.reason) == ("outage", "out of reach")


def test_what_the_engine_refuses_for_good_is_asked_once(tiny_policy: Path) -> None:
    released, parts = answer(tiny_policy, [RequestRefused("/generate: status 400: too long")], [])
    assert isinstance(released, wire.Release)
    assert (released.cause, parts.engine.generate.call_count) == ("refusal", 1) and "too long" in released.reason


def test_answers_whose_weights_were_never_proved_are_not_sent(tiny_policy: Path) -> None:
    released, parts = answer(tiny_policy, [generations()], [[GOOD, GOOD]], proved=False)
    assert isinstance(released, wire.Release) and released.cause == "outage" and "[0]" in released.reason
    parts.weights.wait_until_proved.assert_called_once_with({0})


@pytest.mark.parametrize("error", [ValueError("nobody expected it"), asyncio.CancelledError("from within")])
@pytest.mark.parametrize("where", ["generate", "score", "prove", "deliver"])
def test_an_unforeseen_failure_releases_the_group_with_its_reason(
    where: str, error: BaseException, tiny_policy: Path
) -> None:
    delivered: list[Any] = []

    async def deliver(message: Any) -> None:
        delivered.append(message)
        if where == "deliver" and len(delivered) == 1:
            raise error

    async def prove(versions: Any) -> bool:
        raise error

    scored: list[Any] = [error] if where == "score" else [[GOOD, GOOD]]
    generated: list[Any] = [error] if where == "generate" else [generations()]
    released, _ = answer(tiny_policy, generated, scored, deliver=deliver, prove=prove if where == "prove" else None)
    assert isinstance(released, wire.Release) and released.cause == "unforeseen" and repr(error) == released.reason


@pytest.mark.parametrize("error", [EngineLost("it ended"), EngineReplaced("it is another one")])
def test_an_engine_that_is_gone_ends_the_life_and_the_group_was_in_it(error: EngineError, tiny_policy: Path) -> None:
    parts = Mock()
    with pytest.raises(type(error)):
        answer(tiny_policy, [EngineError("busy"), error], [], parts=parts)
    assert parts.generating == ["train-3"]


def test_what_is_generated_is_handed_over_at_the_end_and_nothing_else_begins(tiny_policy: Path) -> None:
    config = load(["--model.path", str(tiny_policy), "--run.languages", '["en", "de"]'])
    parts = Mock()
    answer_at_once(parts.engine)
    parts.weights.wait_until_proved = AsyncMock(return_value=True)
    parts.session.send_heartbeat = AsyncMock()
    delivered: list[Any] = []

    async def run() -> None:
        may_score, asked = asyncio.Event(), 0

        async def generate(*_: Any) -> list[Generation]:
            nonlocal asked
            asked += 1
            if asked > 1:
                await asyncio.Event().wait()  # for ever
            return generations()

        async def score(*_: Any) -> list[wire.Score]:
            await may_score.wait()
            return [GOOD, GOOD]

        async def deliver(message: Any) -> None:
            delivered.append(message)

        parts.engine.generate, parts.scoring.score, parts.session.deliver = generate, score, deliver
        tokenizer = load_tokenizer(str(tiny_policy))
        held = PromptGroups(config, parts.engine, parts.scoring, tokenizer, parts.session, parts.weights, ActorTimes())
        running = asyncio.create_task(held.run())
        await asyncio.sleep(1)
        for sequence in (3, 4):
            held.start(work(sequence, ["en", "de"]), LIVES)
        while asked < 2 or held.generating != ["train-4"]:
            await asyncio.sleep(1)
        ending = asyncio.create_task(held.finish(60))
        await asyncio.sleep(10)
        assert not ending.done()
        held.start(work(5, ["en", "de"]), LIVES)
        may_score.set()
        await ending
        assert held.holding == ["train-4"], "it goes back, and no other began"
        running.cancel()

    asyncio.run(asyncio.wait_for(run(), 60))
    assert [(type(message), message.id, message.lives) for message in delivered] == [(wire.Submit, "train-3", LIVES)]


class Stage:
    """Groups whose engine generates at once, and whose scores are good, unless a test says otherwise.

    Args:
        policy: directory of the policy.
    """

    def __init__(self, policy: Path) -> None:
        config = load(["--model.path", str(policy), "--run.languages", '["en", "de"]'])
        self.parts, self.delivered = Mock(), list[Any]()
        answer_at_once(self.parts.engine)
        self.parts.engine.generate = AsyncMock(return_value=generations())
        self.parts.scoring.score = AsyncMock(return_value=[GOOD, GOOD])
        self.parts.weights.wait_until_proved = AsyncMock(return_value=True)
        self.parts.session.send_heartbeat = AsyncMock()
        self.parts.session.deliver = AsyncMock(side_effect=self.delivered.append)
        parts, tokenizer = self.parts, load_tokenizer(str(policy))
        self.held = PromptGroups(
            config, parts.engine, parts.scoring, tokenizer, parts.session, parts.weights, ActorTimes()
        )

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await asyncio.sleep(1)

    def play(self, scene: Callable[[], Awaitable[None]]) -> None:
        """Starts a group and plays the scene beside it; raises the first error of either."""

        async def run() -> None:
            running = asyncio.create_task(self.held.run())
            await asyncio.sleep(1)
            self.held.start(work(3, ["en", "de"]), LIVES)
            playing = asyncio.ensure_future(scene())
            await asyncio.wait([running, playing], return_when=asyncio.FIRST_COMPLETED)
            for task in (playing, running):
                if not task.done():
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task
                else:
                    task.result()

        asyncio.run(asyncio.wait_for(run(), 60))


async def for_ever(*_: Any) -> Any:
    await asyncio.Event().wait()


def test_gauges_that_do_not_come_hold_up_no_group(tiny_policy: Path) -> None:
    stage = Stage(tiny_policy)
    stage.parts.engine.read_gauges = for_ever

    async def scene() -> None:
        await stage.until(lambda: stage.delivered)
        assert isinstance(stage.delivered[0], wire.Submit) and not stage.held.generating

    stage.play(scene)


def test_what_is_generated_while_gauges_are_read_is_handed_over_at_the_end(tiny_policy: Path) -> None:
    stage = Stage(tiny_policy)
    stage.parts.engine.read_gauges = for_ever
    may_score = asyncio.Event()

    async def score(*_: Any) -> list[wire.Score]:
        await may_score.wait()
        return [GOOD, GOOD]

    stage.parts.scoring.score = score

    async def scene() -> None:
        await stage.until(lambda: stage.held.tokens_generated)
        assert not stage.held.generating, "an engine that ends now has nothing of the group"
        ending = asyncio.create_task(stage.held.finish(60))
        await asyncio.sleep(10)
        may_score.set()
        await ending
        assert isinstance(stage.delivered[0], wire.Submit)

    stage.play(scene)


def test_a_group_that_waits_for_another_attempt_is_in_no_engine(
    tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not blamed for the end of one, and has no answers to hand over."""
    stage, backs_off, sleep = Stage(tiny_policy), asyncio.Event(), asyncio.sleep
    stage.parts.engine.generate = AsyncMock(side_effect=EngineError("busy"))

    async def back_off(seconds: float) -> None:
        if stage.parts.engine.generate.called:
            backs_off.set()
            await for_ever()
        await sleep(seconds)

    async def scene() -> None:
        await backs_off.wait()
        assert stage.held.holding == ["train-3"] and stage.held.generating == []
        await asyncio.wait_for(stage.held.finish(60), 10)

    monkeypatch.setattr(asyncio, "sleep", back_off)
    stage.play(scene)


def test_a_group_that_waits_for_an_engine_to_drain_is_not_in_it(tiny_policy: Path) -> None:
    stage, drained = Stage(tiny_policy), asyncio.Event()
    stage.parts.engine.generate, stage.parts.engine.wait_until_accepting = for_ever, drained.wait

    async def scene() -> None:
        await asyncio.sleep(20)
        assert stage.held.holding == ["train-3"] and stage.held.generating == []
        drained.set()
        await stage.until(lambda: stage.held.generating == ["train-3"])

    stage.play(scene)


def test_answers_that_another_engine_may_have_made_are_not_sent(tiny_policy: Path) -> None:
    """The router says after a while that it has another engine; the scores are there by then."""
    stage, scored = Stage(tiny_policy), asyncio.Event()

    async def check_members() -> None:
        await scored.wait()
        await asyncio.sleep(20)
        raise EngineReplaced("the router has other engines now")

    async def score(*_: Any) -> list[wire.Score]:
        scored.set()
        return [GOOD, GOOD]

    stage.parts.engine.check_members, stage.parts.scoring.score = check_members, score

    with pytest.raises(EngineReplaced, match="has other engines"):
        stage.play(for_ever)
    assert not stage.delivered
