"""An actor whose engines stand behind a router gets answers from any of them and gives weights to each."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from actor.engine.client import Engine
from actor.engine.errors import EngineError
from actor.engine.fleet import EngineFleet, list_workers
from actor.engine.readiness import make_http_session
from actor.probing import prove
from common import wire
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


def engine_that_says(logprob: str, *usages: str) -> web.Application:
    """An engine with one log-probability for a probe of two tokens, and ranks that are so full."""

    async def generate(_: web.Request) -> web.Response:
        text = f'{{"meta_info": {{"input_token_logprobs": [[null, 3, null], [{logprob}, 4, null]]}}}}'
        return web.Response(text=text, content_type="application/json")

    async def loads(_: web.Request) -> web.Response:
        ranks = [f'{{"token_usage": {one}, "num_running_reqs": 2, "num_waiting_reqs": 1}}' for one in usages]
        return web.Response(text=f'{{"loads": [{", ".join(ranks)}]}}', content_type="application/json")

    app = web.Application()
    app.add_routes([web.post("/generate", generate), web.get("/v1/loads", loads)])
    return app


@pytest.mark.parametrize("wrong", ["NaN", "null", "Infinity", "-Infinity", "-1.5"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_engine_behind_a_router_that_is_wrong_fails_the_proof(wrong: str, place: int) -> None:
    probe = wire.Probe(ids=np.array([3, 4], np.int32), logprobs=np.array([-1.0], np.float32), tolerance=0.02)

    async def proof(*logprobs: str) -> float:
        async with make_http_session() as http:
            servers = [TestServer(engine_that_says(one)) for one in logprobs]
            for server in servers:
                await server.start_server()
            urls = [str(server.make_url("")).rstrip("/") for server in servers]
            try:
                return await prove(EngineFleet(urls, urls[0], http, 60, "drain"), probe, 60, "the weights")
            finally:
                for server in servers:
                    await server.close()

    assert asyncio.run(proof("-1.0", "-1.01", "-1.0")) == pytest.approx(0.01)
    said = ["-1.01"] * 3
    said[place] = wrong
    with pytest.raises(EngineError, match="with the weights the engine's log-probabilities of the probe are"):
        asyncio.run(proof(*said))


def test_gauges_of_which_one_is_no_number_are_none() -> None:
    async def gauges(*usages: str) -> dict[str, float]:
        async with TestServer(engine_that_says("0", *usages)) as server, make_http_session() as http:
            return await Engine(str(server.make_url("")).rstrip("/"), http, 60, "drain").read_gauges()

    assert asyncio.run(gauges("0.25", "0.5")) == {"usage": 0.5, "running": 4.0, "waiting": 2.0}
    assert asyncio.run(gauges("0.25", "NaN")) == {}
    assert asyncio.run(gauges("-0.001", "-0.002"))["usage"] == 0.0, "the learner takes no gauge below 0"
