"""``torchrun ... -m learner CONFIG.toml [--section.key value]``: one rank of the learner; see ``learner.process``."""

import atexit
import logging
import os
import sys
import threading
import traceback

from common.config import Config
from common.parent import die_with_launcher
from common.process import main
from common.progress import LOGGER, Activity

_EXIT_S = 60.0  # how long the functions that libraries have registered for the end may take


def run(config: Config) -> None:
    """Runs one rank; blocks until the run has ended."""
    if int(os.environ.get("RANK", "0")) > 0:
        logging.getLogger(f"{LOGGER}.learner").disabled = True  # rank 0 speaks for all
    with Activity("learner", "importing torch and transformers"):
        from learner.process import learn  # takes ten seconds; by now the rank dies with its launcher

    learn(config)


def run_to_the_end() -> None:
    """Runs one rank, and ends the process without waiting for its threads.

    One of them may be inside torch, in a broadcast to an engine that is gone or in a collective with a rank that is.
    Python would wait for it, or crash under it.
    """
    code: object = 0
    try:
        main(run)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # a mistake of this program, shown as Python would show it
        traceback.print_exc()
        code = 1
    if code == 0:  # libraries write at the end; a tracker that its service does not answer would do so for ever
        ending = threading.Thread(target=atexit._run_exitfuncs, name="exit functions", daemon=True)
        ending.start()
        ending.join(_EXIT_S)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    die_with_launcher()  # torchrun starts its processes in sessions of their own
    run_to_the_end()
