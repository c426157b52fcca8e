"""``python -m actor CONFIG.toml [--section.key value]`` runs one actor."""

from __future__ import annotations

import asyncio
import os
import socket

from actor.lives import Lives
from common.config import Config
from common.net.rendezvous import Route, host_of, use_interface
from common.process import main
from common.prompts import PROMPT_STYLES
from common.tokenizer import load_tokenizer


def run(config: Config) -> None:
    """Runs an actor until the learner ends the run.

    Raises:
        FatalError: the learner or the engine cannot be reached or used.
    """
    name = config.actor.name or f"{socket.gethostname()}-{os.getpid()}"
    tokenizer = load_tokenizer(config.model.path)
    PROMPT_STYLES[config.model.prompt_style](tokenizer, config)  # refuses what it cannot use, before an engine starts
    timeout_s = config.actor.start_timeout_s
    learner = Route(config.run, "learner", config.learner.address, timeout_s)
    rewards = [
        Route(config.run, f"reward-{number}", address, timeout_s)
        for number, address in enumerate(config.reward.addresses)
    ]
    use_interface(host_of(learner.place.address))
    asyncio.run(Lives(config, name, tokenizer, learner, rewards).run())


if __name__ == "__main__":
    main(run)
