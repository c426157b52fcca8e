"""The lives of an actor, one after another, each with a newly opened engine, until the learner ends the run.

A life ends with an ``EngineError`` when its engine fails. The actor then tells the learner that it leaves, so that its
leases go to others, stops the engine, waits, and begins the next life. The wait doubles with each failure in a row.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack

import aiohttp
import zmq.asyncio
from transformers import PreTrainedTokenizerBase

from actor.engine.client import EngineError, make_http_session
from actor.engine.start import open_engine
from actor.life import Life
from actor.scoring import Scoring
from common import wire
from common.config import Config
from common.net.rendezvous import Route
from common.process import FatalError

log = logging.getLogger("actor")

_LONGEST_BACK_OFF_S = 30.0
_LINGER_MS = 500  # for the last message, perhaps the Leave that says why an engine failed


class Lives:
    """Runs one life after another.

    Args:
        config: the whole configuration.
        name: of the actor, unique in the run.
        tokenizer: of the policy.
        learner: the route to the learner, not yet connected.
        rewards: the routes to the replicas of the reward service, not yet connected.
    """

    def __init__(
        self, config: Config, name: str, tokenizer: PreTrainedTokenizerBase, learner: Route, rewards: list[Route]
    ) -> None:
        self._config = config
        self._name = name
        self._tokenizer = tokenizer
        self._learner = learner
        self._rewards = rewards
        self._failures = 0  # in a row
        self._has_had_engine = False

    async def run(self) -> None:
        """Connects to the learner and the reward service, and returns when the learner has ended the run.

        Raises:
            FatalError: the first engine did not start, the engine failed too many times in a row, or see ``Life.run``.
        """
        context = zmq.asyncio.Context()
        try:
            async with make_http_session() as http:
                self._learner.connect(context, self._name)
                scoring = Scoring(context, self._config.reward.request_timeout_s, self._rewards)
                while not await self._run_one(http, scoring):
                    await asyncio.sleep(min(2.0 ** (self._failures - 1), _LONGEST_BACK_OFF_S))
        finally:
            context.destroy(linger=_LINGER_MS)

    async def _run_one(self, http: aiohttp.ClientSession, scoring: Scoring) -> bool:
        """Runs one life. True if the learner ended the run, False if the engine failed."""
        life = None
        async with AsyncExitStack() as stack:
            try:
                opened = await stack.enter_async_context(open_engine(self._config, self._name, http))
                self._has_had_engine = True
                life = Life(self._config, opened, self._learner, scoring, self._tokenizer)
                await life.run()
                return True
            except EngineError as error:
                # Within the stack, so that the learner knows before the engine is stopped, which takes seconds.
                await self._handle_failure(error, proved_updates=life.proved_updates if life else 0)
        return False

    async def _handle_failure(self, error: EngineError, proved_updates: int) -> None:
        """Counts the failure and tells the learner that this actor leaves.

        Raises:
            FatalError: it was the first engine that did not start, or the last failure that ``actor.restarts`` allows.
        """
        self._failures = 1 if proved_updates else self._failures + 1
        if not self._has_had_engine:
            raise FatalError(str(error)) from None
        if self._failures > self._config.actor.restarts:
            raise FatalError(f"the engine failed {self._failures} times in a row: {error}") from None
        log.error("starting the engine again: %s", error)
        await self._learner.send(wire.Leave(reason=str(error)))
