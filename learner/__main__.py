"""``torchrun ... -m learner CONFIG.toml [--section.key value]``: one rank of the learner; see ``learner.process``."""

import logging
import os

from common.config import Config
from common.parent import die_with_launcher
from common.process import main
from common.progress import LOGGER, Activity


def run(config: Config) -> None:
    """Runs one rank; blocks until the run has ended."""
    if int(os.environ.get("RANK", "0")) > 0:
        logging.getLogger(f"{LOGGER}.learner").disabled = True  # rank 0 speaks for all
    with Activity("learner", "importing torch and transformers"):
        from learner.process import learn  # takes ten seconds; by now the rank dies with its launcher

    learn(config)


if __name__ == "__main__":
    die_with_launcher()  # torchrun starts its processes in sessions of their own
    main(run)
