"""Names the rows whose answers can earn nothing, as a term reads no accepted answer or a column is missing.

    python -m scripts.data.unscorable CONFIG.toml ... [--section.key value]

``scripts.ops.launch_learner`` runs it. What is wrong with the configuration or with the files is not said here: whoever
reads them for a run says it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from common.config import Config, ConfigError, load
from common.process import LOG_FORMAT, LOG_TIME, FatalError
from scripts.data.further_columns import rows_without_columns
from scripts.data.golds import unread_golds

log = logging.getLogger("scripts.data")


def warn_of_rows(config: Config) -> None:
    """Logs a warning for each of the first 20 such rows of a source and kind, and one with the number of the others.

    Raises:
        FatalError: a source cannot be read.
    """
    for source in filter(None, (config.data.train, config.data.heldout)):
        for kind, problems in (
            ("unread", unread_golds(source, config)),
            ("lacks", rows_without_columns(source, config)),
        ):
            for line in problems.lines(kind):
                log.warning("%s: %s", kind, line)


def main(arguments: Sequence[str]) -> None:
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, datefmt=LOG_TIME, stream=sys.stderr)
    try:
        warn_of_rows(load(arguments))
    except (ConfigError, FatalError) as error:
        log.debug("%s", error)


if __name__ == "__main__":
    main(sys.argv[1:])
