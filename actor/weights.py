"""Weight updates of one engine: join, pause, receive, resume, prove.

The learner orders an update in two messages. At ``Pause`` the engine stops generating and makes room; at ``Receive`` it
takes the weights of a new version and goes on generating. Then it proves them: its log-probabilities of a probe must be
the learner's. Until that is done the actor holds back the answers that were made with these weights. What state the
weights are in, and which answers may be sent, is decided in ``actor/proof.py``; this file does what the orders say.

``Join`` forms the group in which weights travel; it comes between updates and does not change the state.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Set
from contextlib import suppress
from typing import NoReturn

from actor.engine.checkpoint_shapes import describe_differences
from actor.engine.client import Engine
from actor.engine.errors import EngineError
from actor.probing import prove
from actor.proof import WeightProof, WeightState
from actor.tasks import TaskGroup
from actor.times import ActorTimes
from actor.updates import Order
from common import wire
from common.config import SyncConfig
from common.process import FatalError

log = logging.getLogger("actor")

_END_S = 1.0  # for an engine to end an update that was cut off; it does not answer while it still takes weights
RECOVERY_S = 5.0  # for it to do that and to go on
_PROOF_SHARE = 0.25  # share of sync.timeout_s for which a pause waits for a running probe; the rest is the engine's


class WeightUpdates:
    """Carries out the learner's orders to take all weights; an :class:`~actor.updates.EngineUpdates`.

    Args:
        engine: ready to generate.
        send: sends a message to the learner.
        times: books the time of updates.
        sync: the section ``sync`` of the configuration.
        probe_timeout_s: deadline of the probe in seconds. It waits in the engine behind the answers in flight.
        outlived: whether the engine goes on when this life is over, so that it must not stay paused.
    """

    def __init__(
        self,
        engine: Engine,
        send: Callable[[wire.Joined | wire.Synced], Awaitable[None]],
        times: ActorTimes,
        sync: SyncConfig,
        probe_timeout_s: float,
        *,
        outlived: bool,
    ) -> None:
        self._engine = engine
        self._outlived = outlived
        self._send = send
        self._times = times
        self._sync = sync
        self._probe_timeout_s = probe_timeout_s
        self._weights = WeightProof()
        self._changed = asyncio.Event()  # set, and replaced, when what is known of the weights changes
        self._orders: asyncio.Queue[Order] = asyncio.Queue()
        self._task_group = TaskGroup()
        self._received: wire.Receive | None = None  # the newest order whose weights have arrived
        self._proof: asyncio.Task[None] | None = None  # runs in the state PROVING
        self._group = ""  # the weight group that the engine has joined
        self._checkpoint_shapes: dict[str, list[int]] | None = None  # None until they are read
        self.proved_updates = 0
        self.probe_error: float | None = None  # of the last proof, in nats per token

    @property
    def state(self) -> WeightState:
        """What is known of the engine's weights at the moment."""
        return self._weights.state

    def take_order(self, order: Order) -> None:
        """Queues an order of the learner."""
        self._orders.put_nowait(order)

    async def wait_until_proved(self, versions: Set[int]) -> bool:
        """Waits until it is known whether answers may be sent whose tokens are of these policy versions.

        Without a deadline, as a proof has one, and its failure ends everything.

        Returns:
            Whether all these weights are proved. False if some were replaced before, so that they never will be.
        """
        while not self._weights.may_send(versions):
            if self._weights.is_lost(versions):
                return False
            await self._changed.wait()
        return True

    def drop_orders(self) -> None:
        """Drops the orders that wait: they are of a learner, or of a life, that is over."""
        while not self._orders.empty():
            self._orders.get_nowait()

    async def run(self) -> NoReturn:
        """Carries out orders until it is cancelled. An engine that goes on is then resumed if it is paused.

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
            self._weights.fail()
            self._note_change()
            raise

    async def _join(self, join: wire.Join) -> None:
        if self._group:
            await self._engine.leave_group(self._group, join.timeout_s)
        await self._engine.join_group(join)
        self._group = join.group
        await self._send(wire.Joined(group=join.group).of(join.lives))

    async def _update(self, pause: wire.Pause) -> Order | None:
        """One update, from the pause until generation goes on. Requests in flight wait inside the engine.

        Returns:
            The order that came instead of the weights, from a learner that has started again; otherwise None.
        """
        await self._end_proof()
        self._weights.pause()
        with self._times.syncing():
            try:
                stopped = await self._engine.pause(self._sync.timeout_s, self._sync.drain_s)
                self._weights.paused()
                await self._send(wire.Synced(version=pause.version, stage="ready", pause_s=0.0).of(pause.lives))
                order = await self._wait_for_weights(pause)
                if isinstance(order, wire.Receive):
                    self._weights.receive(order.version)
                    self._note_change()
                    await self._check_model(order)
                    await self._engine.receive_weights(order)
                await self._engine.resume(self._sync.timeout_s)
            except BaseException:  # also when cancelled, as an engine that others use must not stay paused for ever
                if self._outlived:
                    with suppress(EngineError, TimeoutError):
                        await asyncio.wait_for(self._engine.let_go(_END_S, RECOVERY_S - _END_S), RECOVERY_S)
                raise
        if isinstance(order, wire.Receive):
            pause_s = time.monotonic() - stopped
            await self._send(wire.Synced(version=order.version, stage="done", pause_s=pause_s).of(order.lives))
            self._weights.received()
            self._received = order
        else:
            self._weights.resumed()
        self._note_change()
        if self._weights.state is WeightState.PROVING:
            assert self._received is not None  # the engine has a version only since then
            self._proof = self._task_group.create_task(self._prove(self._received))
        return None if isinstance(order, wire.Receive) else order

    async def _end_proof(self) -> None:
        """Gives a probe that is under way a little time, as answers cannot be sent without it, and then cancels it.

        Raises:
            EngineError: it has failed.
        """
        proof, self._proof = self._proof, None
        if proof is None:
            return
        done, _ = await asyncio.wait([proof], timeout=_PROOF_SHARE * self._sync.timeout_s)
        if done:
            proof.result()
        else:
            log.warning("the probe of version %s was cut off by the next weight update", self._weights.version)
            proof.cancel()
            await asyncio.wait([proof])

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
            if not isinstance(order, wire.Receive) or (order.version, order.lives) == (pause.version, pause.lives):
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
        """Compares the engine's log-probabilities of the probe with the learner's; if they agree, these are proved.

        Raises:
            EngineError: the engine's log-probabilities of the probe are not the learner's, or it does not give them.
        """
        what = f"the weights of version {order.version}"
        error = await prove(self._engine, order.probe, self._probe_timeout_s, what)
        self.probe_error = error
        self.proved_updates += 1
        self._weights.probed(order.version)
        self._note_change()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
