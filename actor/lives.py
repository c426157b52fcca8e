"""The lives of an actor, one after another, each with a newly opened engine, until the learner ends the run.

A life begins with a session, which reserves the actor's name, and opens the engine meanwhile. It ends with an
``EngineError`` when its engine fails. The actor then tells the learner that it leaves, so that its leases go to others,
stops the engine, waits, and begins the next life. The wait doubles with each failure in a row. An error that no other
engine would mend ends the actor, and so does an engine that does not start the first time; the learner is told of it in
the same way.

When the process is asked to end (SIGTERM, SIGINT), the groups whose answers are generated are still scored and handed
over, for at most ``_FAREWELL_S`` seconds. All others go back with the actor's ``Leave``.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import NoReturn

import aiohttp
import zmq
import zmq.asyncio
from transformers import PreTrainedTokenizerBase

from actor.engine.errors import EngineError, EngineLost
from actor.engine.readiness import make_http_session
from actor.engine.start import open_engine
from actor.identity import own_process
from actor.life import Life
from actor.scoring import Scoring
from actor.session import RunEnded, Session
from actor.tasks import TaskGroup
from common.config import Config
from common.net.rendezvous import Route
from common.process import FatalError

log = logging.getLogger("actor")

_LONGEST_BACK_OFF_S = 30.0
_LINGER_MS = 500  # for the last message, perhaps the Leave that says why an engine failed
_FAREWELL_S = 2.0  # to hand over what is generated when the process is asked to end; stopping the engine comes on top


class AskedToEnd(Exception):
    """The process was asked to end by a signal."""


class LifeRunner:
    """Runs one life after another.

    Args:
        config: the whole configuration.
        name: of the actor, unique in the run.
        tokenizer: of the policy.
        learner: the route to the learner, not yet connected.
        rewards: the routes to the replicas of the reward service, not yet connected.
        settings: those that its rollouts depend on, as ``common/rollout_settings.py`` has them.
    """

    def __init__(
        self,
        config: Config,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        learner: Route,
        rewards: list[Route],
        settings: Mapping[str, str],
    ) -> None:
        self._config = config
        self._name = name
        self._tokenizer = tokenizer
        self._learner = learner
        self._rewards = rewards
        self._settings = settings
        self._process = own_process()
        self._asked_to_end = asyncio.Event()
        self._failures = 0  # in a row
        self._has_had_engine = False

    async def run(self) -> None:
        """Connects to the learner and the reward service, and returns when the learner has ended the run.

        Raises:
            AskedToEnd: by SIGTERM or SIGINT.
            FatalError: the learner is silent or refuses this actor, the first engine did not start, the engine failed
                too many times in a row, or see ``Life.run``.
        """
        context = zmq.asyncio.Context()
        # The name of the connection: of this process alone, so that another actor of the same name takes nothing over.
        peer = f"{self._name[:50]}/{secrets.token_hex(6)}"
        try:
            async with make_http_session() as http:
                self._learner.connect(context, peer)
                scoring = Scoring(context, self._config.reward.request_timeout_s, self._rewards)
                with self._heeding_signals():
                    while True:
                        await self._run_one(http, scoring)
                        await self._wait_after_failure()
        except RunEnded as end:
            if end.error:
                raise FatalError(f"the learner refuses this actor: {end.error}") from None
        finally:
            context.destroy(linger=_LINGER_MS)

    async def _run_one(self, http: aiohttp.ClientSession, scoring: Scoring) -> None:
        """Runs one life, and returns when the engine has failed.

        Raises:
            RunEnded: the learner has ended the run, or refuses this actor.
            AskedToEnd, FatalError: see ``run``.
        """
        config, life = self._config, None
        session = Session(
            self._learner,
            self._name,
            self._process,
            settings=self._settings,
            lease_timeout_s=config.learner.lease_timeout_s,
            silence_timeout_s=config.actor.start_timeout_s,
        )
        async with AsyncExitStack() as stack:
            try:
                async with TaskGroup() as tasks:
                    tasks.create_task(session.receive())
                    tasks.create_task(session.send_heartbeats())
                    ending = tasks.create_task(self._end_when_asked(None))
                    opening = open_engine(config, self._name, http, again=self._has_had_engine)
                    opened = await stack.enter_async_context(opening)
                    self._has_had_engine = True
                    life = Life(config, opened, session, self._learner, scoring, self._tokenizer)
                    ending.cancel()
                    tasks.create_task(self._end_when_asked(life))
                    await life.run()
            except EngineError as error:
                # Within the stack, so that the learner knows before the engine is stopped, which takes seconds.
                await self._handle_failure(error, session, life)
            except AskedToEnd:
                await session.leave("it was asked to end", [])
                raise
            except asyncio.CancelledError:
                await self._say_why(session, "it was asked to end at once")
                raise
            except RunEnded as end:
                if not end.error:
                    log.info("the run has ended: %s", life.describe() if life else "this actor had no engine yet")
                raise
            except FatalError as error:
                await self._say_why(session, str(error))
                raise
            except Exception as error:  # whatever ends this actor, the learner would wait for it
                await self._say_why(session, f"an error that nobody expected, {error!r}")
                raise

    async def _say_why(self, session: Session, reason: str) -> None:
        """Tells the learner why this actor ends, if the learner can be told: the error may be that it cannot."""
        with suppress(FatalError, zmq.ZMQError):
            await session.leave(reason, [])

    async def _end_when_asked(self, life: Life | None) -> NoReturn:
        await self._asked_to_end.wait()
        if life is not None:
            log.info("asked to end: handing over the groups whose answers are generated")
            await life.finish(_FAREWELL_S)
        raise AskedToEnd

    async def _wait_after_failure(self) -> None:
        try:
            async with asyncio.timeout(min(2.0 ** (self._failures - 1), _LONGEST_BACK_OFF_S)):
                await self._asked_to_end.wait()
        except TimeoutError:
            return
        raise AskedToEnd

    async def _handle_failure(self, error: EngineError, session: Session, life: Life | None) -> None:
        """Counts the failure and tells the learner that this actor leaves.

        Raises:
            FatalError: it was the first engine that did not start, or the last failure that ``actor.restarts`` allows.
        """
        proved_updates = life.proved_updates if life is not None else 0
        self._failures = 1 if proved_updates else self._failures + 1
        generating = life.generating if life is not None and isinstance(error, EngineLost) else []
        await session.leave(str(error), generating)
        if not self._has_had_engine:
            raise FatalError(str(error)) from None
        if self._failures > self._config.actor.restarts:
            raise FatalError(f"the engine failed {self._failures} times in a row: {error}") from None
        log.error("starting the engine again: %s", error)

    @contextmanager
    def _heeding_signals(self) -> Iterator[None]:
        """The first SIGTERM or SIGINT asks for an orderly end, and a second one cancels what is still under way."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def heed() -> None:
            if self._asked_to_end.is_set():
                task.cancel()
            self._asked_to_end.set()

        kinds = (signal.SIGTERM, signal.SIGINT)
        for kind in kinds:
            loop.add_signal_handler(kind, heed)
        try:
            yield
        finally:
            for kind in kinds:
                loop.remove_signal_handler(kind)
                signal.signal(kind, signal.default_int_handler)
