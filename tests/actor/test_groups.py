"""A group in the actor, when something fails: each stage has its own attempts, and every lease ends with a message."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import numpy as np
import pytest

from actor.engine.client import Generation
from actor.engine.errors import EngineError, EngineLost, EngineReplaced, RequestRefused
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
    parts.engine.read_gauges = AsyncMock(return_value={})
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
    parts.engine.read_gauges = AsyncMock(return_value={})
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
