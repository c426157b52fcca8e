"""Weight updates of one engine: join, pause, receive, resume, prove.

The learner orders an update in two messages. At ``Pause`` the engine stops generating and makes room; at ``Receive`` it
takes the weights of a new version and goes on generating. Then it proves them: its log-probabilities of a probe must be
the learner's. Until that is done the actor holds its answers back. The engine's weights are in one of these states::

    STARTED ──┐
              │ Pause                  paused             Receive
    PROVED ───┼───────────► PAUSING ───────────► PAUSED ───────────► RECEIVING
      ▲ ▲     │                                    │                     │
      │ │     │                                    │ nothing or another  │ received
      │ └─────┼────────────────────────────────────┘ order: resumed      │ and resumed
      │       │                                                          │
      └──── PROVING ◄────────────────────────────────────────────────────┘
       probe agrees

An error in any state leads to FAILED: the weights are unknown, and this life of the actor ends. ``Join`` forms the
group in which weights travel; it comes between updates and does not change the state.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum, auto
from typing import NoReturn, TypeAlias

from actor.engine.client import Engine, EngineError, describe_differences
from actor.tasks import TaskGroup
from actor.times import ActorTimes
from common import wire
from common.config import SyncConfig
from common.process import FatalError

log = logging.getLogger("actor")

RECOVERY_S = 5.0  # to resume an engine whose update was cut off; each of its calls has half of that

Order: TypeAlias = wire.Join | wire.Pause | wire.Receive | wire.LoadAdapter


class WeightState(Enum):
    """What is known of the engine's weights, and whether it generates."""

    STARTED = auto()  # it generates with the weights it was started with; the learner gives no work for them
    PAUSING = auto()  # it is told to stop, or lets the answers in flight end
    PAUSED = auto()  # it waits for the weights
    RECEIVING = auto()  # it takes them
    PROVING = auto()  # it generates with new weights, and the probe is being compared
    PROVED = auto()  # it generates with weights that are the learner's; only now may answers be sent
    FAILED = auto()  # its weights are unknown


_NEXT_STATES: dict[WeightState, frozenset[WeightState]] = {  # FAILED may follow any state
    WeightState.STARTED: frozenset({WeightState.PAUSING}),
    WeightState.PAUSING: frozenset({WeightState.PAUSED}),
    WeightState.PAUSED: frozenset({WeightState.RECEIVING, WeightState.PROVED}),
    WeightState.RECEIVING: frozenset({WeightState.PROVING}),
    WeightState.PROVING: frozenset({WeightState.PROVED, WeightState.PAUSING}),
    WeightState.PROVED: frozenset({WeightState.PAUSING}),
    WeightState.FAILED: frozenset(),
}


class WeightUpdates:
    """Carries out the learner's orders, one after another.

    Args:
        engine: ready to generate.
        send: sends a message to the learner.
        times: books the time of updates.
        sync: the section ``sync`` of the configuration.
        probe_timeout_s: deadline of the probe in seconds. It waits in the engine behind the answers in flight.
    """

    def __init__(
        self,
        engine: Engine,
        send: Callable[[wire.Joined | wire.Synced], Awaitable[None]],
        times: ActorTimes,
        sync: SyncConfig,
        probe_timeout_s: float,
    ) -> None:
        self._engine = engine
        self._send = send
        self._times = times
        self._sync = sync
        self._probe_timeout_s = probe_timeout_s
        self._state = WeightState.STARTED
        self._proved = asyncio.Event()  # set in the state PROVED
        self._orders: asyncio.Queue[Order] = asyncio.Queue()
        self._task_group = TaskGroup()
        self._proof: asyncio.Task[None] | None = None  # runs in the state PROVING
        self._group = ""  # the weight group that the engine has joined
        self._checkpoint_shapes: dict[str, list[int]] | None = None  # None until they are read
        self.proved_updates = 0
        self.probe_error: float | None = None  # of the last proof, in nats per token

    @property
    def state(self) -> WeightState:
        """What is known of the engine's weights at the moment."""
        return self._state

    def take_order(self, order: Order) -> None:
        """Queues an order of the learner."""
        self._orders.put_nowait(order)

    async def wait_until_proved(self) -> None:
        """Waits until the engine's weights are proved to be the learner's; without a deadline, as a failure ends all.

        Answers are submitted only after that, since the weights that they are marked with might not have made them.
        """
        await self._proved.wait()

    async def run(self) -> NoReturn:
        """Carries out orders until it is cancelled. An engine that is paused at that moment is resumed.

        Raises:
            EngineError: the engine failed an order or a proof. Its weights are unknown, so it must be started again.
            FatalError: the engine serves another model than the learner's.
        """
        try:
            async with self._task_group:
                next_order: Order | None = None
                while True:
                    order = next_order or await self._orders.get()
                    next_order = None
                    match order:
                        case wire.Pause():
                            next_order = await self._update(order)
                        case wire.Join():
                            await self._join(order)
                        case wire.Receive():
                            log.warning("dropped the weights of version %d, which came too late", order.version)
                        case wire.LoadAdapter():
                            log.warning("dropped an adapter: this actor's engine takes all weights")
        except Exception:
            self._enter_state(WeightState.FAILED)
            raise

    async def _join(self, join: wire.Join) -> None:
        if self._group:
            await self._engine.leave_group(self._group, join.timeout_s)
        await self._engine.join_group(join)
        self._group = join.group
        await self._send(wire.Joined(group=join.group))

    async def _update(self, pause: wire.Pause) -> Order | None:
        """One update, from the pause until generation goes on. Requests in flight wait inside the engine.

        Returns:
            The order that came instead of the weights, from a learner that has started again; otherwise None.
        """
        begin = time.monotonic()
        if self._proof is not None:
            if self._proof.done():
                self._proof.result()  # raises if the proof has failed just now
            self._proof.cancel()  # its weights are about to be replaced
            self._proof = None
        self._enter_state(WeightState.PAUSING)
        with self._times.syncing():
            try:
                await self._engine.pause(self._sync.timeout_s, self._sync.drain_s)
                self._enter_state(WeightState.PAUSED)
                await self._send(wire.Synced(version=pause.version, stage="ready", pause_s=0.0))
                order = await self._wait_for_weights(pause)
                if isinstance(order, wire.Receive):
                    self._enter_state(WeightState.RECEIVING)
                    await self._check_model(order)
                    await self._engine.receive_weights(order)
                await self._engine.resume(self._sync.timeout_s)
            except BaseException:  # also when cancelled, as an engine that others use must not stay paused for ever
                with suppress(EngineError, TimeoutError):
                    await asyncio.wait_for(self._engine.recover(RECOVERY_S / 2), RECOVERY_S)
                raise
        if not isinstance(order, wire.Receive):  # a proof that the pause has cut off is not repeated
            self._enter_state(WeightState.PROVED)
            return order
        await self._send(wire.Synced(version=order.version, stage="done", pause_s=time.monotonic() - begin))
        self._enter_state(WeightState.PROVING)
        self._proof = self._task_group.create_task(self._prove(order))
        return None

    async def _wait_for_weights(self, pause: wire.Pause) -> Order | None:
        """The weights that ``pause`` announced, or the order that comes instead of them; None if nothing comes."""
        while True:
            try:
                async with asyncio.timeout(pause.timeout_s):
                    order = await self._orders.get()
            except TimeoutError:
                log.error(
                    "the weights of version %d were announced and did not come within %.0f s: "
                    "generating on with the old ones",
                    pause.version,
                    pause.timeout_s,
                )
                return None
            if not isinstance(order, wire.Receive) or order.version == pause.version:
                return order

    async def _check_model(self, order: wire.Receive) -> None:
        """Compares names and shapes of the first weights with the engine's checkpoint.

        Raises:
            FatalError: the engine's checkpoint is of another model than the weights.
        """
        if self._checkpoint_shapes is not None:
            return
        self._checkpoint_shapes = await self._engine.read_checkpoint_shapes(self._sync.timeout_s)
        if not self._checkpoint_shapes:
            log.warning("the engine's checkpoint cannot be read from here: only the probe checks its weights")
        elif differences := describe_differences(order.buckets, self._checkpoint_shapes):
            raise FatalError(f"the engine at {self._engine.url} serves another model than the learner's: {differences}")

    async def _prove(self, order: wire.Receive) -> None:
        """Compares the engine's log-probabilities of the probe with the learner's, and enters PROVED if they agree.

        Raises:
            EngineError: the engine's log-probabilities of the probe are not the learner's, or it does not give them.
        """
        try:
            error = await self._engine.measure_probe_error(order.probe, self._probe_timeout_s)
        except EngineError:
            raise
        except Exception as failure:  # an answer of any other form must not hold the groups back for ever
            raise EngineError(f"the probe failed: {failure!r}") from failure
        if not error <= order.probe.tolerance:  # also where it is not a number
            raise EngineError(
                f"after the update to version {order.version} the engine's log-probabilities of the probe are "
                f"{error:.3g} nats from the learner's (sync.probe_tolerance = {order.probe.tolerance:g})"
            )
        log.info(
            "proved the weights of version %d: the engine's log-probabilities are %.2g nats from the learner's",
            order.version,
            error,
        )
        self.probe_error = error
        self.proved_updates += 1
        self._enter_state(WeightState.PROVED)

    def _enter_state(self, state: WeightState) -> None:
        if state is not WeightState.FAILED and state not in _NEXT_STATES[self._state]:
            raise RuntimeError(f"the state of the weights cannot change from {self._state.name} to {state.name}")
        self._state = state
        if state is WeightState.PROVED:
            self._proved.set()
        else:
            self._proved.clear()
