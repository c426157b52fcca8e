"""Several engines behind an sglang-router, used as one: it hands out the answers, weights go to each engine directly.

Made for sglang-router 0.3, which lists its engines under ``/workers`` and passes ids, cache keys and versions through.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import aiohttp

from actor.engine.client import Engine, EngineError
from common import wire


async def workers(url: str, session: aiohttp.ClientSession) -> list[str]:
    """The engines behind the router at ``url``; none if an engine, or nobody, answers there."""
    with suppress(aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
        async with session.get(f"{url}/workers", timeout=aiohttp.ClientTimeout(total=5)) as response:
            return sorted(worker["url"] for worker in (await response.json())["workers"])
    return []


class Routed(Engine):
    """The engines that the router had when the actor came; each joins the weight group with its own ranks."""

    def __init__(self, urls: list[str], url: str, session: aiohttp.ClientSession, *rest: Any) -> None:
        super().__init__(url, session, *rest)
        self._each = [Engine(one, session, *rest) for one in urls]

    async def load(self) -> dict[str, float]:
        """Asked for after each answer, and before it is sent.

        Raises:
            EngineError: the router has other engines than when the actor came; a new one may have answered, with
                weights of its own.
        """
        told, known = await workers(self.url, self._session), sorted(engine.url for engine in self._each)
        if told and told != known:
            raise EngineError(f"the router at {self.url} has the engines {told} now, and had {known}")
        return await super().load()

    async def call(self, route: str, body: dict[str, Any] | None, timeout_s: float, *, missing_ok: bool = False) -> Any:
        if route == "/generate":
            return await super().call(route, body, timeout_s)
        bodies = [body] * len(self._each)
        if body and "rank_offset" in body:
            ranks = (body["world_size"] - 1) // len(self._each)
            bodies = [{**body, "rank_offset": 1 + n * ranks} for n in range(len(self._each))]
        calls = zip(self._each, bodies, strict=True)
        told = await asyncio.gather(*(e.call(route, own, timeout_s, missing_ok=missing_ok) for e, own in calls))
        return told[0]

    async def recover(self, timeout_s: float) -> None:
        await super().recover(timeout_s)
        self.ranks *= len(self._each)

    async def probe(self, probe: wire.Probe, timeout_s: float) -> float:
        for engine in self._each:
            engine.version = self.version
        return max(await asyncio.gather(*(engine.probe(probe, timeout_s) for engine in self._each)))

    async def shapes(self, timeout_s: float) -> dict[str, list[int]]:
        return await self._each[0].shapes(timeout_s)
