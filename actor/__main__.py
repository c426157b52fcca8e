"""``python -m actor CONFIG.toml [--section.key value]``"""

from __future__ import annotations

import asyncio
import logging
import os
import socket

import aiohttp
import zmq.asyncio
from transformers import PreTrainedTokenizerBase

from actor.actor import Actor
from actor.engine import Engine, EngineProcess, answers
from actor.scoring import Scoring
from common import sockets
from common.config import Config
from common.process import FatalError, main
from common.tokenizer import load_tokenizer

log = logging.getLogger("actor")


def run(config: Config) -> None:
    name = config.actor.name or f"{socket.gethostname()}-{os.getpid()}"
    tokenizer = load_tokenizer(config.model.path)
    sockets.check_address(config.learner.address)
    process = None
    if not config.actor.engine_url:
        process = EngineProcess(config, name, config.run.dir / "logs" / f"engine-{name}.log")
    try:
        asyncio.run(_live(config, name, process, tokenizer))
    finally:
        if process is not None:
            process.stop()


async def _live(config: Config, name: str, process: EngineProcess | None, tokenizer: PreTrainedTokenizerBase) -> None:
    context = zmq.asyncio.Context()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        if process is not None:
            await process.ready(session, config.actor.start_timeout_s)
            url = process.url
        else:
            url = config.actor.engine_url.rstrip("/")
            if not await answers(url, session):
                raise FatalError(f"no SGLang server answers at actor.engine_url = {url}")
        log.info("engine of actor %s is ready at %s", name, url)
        engine = Engine(url, session, config.actor.request_timeout_s)
        learner = sockets.connect(context, config.learner.address, name)
        actor = Actor(config, name, engine, learner, Scoring(context, config.reward), tokenizer)
        tasks = [asyncio.create_task(actor.run())]
        if process is not None:
            tasks.append(asyncio.create_task(_watch(process)))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            context.destroy(linger=500)  # the last word, why an update failed, may be on its way


async def _watch(process: EngineProcess) -> None:
    while True:
        process.check()
        await asyncio.sleep(1)


if __name__ == "__main__":
    main(run)
