"""Opens the engine of an actor: a server of its own, one that already runs, or several behind an sglang-router."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import aiohttp

from actor.engine.client import Engine
from actor.engine.errors import EngineError
from actor.engine.fleet import EngineFleet, list_workers
from actor.engine.readiness import is_ready, is_up, resume_if_paused
from actor.engine.server import EngineProcess
from common.config import Config
from common.progress import BRIEF_S, Activity

log = logging.getLogger("actor.engine")

_POLL_S = 0.5


class OpenedEngine(NamedTuple):
    """An engine that is ready to generate, and its process if the actor started it."""

    engine: Engine
    process: EngineProcess | None


@asynccontextmanager
async def open_engine(
    config: Config, name: str, http: aiohttp.ClientSession, *, again: bool = False
) -> AsyncIterator[OpenedEngine]:
    """The engine of actor ``name``: a child process, or what runs at ``actor.engine_url``.

    On entry waits until the engine is ready, a child at most ``actor.start_timeout_s`` seconds. On exit stops a child,
    which blocks for at most 4 seconds; an engine at ``actor.engine_url`` keeps running.

    Args:
        again: whether the actor has had an engine before. If that ran at ``actor.engine_url``, its own supervisor may
            be starting it again, which is waited for as long as for a child.

    Raises:
        EngineError: the child did not start, or no server answers at ``actor.engine_url``.
        FatalError: ``actor.engine_port`` is taken.
    """
    if config.actor.engine_url:
        engine = await _attach(config, http, config.actor.start_timeout_s if again else 0.0)
        await _make_ready(engine, name, config)
        yield OpenedEngine(engine, None)
        return
    process = EngineProcess(config, name, config.run.dir / "logs" / f"engine-{name}.log")
    try:
        await process.wait_until_ready(http, config.actor.start_timeout_s)
        engine = Engine(process.url, http, config.actor.request_timeout_s, config.sync.pause)
        await _make_ready(engine, name, config)
        yield OpenedEngine(engine, process)
    finally:
        process.stop()


async def _attach(config: Config, http: aiohttp.ClientSession, patience_s: float) -> Engine:
    """The engine at ``actor.engine_url``.

    SGLang calls a paused server not ready, and an actor that ended in a weight update has left its engine paused. It is
    to go on, but not within the weight update of another actor, which should be over after twice ``sync.timeout_s``.

    Args:
        patience_s: how long a server that does not answer, or that is starting, is waited for.

    Raises:
        EngineError: no server is ready there.
    """
    url = config.actor.engine_url.rstrip("/")
    timeout_s, pause_mode = config.actor.request_timeout_s, config.sync.pause
    began, longest_pause_s = time.monotonic(), 2 * config.sync.timeout_s
    with Activity("actor", f"waiting for the engine at {url}", silent_s=BRIEF_S):
        while True:
            if workers := await list_workers(url, http):
                return EngineFleet(workers, url, http, timeout_s, pause_mode)
            waited_s = time.monotonic() - began
            if await is_ready(url, http) or (waited_s > longest_pause_s and await resume_if_paused(url, http)):
                return Engine(url, http, timeout_s, pause_mode)
            if waited_s > max(patience_s, longest_pause_s if await is_up(url, http) else 0.0):
                raise EngineError(f"no SGLang server answers at actor.engine_url = {url}")
            await asyncio.sleep(_POLL_S)


async def _make_ready(engine: Engine, name: str, config: Config) -> None:
    await engine.recover(config.sync.timeout_s)
    log.info("the engine of actor %s is ready at %s", name, engine.url)
