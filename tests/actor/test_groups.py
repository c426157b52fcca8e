"""A group in the actor, when scoring fails: its answers wait, and are not generated again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import numpy as np
import pytest

from actor.engine.client import EngineError, Generation
from actor.groups import PromptGroups
from actor.scoring import ScoringError
from actor.times import ActorTimes
from common import wire
from common.config import load
from common.tokenizer import load_tokenizer
from tests.support.groups import work

GOOD = wire.Score(reward=1, quality=1, similarity=1, compliant=True, detected="en")
OUTAGE, REFUSAL = ScoringError("out of reach", later=True), ScoringError("it cannot be read", later=False)


@pytest.fixture(autouse=True)
def _no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: sleep(seconds / 1000))


def answer(policy: Path, generated: list[Any], scored: list[Any], *flags: str) -> tuple[Any, Mock]:
    """What becomes of a group whose engine and reward service do this, call after call; and the two."""
    config = load(["--model.path", str(policy), "--run.languages", '["en", "de"]', *flags])
    parts = Mock()
    parts.engine.generate = AsyncMock(side_effect=generated)
    parts.engine.read_gauges = AsyncMock(return_value={})
    parts.scoring.score = AsyncMock(side_effect=scored)
    parts.session.deliver, parts.session.send_heartbeat = AsyncMock(), AsyncMock()
    parts.weights.wait_until_proved = AsyncMock()

    async def run() -> Any:
        tokenizer = load_tokenizer(str(policy))
        held = PromptGroups(config, parts.engine, parts.scoring, tokenizer, parts.session, parts.weights, ActorTimes())
        running = asyncio.create_task(held.run())
        await asyncio.sleep(1)
        held.start(work(3, ["en", "de"]))
        while held.holding:
            await asyncio.sleep(10)
        running.cancel()
        return parts.session.deliver.call_args.args[0]

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
    assert isinstance(released, wire.Release) and released.reason == "it cannot be read"
    assert parts.engine.generate.call_count == 1


def test_an_outage_that_does_not_end_hands_the_group_back(tiny_policy: Path) -> None:
    released, _ = answer(tiny_policy, [generations()], [OUTAGE] * 99, "--actor.score_patience_s", "3")
    assert isinstance(released, wire.Release) and released.reason == "out of reach"
