"""An actor whose engines stand behind a router gets answers from any of them and gives weights to each."""

from __future__ import annotations

import asyncio
import itertools
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from actor.engine.fleet import EngineFleet, list_workers
from actor.engine.server import EngineProcess
from common.config import load
from common.net.ports import reserve_port
from common.parent import die_with_parent
from tests.support.actor_pool import LIGHT, ActorPool
from tests.support.processes import forked

_PATIENCE_S = 600.0  # until all engines answer, on a busy machine


class Router(threading.Thread):
    """What an actor uses of sglang-router 0.3.2: generation by the engines in turn, their list, and 404 otherwise."""

    def __init__(self, urls: list[str]) -> None:
        super().__init__(daemon=True)
        self.urls, self.port, self.sent = urls, 0, Counter[str]()
        self._turns = itertools.cycle(urls)
        self._ready = threading.Event()
        self.start()
        assert self._ready.wait(_PATIENCE_S)

    def run(self) -> None:
        async def serve() -> None:
            app = web.Application()
            app.router.add_post("/generate", self._generate)
            app.router.add_get("/workers", self._workers)
            runner = web.AppRunner(app)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.port = runner.addresses[0][1]
            self._ready.set()
            await asyncio.Event().wait()

        asyncio.run(serve())

    async def _workers(self, request: web.Request) -> web.Response:
        return web.json_response({"workers": [{"id": url, "url": url} for url in self.urls]})

    async def _generate(self, request: web.Request) -> web.Response:
        url = next(self._turns)
        self.sent[url] += 1
        body = await request.json()
        async with aiohttp.ClientSession() as session, session.post(f"{url}/generate", json=body) as answer:
            return web.json_response(await answer.json(), status=answer.status)


@contextmanager
def stand_in(urls: list[str]) -> Iterator[tuple[str, Callable[[], Counter[str]]]]:
    router = Router(urls)
    yield f"http://127.0.0.1:{router.port}", lambda: router.sent


@contextmanager
def sglang_router(urls: list[str]) -> Iterator[tuple[str, Callable[[], Counter[str]]]]:
    """The real sglang-router, which takes the engines in turn and counts the answers of each."""
    pytest.importorskip("sglang_router", reason="pip install sglang-router for the test with the program itself")
    held = [reserve_port(), reserve_port()]
    port, counts = (str(holder.getsockname()[1]) for holder in held)
    url, flags = f"http://127.0.0.1:{port}", ["--policy", "round_robin", "--log-level", "warn", "--worker-urls", *urls]
    command = [sys.executable, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", port]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", counts, *flags]
    process = subprocess.Popen(command, preexec_fn=die_with_parent)

    async def known() -> list[str]:
        async with aiohttp.ClientSession() as session:
            return await list_workers(url, session)

    def sent() -> Counter[str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{counts}/metrics", timeout=10) as answer:
            told = answer.read().decode()
        found = re.findall(r'smg_worker_cb_outcomes_total{worker="(.*)",outcome="success"} (\d+)', told)
        return Counter({worker: int(count) for worker, count in found})

    try:
        deadline = time.monotonic() + _PATIENCE_S
        while asyncio.run(known()) != sorted(urls):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.2)
        yield url, sent
    finally:
        process.kill()
        process.wait()


@contextmanager
def engines(kind: str, model: Path, logs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    if kind == "light":
        monkeypatch.setenv("PYTHONPATH", LIGHT["PYTHONPATH"])
    config = load(["--model.path", str(model), "--model.dtype", "float32"])
    with forked():  # but for SGLang
        started = [EngineProcess(config, name, logs / f"engine-{name}.log") for name in ("one", "two")]

    async def ready() -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(engine.wait_until_ready(session, _PATIENCE_S) for engine in started))

    try:
        asyncio.run(ready())
        yield [engine.url for engine in started]
    finally:
        for engine in started:
            engine.stop()


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
