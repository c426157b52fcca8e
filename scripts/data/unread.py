"""Names the questions whose accepted answers the term "math" cannot read. ``scripts.ops.launch_learner`` runs it.

    python -m scripts.data.unread CONFIG.toml ... [--section.key value]

What is wrong with the configuration or with the files is not said here: whoever reads them for a run says it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from common.config import Config, ConfigError, load
from common.process import LOG_FORMAT, LOG_TIME, FatalError
from scripts.data.golds import unread_golds

log = logging.getLogger("scripts.data")


def warn_of_unread_golds(config: Config) -> None:
    """Logs a warning for each of the first 20 such rows of a source, and one with the number of the others.

    Raises:
        FatalError: a source cannot be read.
    """
    for source in filter(None, (config.data.train, config.data.heldout)):
        for line in unread_golds(source, config).lines("unread"):
            log.warning("unread: %s", line)


def main(arguments: Sequence[str]) -> None:
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, datefmt=LOG_TIME, stream=sys.stderr)
    try:
        warn_of_unread_golds(load(arguments))
    except (ConfigError, FatalError) as error:
        log.debug("%s", error)


if __name__ == "__main__":
    main(sys.argv[1:])
