"""Several engines behind an sglang-router, used like one engine.

The router distributes the answers over the engines. Weights go to each engine directly. Written for sglang-router 0.3,
which lists its engines under ``/workers`` and passes token ids, cache keys and versions through unchanged.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import aiohttp
import numpy as np

from actor.engine.adapters import LoadedAdapter
from actor.engine.client import Engine
from actor.engine.errors import EngineReplaced
from common import wire
from common.process import FatalError

_WORKERS_TIMEOUT_S = 5


async def list_workers(url: str, http: aiohttp.ClientSession) -> list[str]:
    """The addresses of the engines behind the router at ``url``, sorted. Waits at most 5 seconds.

    Empty if an engine, or nobody, answers at that address.
    """
    with suppress(aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
        async with http.get(f"{url}/workers", timeout=aiohttp.ClientTimeout(total=_WORKERS_TIMEOUT_S)) as response:
            return sorted(worker["url"] for worker in (await response.json())["workers"])
    return []


class EngineFleet(Engine):
    """The engines that a router had when the actor attached to it.

    Each engine joins the weight group with its own ranks.

    Args:
        urls: of the engines.
        url: of the router.
        http: see ``Engine``, as the rest.
    """

    def __init__(
        self, urls: list[str], url: str, http: aiohttp.ClientSession, request_timeout_s: float, pause_mode: str
    ) -> None:
        super().__init__(url, http, request_timeout_s, pause_mode)
        self._engines = [Engine(each, http, request_timeout_s, pause_mode, self.labels) for each in urls]

    async def check_members(self) -> None:
        """Checks that the router still has the same engines, as far as it says. Waits at most 5 seconds.

        Raises:
            EngineReplaced: it has other engines than when the actor attached to it.
        """
        now, before = await list_workers(self.url, self._http), sorted(engine.url for engine in self._engines)
        if now and now != before:
            raise EngineReplaced(f"the router at {self.url} has the engines {now} now, and had {before}")

    async def call(self, route: str, body: dict[str, Any] | None, timeout_s: float, *, missing_ok: bool = False) -> Any:
        """Sends a generation call to the router, and any other call to every engine; returns the first one's answer."""
        if route == "/generate":
            return await super().call(route, body, timeout_s)
        bodies = [body] * len(self._engines)
        if body and "rank_offset" in body:
            ranks = (body["world_size"] - 1) // len(self._engines)
            bodies = [{**body, "rank_offset": 1 + number * ranks} for number in range(len(self._engines))]
        calls = [
            engine.call(route, own_body, timeout_s, missing_ok=missing_ok)
            for engine, own_body in zip(self._engines, bodies, strict=True)
        ]
        return (await asyncio.gather(*calls))[0]

    async def check_identity(self, timeout_s: float) -> None:
        """As ``Engine.check_identity``, of each engine, and ``check_members``."""
        await asyncio.gather(self.check_members(), *(engine.check_identity(timeout_s) for engine in self._engines))

    async def recover(self, timeout_s: float) -> None:
        """As ``Engine.recover``; afterwards ``ranks`` counts the ranks of all engines.

        Raises:
            FatalError: also where the engines sample by seeds, which the router does not pass on for each answer.
        """
        await super().recover(timeout_s)
        if self.samples_by_seed:
            raise FatalError(
                f"the engines behind the router at {self.url} were started with --enable-deterministic-inference, and "
                "a router passes one seed on for all answers of a group, which would be the same: start them without "
                "it, or attach the actor to one engine"
            )
        self.ranks *= len(self._engines)

    async def check_nccl(self, learner: dict[str, str], timeout_s: float) -> None:
        """As ``Engine.check_nccl``, for every engine."""
        await asyncio.gather(*(engine.check_nccl(learner, timeout_s) for engine in self._engines))

    async def measure_probe_error(
        self, probe: wire.Probe, timeout_s: float, adapter: LoadedAdapter | None = None
    ) -> float:
        """The largest error of any engine, in nats per token; each is asked directly, all at once.

        It is not a number if that of any engine is none, which ``max`` would tell of the first engine alone.
        """
        probes = (engine.measure_probe_error(probe, timeout_s, adapter) for engine in self._engines)
        return float(np.max(await asyncio.gather(*probes)))

    async def read_checkpoint_shapes(self, timeout_s: float) -> dict[str, list[int]]:
        """The checkpoint of the first engine."""
        return await self._engines[0].read_checkpoint_shapes(timeout_s)
