"""One life of an actor with its engine, until it is cancelled or something fails.

The parts run side by side in one task group, and the first error ends them all:

* ``PromptGroups``: generates, scores and submits the leased groups;
* ``WeightUpdates`` or ``AdapterUpdates``: new weights for the engine;
* the client of the reward service, and the polling of the engine.

They speak to the learner by the life's ``Session``, which began before the engine did.
"""

from __future__ import annotations

import asyncio
import logging
from typing import NoReturn

from transformers import PreTrainedTokenizerBase

from actor.adapters import AdapterUpdates
from actor.engine.errors import EngineLost
from actor.engine.server import EngineProcess
from actor.engine.start import OpenedEngine
from actor.groups import PromptGroups
from actor.scoring import Scoring
from actor.session import Session
from actor.tasks import TaskGroup
from actor.times import ActorTimes
from actor.updates import EngineUpdates, Order
from actor.weights import WeightUpdates
from common import wire
from common.config import HEARTBEAT_S, Config
from common.net.rendezvous import Route
from common.run_files import sync_of_run

log = logging.getLogger("actor")

_PROCESS_CHECK_S = 1.0
_IDENTITY_S = 5.0  # deadline for the engine to say which weights it has


class Life:
    """An actor with one engine.

    Args:
        config: the whole configuration.
        opened: the engine, ready to generate.
        session: with the learner; it must be running.
        learner: the connected route to the learner.
        scoring: the client of the reward service.
        tokenizer: of the policy. It encodes prompts and decodes finished answers; no response is ever encoded again.
    """

    def __init__(
        self,
        config: Config,
        opened: OpenedEngine,
        session: Session,
        learner: Route,
        scoring: Scoring,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self._config = config
        self._engine, self._process = opened
        self._scoring = scoring
        self._engine_gauges: dict[str, float] = {}
        self._times = ActorTimes()
        self._session = session
        probe_timeout_s = config.actor.request_timeout_s
        self._weights: EngineUpdates
        if config.lora.sends_adapters:
            self._weights = AdapterUpdates(self._engine, learner.send, sync_of_run(config), probe_timeout_s)
        else:
            self._weights = WeightUpdates(
                self._engine, learner.send, self._times, config.sync, probe_timeout_s, outlived=self._process is None
            )
        self._groups = PromptGroups(config, self._engine, scoring, tokenizer, self._session, self._weights, self._times)

    @property
    def proved_updates(self) -> int:
        """How many weight updates the engine has completed and proved."""
        return self._weights.proved_updates

    @property
    def generating(self) -> list[str]:
        """The leases whose answers the engine is generating, or was when it ended."""
        return self._groups.generating

    async def run(self) -> NoReturn:
        """Works for the learner until it is cancelled or fails.

        In both cases an engine of somebody else's that is paused for a weight update is resumed first, which takes at
        most ``weights.RECOVERY_S`` seconds. One of the actor's own is stopped by whoever opened it.

        Raises:
            FatalError: the engine serves another model than the learner's.
            EngineLost: the engine has ended by itself.
            EngineError: the engine failed a weight update, or has weights that this actor has not given it.
        """
        try:
            async with TaskGroup() as tasks:
                tasks.create_task(self._groups.run())  # first, as it must be ready for leases
                tasks.create_task(self._weights.run())
                tasks.create_task(self._scoring.listen())
                tasks.create_task(self._poll_engine())
                if self._process is not None:
                    tasks.create_task(_watch_process(self._process))
                await self._session.begin(self)
                await asyncio.Event().wait()  # for ever
        except EngineLost:
            if self._process is not None:  # which can say more about it than a cut connection
                await asyncio.sleep(_PROCESS_CHECK_S)
                self._process.check()
            raise
        raise AssertionError("the task group ends with an error alone")

    async def finish(self, timeout_s: float) -> None:
        """Hands over the groups whose answers are generated, within ``timeout_s``, and begins no others."""
        await self._groups.finish(timeout_s)

    def describe(self) -> str:
        """What the life has achieved, in words."""
        tokens, shares = self._groups.tokens_generated, self._times.describe_shares()
        return f"this actor generated {tokens} tokens; its time went to {shares}"

    # What the session asks of its owner.

    def make_hello(self) -> wire.Hello:
        """What the learner must know of this actor."""
        return wire.Hello(
            protocol=wire.PROTOCOL,
            engine_ranks=self._engine.ranks,
            slots=self._groups.slots,
            transport="adapter" if self._config.lora.sends_adapters else self._config.sync.transport,
            drain_s=self._config.sync.drain_s if self._engine.pause_mode == "drain" else 0.0,
        )

    def make_heartbeat(self) -> wire.Heartbeat:
        """The leases that this actor holds, where its time went, and the state of its engine."""
        probe_error = self._weights.probe_error
        return wire.Heartbeat(
            holding=self._groups.holding,
            seconds={**self._times.seconds(), **self._scoring.seconds},
            slots=self._groups.slots,
            gauges={
                **self._engine_gauges,
                **({} if probe_error is None else {"probe_error": probe_error}),
                "dropped_messages": float(self._session.dropped),
            },
        )

    def take_work(self, work: wire.Work, lives: wire.Lives) -> None:
        """Begins a leased group."""
        self._groups.start(work, lives)

    def drop_work(self) -> int:
        """Drops all groups, and the orders that wait; returns how many groups there were."""
        self._weights.drop_orders()
        return self._groups.drop_all()

    def take_order(self, order: Order) -> None:
        """Queues an order of the weight sync."""
        self._weights.take_order(order)

    async def _poll_engine(self) -> None:
        """Reads the engine's gauges in a task of its own, so that an engine that hangs does not delay heartbeats.

        Raises:
            EngineError: the engine has ended, or was started again by somebody else.
        """
        while True:
            await self._engine.check_identity(_IDENTITY_S)
            self._engine_gauges |= await self._engine.read_gauges()
            await asyncio.sleep(HEARTBEAT_S)


async def _watch_process(process: EngineProcess) -> None:
    """Raises EngineError when the process has ended."""
    while True:
        process.check()
        await asyncio.sleep(_PROCESS_CHECK_S)
