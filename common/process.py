"""What every process of a run does: it reads its configuration, logs, and stops when it is asked to."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable

from common.config import Config, ConfigError, load, usage

LOG_FORMAT, LOG_TIME = "%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"


class FatalError(RuntimeError):
    """Ends the process. The message says what failed and what to do, so no traceback is printed."""


def main(body: Callable[[Config], None]) -> None:
    """Runs the process ``python -m PACKAGE CONFIG.toml ... [--section.key value] ...``.

    The exit code is 0 when ``body`` returns, 1 for a FatalError, 2 for a wrong configuration, and 130 when the process
    is interrupted by SIGINT or SIGTERM.
    """
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, datefmt=LOG_TIME, stream=sys.stderr)
    interrupt_when_asked()
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(f"usage: scripts/launch_learner.sh, launch_reward.sh or launch_actor.sh {usage()}")
        return
    try:
        body(load(sys.argv[1:]))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except FatalError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def interrupt_when_asked() -> None:
    """From now on SIGTERM and SIGINT raise KeyboardInterrupt on the main thread, so that both clean up.

    A shell starts its background jobs with SIGINT ignored, so that has to be undone.
    """
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.default_int_handler)
