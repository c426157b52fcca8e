"""The weight updates of an engine that loads LoRA adapters: load beside the others, use, prove, unload.

The engine keeps the frozen weights and has an adapter for each policy version that some answer still needs. A new one
is loaded while the engine generates. From then on every request names it, and answers under way end with the one they
began with. So all tokens of an answer have one version: that of the name the actor has sent. No cache outlives its
adapter, as the engine keys its prefix cache by the load of an adapter.

    order ──► written, checked ──► loaded ──► used by new requests ──► probe agrees: answers may be sent
                                                  │
                                                  └──► a later one is used, and no request needs it: unloaded
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Set
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from actor.engine.adapters import DamagedAdapterError, LoadedAdapter, describe_misfit, write_adapter
from actor.engine.client import Engine
from actor.engine.errors import EngineError
from actor.probing import prove
from actor.tasks import TaskGroup
from actor.updates import Order
from common import wire
from common.config import SyncConfig
from common.process import FatalError
from common.run_files import owned_directory
from common.threads import call_in_thread

log = logging.getLogger("actor")


class AdapterUpdates:
    """Carries out the learner's orders to load adapters; an :class:`~actor.updates.EngineUpdates`.

    Args:
        engine: ready to generate, and started for adapters.
        send: sends a message to the learner.
        sync: the section ``sync`` of the configuration; files of adapters lie in its ``directory``, which must be the
            run's alone, as of ``sync_of_run``.
        probe_timeout_s: deadline of the probe in seconds. It waits in the engine behind the answers in flight.
    """

    def __init__(
        self,
        engine: Engine,
        send: Callable[[wire.Joined | wire.Synced], Awaitable[None]],
        sync: SyncConfig,
        probe_timeout_s: float,
    ) -> None:
        self._engine, self._send, self._sync, self._probe_timeout_s = engine, send, sync, probe_timeout_s
        self._name = f"lrpo-{uuid.uuid4().hex[:8]}"  # of this life, as the engine may outlive it
        self._directory = Path()  # of the files of this life; known while it runs
        self._numbers = itertools.count()
        self._loaded: list[LoadedAdapter] = []  # oldest first
        self._proving: Counter[int] = Counter()  # adapters whose probe is under way, by version
        self._changed = asyncio.Event()  # set, and replaced, when a probe agrees
        self._orders: asyncio.Queue[Order] = asyncio.Queue()
        self._task_group = TaskGroup()
        self._checkpoint_shapes: dict[str, list[int]] | None = None  # None until they are read
        self.proved_updates = 0
        self.probe_error: float | None = None  # of the last proof, in nats per token

    def take_order(self, order: Order) -> None:
        """Queues an order of the learner."""
        self._orders.put_nowait(order)

    def drop_orders(self) -> None:
        """Drops the orders that wait: they are of a learner, or of a life, that is over."""
        while not self._orders.empty():
            self._orders.get_nowait()

    async def wait_until_proved(self, versions: Set[int]) -> bool:
        """Waits until the adapters of these policy versions are proved to be the learner's.

        Without a deadline, as a proof has one, and its failure ends everything.

        Returns:
            True: an adapter stays what it is until its proof has ended.
        """
        while any(self._proving[version] for version in versions):
            await self._changed.wait()
        return True

    async def run(self) -> NoReturn:
        """Carries out orders until it is cancelled, and then deletes the files.

        Deletes at the beginning what actors of this run left that were killed.

        Raises:
            EngineError: the engine failed to load or unload an adapter in time, or its probe is not the learner's. It
                must be started again.
            FatalError: the engine serves another model than the learner's, or was not started for adapters; or
                ``sync.directory`` cannot be written.
        """
        with ExitStack() as files:
            try:
                self._directory = files.enter_context(owned_directory(self._sync.directory))
            except OSError as error:
                raise FatalError(f"cannot write adapters to sync.directory: {error}") from None
            async with self._task_group:
                while True:
                    order = await self._orders.get()
                    if isinstance(order, wire.LoadAdapter):
                        await self._update(order)
                        await self._unload_idle()
                    else:
                        log.warning("dropped an order of the kind %s: this actor loads adapters", order.kind)

    async def _update(self, order: wire.LoadAdapter) -> None:
        newest = self._engine.adapter
        if newest is None or (newest.version, newest.sha256) != (order.version, order.sha256):
            adapter = await self._prepare(order)
            await self._engine.load_adapter(adapter, order.timeout_s)
            self._loaded.append(adapter)
            self._engine.adapter = adapter
            self._proving[order.version] += 1
            self._task_group.create_task(self._prove(adapter, order.probe))
        await self._send(wire.Synced(version=order.version, stage="done", pause_s=0.0).of(order.lives))

    async def _prepare(self, order: wire.LoadAdapter) -> LoadedAdapter:
        """Writes the files and compares them with the engine's model.

        Raises:
            EngineError: the adapter arrived damaged, or its files cannot be read or written in time.
            FatalError: it does not fit the engine's model.
        """
        name = f"{self._name}-{next(self._numbers)}-v{order.version}"
        adapter = LoadedAdapter(name, order.version, order.sha256, self._directory / name)
        try:
            shapes = await call_in_thread(partial(write_adapter, order, adapter.directory), order.timeout_s)
        except TimeoutError:
            raise EngineError(
                f"the files of the adapter of version {order.version} were not written to {adapter.directory} within "
                f"{order.timeout_s:.0f} s"
            ) from None
        except (DamagedAdapterError, OSError) as error:
            raise EngineError(str(error)) from None
        if self._checkpoint_shapes is None:
            self._checkpoint_shapes = await self._engine.read_checkpoint_shapes(self._sync.timeout_s)
            if not self._checkpoint_shapes:
                log.warning("the engine's checkpoint cannot be read from here: only the probe checks its weights")
        if misfit := describe_misfit(order.config, shapes, self._checkpoint_shapes):
            raise FatalError(f"the engine at {self._engine.url} serves another model than the learner's: {misfit}")
        return adapter

    async def _prove(self, adapter: LoadedAdapter, probe: wire.Probe) -> None:
        """Compares the engine's log-probabilities of the probe with the learner's.

        Raises:
            EngineError: they are not the learner's, or the engine does not give them.
        """
        what = f"the adapter of version {adapter.version}"
        error = await prove(self._engine, probe, self._probe_timeout_s, what, adapter)
        self.probe_error = error
        self.proved_updates += 1
        self._proving[adapter.version] -= 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def _unload_idle(self) -> None:
        """Unloads what no request uses or will use, and deletes its files. Waits at most ``sync.timeout_s`` for each.

        Raises:
            EngineError: the engine did not unload it in time. It would not load another one either.
        """
        for adapter in self._loaded[:-1]:
            if not adapter.in_flight:
                await self._engine.unload_adapter(adapter, self._sync.timeout_s)
                self._loaded.remove(adapter)
                with suppress(TimeoutError):  # the thread deletes them when it can
                    delete = partial(shutil.rmtree, adapter.directory, ignore_errors=True)
                    await call_in_thread(delete, self._sync.timeout_s)
