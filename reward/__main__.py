"""``python -m reward CONFIG.toml [--reward.replica 1 ...]`` starts a reward process, which scores for all actors.

It keeps nothing that matters between two requests. It may be killed and restarted at any time, and several of them may
run side by side. Reference embeddings and judgements are kept in the run's directory, so that a restarted process does
not have to compute them again. A reward function of the user's own is read again at each start.
"""

from __future__ import annotations

import logging

import zmq

from common.config import Config
from common.net import rendezvous
from common.net.sockets import bind
from common.process import main
from common.progress import Activity
from reward.service import Service

logger = logging.getLogger("reward")


def serve(config: Config) -> None:
    """Binds the address, loads the models, and serves until interrupted.

    Raises:
        FatalError: the address is already in use, or a model cannot be loaded.
        ConfigError: a calibration file is missing or malformed, or answers are to be gated by their language and the
            language model does not know a language of the run.
    """
    reward = config.reward
    address = reward.addresses[reward.replica]
    with zmq.Context() as context, bind(context, address) as socket:
        rendezvous.announce(config.run, f"reward-{reward.replica}", address)
        service = Service(context, socket, reward)
        try:
            with Activity("reward", f"loading the language model and the embedder {reward.embedder}"):
                # Imported only here, because it takes seconds, and an address in use should be reported at once.
                from reward.scorer import Scorer

                scorer = Scorer(reward, config.run.languages, config.run.dir / "reward", config.model.header)
                scorer.check_languages(config)
                scorer.warm_up()
            logger.info("reward is ready on %s", address)
            try:
                service.run(scorer)
            finally:
                scorer.close()
        finally:
            service.close()
            logger.info("counters: %s", service.all_counts())


if __name__ == "__main__":
    main(serve)
