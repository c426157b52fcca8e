"""``python -m actor CONFIG.toml [--section.key value]``"""

from __future__ import annotations

import asyncio
import logging
import os
import socket

import zmq.asyncio
from transformers import PreTrainedTokenizerBase

from actor.engine.client import Engine, EngineError
from actor.engine.server import EngineProcess, client, start
from actor.life import Actor
from actor.scoring import Scoring
from common import wire
from common.config import Config
from common.net.rendezvous import Route, host_of, use_interface
from common.process import FatalError, main
from common.tokenizer import load_tokenizer

log = logging.getLogger("actor")

_LONGEST_PAUSE_S = 30.0  # between two starts of an engine
_FAREWELL_S = 6.0


def run(config: Config) -> None:
    name = config.actor.name or f"{socket.gethostname()}-{os.getpid()}"
    tokenizer = load_tokenizer(config.model.path)
    patience = config.actor.start_timeout_s
    learner = Route(config.run, "learner", config.learner.address, patience)
    rewards = [Route(config.run, f"reward-{n}", a, patience) for n, a in enumerate(config.reward.addresses)]
    use_interface(host_of(learner.place.address))
    asyncio.run(_live(config, name, tokenizer, learner, rewards))


async def _live(
    config: Config, name: str, tokenizer: PreTrainedTokenizerBase, learner: Route, rewards: list[Route]
) -> None:
    """One life after the other, each with a fresh engine, until the learner ends the run."""
    context = zmq.asyncio.Context()
    failures, lived = 0, False
    try:
        async with client() as session:
            learner.connect(context, name)
            scoring = Scoring(context, config.reward.request_timeout_s, rewards)
            while True:
                engine = None
                try:
                    engine = await start(config, name, session)
                    actor = Actor(config, name, engine, learner, scoring, tokenizer)
                    await _with_engine(actor, engine)
                    return
                except EngineError as error:
                    failures = 1 if engine is not None and actor.updates else failures + 1
                    if not lived and engine is None:
                        raise FatalError(str(error)) from None
                    if failures > config.actor.restarts:
                        raise FatalError(f"the engine failed {failures} times in a row: {error}") from None
                    log.error("starting the engine again: %s", error)
                    await learner.send(wire.Leave(reason=str(error)))
                finally:
                    if engine is not None and engine.process is not None:
                        engine.process.stop()
                lived = True
                await asyncio.sleep(min(2.0 ** (failures - 1), _LONGEST_PAUSE_S))
    finally:
        context.destroy(linger=500)  # the last word, why an update failed, may be on its way


async def _with_engine(actor: Actor, engine: Engine) -> None:
    tasks = [asyncio.create_task(actor.run())]
    if engine.process is not None:
        tasks.append(asyncio.create_task(_watch(engine.process)))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_FAREWELL_S)


async def _watch(process: EngineProcess) -> None:
    while True:
        process.check()
        await asyncio.sleep(1)


if __name__ == "__main__":
    main(run)
