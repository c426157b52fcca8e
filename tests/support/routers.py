"""Several engines behind a router: a small one of our own, or sglang-router itself where it is installed."""

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

import aiohttp
import pytest
from aiohttp import web

from actor.engine.fleet import list_workers
from actor.engine.server import EngineProcess
from common.config import load
from common.net.ports import reserve_port
from common.parent import die_with_parent
from tests.support.actor_pool import LIGHT
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
def engines(kind: str, model: Path, logs: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> Iterator[list[str]]:
    """The addresses of two engines, "light" ones or "sglang"; ``flags`` are settings of the configuration."""
    if kind == "light":
        monkeypatch.setenv("PYTHONPATH", LIGHT["PYTHONPATH"])
    config = load(["--model.path", str(model), "--model.dtype", "float32", *flags])
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
