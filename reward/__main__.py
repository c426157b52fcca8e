"""``python -m reward CONFIG.toml [--reward.replica 1 ...]``: the reward service of all actors.

It keeps nothing that matters between requests: it may be killed and restarted at any time, and may run several times.
Reference embeddings are kept beside the run, so that a restarted process need not make them again.
"""

from __future__ import annotations

import logging

import zmq

from common.config import Config
from common.net import rendezvous
from common.net.sockets import bind
from common.process import main
from reward.service import Service

logger = logging.getLogger("reward")


def serve(config: Config) -> None:
    """
    Raises:
        FatalError: the address is taken, or a model cannot be loaded.
        ConfigError: a calibration file is missing or malformed.
    """
    reward = config.reward
    address = reward.addresses[reward.replica]
    with zmq.Context() as context, bind(context, address) as socket:
        rendezvous.announce(config.run, f"reward-{reward.replica}", address)
        service = Service(context, socket, reward)
        try:
            # Not imported at the top: it takes seconds, and a taken port should be known at once.
            from reward.scorer import Scorer

            cache = config.run.dir / "reward" / f"references-{reward.replica}.npz"
            scorer = Scorer(reward, config.run.languages, cache, config.model.header)
            scorer.warm_up()
            logger.info("reward is ready on %s", address)
            try:
                service.run(scorer.score, scorer.counts)
            finally:
                scorer.save()
        finally:
            service.close()
            logger.info("counters: %s", service.all_counts())


if __name__ == "__main__":
    main(serve)
