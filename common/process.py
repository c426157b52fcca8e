"""What every process of a run does: it logs, stops when it is asked to, and dies with the process that started it."""

from __future__ import annotations

import ctypes
import logging
import signal
import sys
from collections.abc import Callable

from common.config import Config, ConfigError, load, usage

_PR_SET_PDEATHSIG = 1


class FatalError(RuntimeError):
    """Ends the process. The message says what failed and what to do, so no traceback is printed."""


def main(body: Callable[[Config], None]) -> None:
    """Runs the process ``python -m PACKAGE CONFIG.toml ... [--section.key value] ...``.

    The exit code is 0 when ``body`` returns, 1 for a FatalError, 2 for a wrong configuration, and 130 when the process
    is interrupted by SIGINT or SIGTERM.
    """
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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


def die_with_parent() -> None:
    """Asks Linux to kill this process as soon as its parent process is gone. Does nothing on other systems.

    Use it as ``preexec_fn`` of a child process, which must not outlive a parent that was killed and could not clean up.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
