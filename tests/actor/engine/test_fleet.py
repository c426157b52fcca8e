"""An actor whose engines stand behind a router gets answers from any of them and gives weights to each."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from actor.engine.fleet import EngineFleet, list_workers
from tests.support.actor_pool import ActorPool
from tests.support.routers import engines, sglang_router, stand_in


@pytest.mark.parametrize(
    ("router", "kind"),
    [(stand_in, "light"), pytest.param(sglang_router, "sglang", marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_weights_reach_every_engine_behind_a_router(
    router: Any, kind: str, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ActorPool(tiny_policy, tmp_path)
    with engines(kind, tiny_policy, tmp_path, monkeypatch) as urls, router(urls) as (url, sent):
        try:
            pool.start("routed", "--actor.engine_url", url)
            pool.here("routed")
            assert pool.server.members()["routed"].engine_ranks == 2
            for _ in range(2):
                assert set(pool.publish().members) == {"routed"}
                pool.until(lambda: pool.proved("routed"), f"version {pool.version} proved by both engines")
            versions = asyncio.run(answers(url, urls))
            assert set(sent()) == set(urls)
            if kind == "light":  # the real router changes its list by its own health checks
                urls.pop()
                pool.until(lambda: ranks(pool) == [1], "the actor comes back with the engine that is left")
                assert "has the engines" in pool.log("routed").read_text()
                assert set(pool.publish().members) == {"routed"}
        finally:
            pool.close()
        assert versions == {pool.version - (kind == "light")}, "of every token, of either engine"


def ranks(pool: ActorPool) -> list[int]:
    return [peer.engine_ranks for peer in pool.server.members().values()]


async def answers(url: str, engines: list[str]) -> set[int]:
    """The policy versions of the tokens of some answers through the router."""
    async with aiohttp.ClientSession() as session:
        assert await list_workers(url, session) == sorted(engines) and await list_workers(engines[0], session) == []
        engine = EngineFleet(engines, url, session, 60, "retract")
        sampling: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 4}
        found = [await engine.generate([[5, 6, 7]], sampling) for _ in range(4)]
    return {int(version) for (answer,) in found for version in answer.versions}
