"""``python -m actor CONFIG.toml [--section.key value]`` runs one actor."""

from __future__ import annotations

import asyncio
import os
import socket

from common.config import Config
from common.gpus import usable_gpus
from common.net.rendezvous import Route, host_of, use_interface
from common.process import main
from common.progress import BRIEF_S, Activity


def run(config: Config) -> None:
    """Runs an actor until the learner ends the run.

    Raises:
        FatalError: the learner, the engine or its GPU cannot be reached or used.
    """
    if not config.actor.engine_url:
        usable_gpus()  # before the learner is waited for, which may take hours
    with Activity("actor", "importing transformers"):
        from actor.lives import AskedToEnd, LifeRunner
        from common.prompts import PROMPT_STYLES
        from common.rollout_settings import rollout_settings
        from common.tokenizer import load_tokenizer
    name = config.actor.name or f"{socket.gethostname()}-{os.getpid()}"
    tokenizer = load_tokenizer(config.model.path)
    PROMPT_STYLES[config.model.prompt_style](tokenizer, config)  # refuses what it cannot use, before an engine starts
    timeout_s = config.actor.start_timeout_s
    settings = rollout_settings(config, tokenizer)
    missing = (
        "start what has no file there, with scripts/launch_learner.sh or launch_reward.sh and the same configuration"
    )
    looking = f"looking for the learner and the reward service in {config.run.rendezvous}"
    with Activity("actor", looking, missing=missing, silent_s=BRIEF_S):
        learner = Route(config.run, "learner", config.learner.address, timeout_s)
        rewards = [
            Route(config.run, f"reward-{number}", address, timeout_s)
            for number, address in enumerate(config.reward.addresses)
        ]
    use_interface(host_of(learner.place.address))
    try:
        asyncio.run(LifeRunner(config, name, tokenizer, learner, rewards, settings).run())
    except (AskedToEnd, asyncio.CancelledError):
        raise KeyboardInterrupt from None


if __name__ == "__main__":
    main(run)
