"""One life of an actor: with one engine, until the learner ends the run or something fails.

The parts run side by side in one task group, and the first error ends them all:

* ``Session``: messages from and to the learner;
* ``PromptGroups``: generates, scores and submits the leased groups;
* ``WeightUpdates`` or ``AdapterUpdates``: new weights for the engine;
* the client of the reward service, and the polling of the engine.
"""

from __future__ import annotations

import asyncio
import logging

from transformers import PreTrainedTokenizerBase

from actor.adapters import AdapterUpdates
from actor.engine.server import EngineProcess
from actor.engine.start import OpenedEngine
from actor.groups import PromptGroups
from actor.scoring import Scoring
from actor.session import RunEnded, Session
from actor.tasks import TaskGroup
from actor.times import ActorTimes
from actor.weights import Order, WeightUpdates
from common import wire
from common.config import HEARTBEAT_S, Config
from common.net.rendezvous import Route
from common.process import FatalError

log = logging.getLogger("actor")

_PROCESS_CHECK_S = 1.0


class Life:
    """An actor with one engine.

    Args:
        config: the whole configuration.
        opened: the engine, ready to generate.
        learner: the connected route to the learner.
        scoring: the client of the reward service.
        tokenizer: of the policy. It encodes prompts and decodes finished answers; no response is ever encoded again.
    """

    def __init__(
        self,
        config: Config,
        opened: OpenedEngine,
        learner: Route,
        scoring: Scoring,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self._config = config
        self._engine, self._process = opened
        self._scoring = scoring
        self._engine_gauges: dict[str, float] = {}
        self._times = ActorTimes()
        self._session = Session(
            learner,
            self,
            lease_timeout_s=config.learner.lease_timeout_s,
            silence_timeout_s=config.actor.start_timeout_s,
        )
        probe_timeout_s = config.actor.request_timeout_s
        self._weights: WeightUpdates | AdapterUpdates
        if config.lora.sends_adapters:
            self._weights = AdapterUpdates(self._engine, learner.send, config.sync, probe_timeout_s)
        else:
            self._weights = WeightUpdates(self._engine, learner.send, self._times, config.sync, probe_timeout_s)
        self._groups = PromptGroups(config, self._engine, scoring, tokenizer, self._session, self._weights, self._times)

    @property
    def proved_updates(self) -> int:
        """How many weight updates the engine has completed and proved."""
        return self._weights.proved_updates

    async def run(self) -> None:
        """Returns when the learner ends the run.

        When it is cancelled or fails, an engine that is paused for a weight update is resumed first, which takes at
        most ``weights.RECOVERY_S`` seconds.

        Raises:
            FatalError: the learner is silent or refuses this actor, or the engine serves another model.
            EngineError: the engine ended, or failed a weight update; it must be started again.
        """
        try:
            async with TaskGroup() as tasks:
                tasks.create_task(self._groups.run())  # first, as it must be ready for leases
                tasks.create_task(self._weights.run())
                tasks.create_task(self._scoring.listen())
                tasks.create_task(self._poll_engine())
                tasks.create_task(self._session.send_heartbeats())
                if self._process is not None:
                    tasks.create_task(_watch_process(self._process))
                await self._session.receive()
        except RunEnded as end:
            if end.error:
                raise FatalError(f"the learner refuses this actor: {end.error}") from None
        log.info(
            "the run has ended: this actor generated %d tokens; its time went to %s",
            self._groups.tokens_generated,
            self._times.describe_shares(),
        )

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
            gauges={**self._engine_gauges, **({} if probe_error is None else {"probe_error": probe_error})},
        )

    def take_work(self, work: wire.Work) -> None:
        """Begins a leased group."""
        self._groups.start(work)

    def drop_work(self) -> int:
        """Drops all groups and returns how many there were."""
        return self._groups.drop_all()

    def take_order(self, order: Order) -> None:
        """Queues an order of the weight sync."""
        self._weights.take_order(order)

    async def _poll_engine(self) -> None:
        """Reads the engine's gauges in a task of its own, so that an engine that hangs does not delay heartbeats."""
        while True:
            self._engine_gauges |= await self._engine.read_gauges()
            await asyncio.sleep(HEARTBEAT_S)


async def _watch_process(process: EngineProcess) -> None:
    """Raises EngineError when the process has ended."""
    while True:
        process.check()
        await asyncio.sleep(_PROCESS_CHECK_S)
