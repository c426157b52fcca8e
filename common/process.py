"""What every process does: log, stop when asked, die with its parent, know how its time was spent."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from common.config import Config, ConfigError, load, usage

_PR_SET_PDEATHSIG = 1


class FatalError(RuntimeError):
    """Ends the process; the message says what failed and what to do, a traceback would only hide it."""


def main(body: Callable[[Config], None]) -> None:
    """Runs a process: ``python -m PACKAGE CONFIG.toml [--section.key value]``.

    Exits with 0 when ``body`` returns, 2 for a wrong configuration, 1 for a FatalError, 130 when interrupted.
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
    """Asks Linux to kill this process when the one that started it is gone; elsewhere does nothing.

    For ``preexec_fn``: a child must not outlive a parent that was killed and could not clean up.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def reserve(port: int = 0) -> socket.socket:
    """A port of loopback, 0 for any, kept for the one who is told of it: nobody who asks for any is given it.

    The socket is bound with SO_REUSEADDR and does not listen, so Linux lets a listener with that option in beside it.

    Raises:
        OSError: somebody listens there.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind(("127.0.0.1", port))
    except OSError:
        holder.close()
        raise
    return holder


def gpus() -> list[str]:
    """The NVIDIA GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; asks the driver, so needs no torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[: count.value] if named else [str(number) for number in range(count.value)]


def has_cuda() -> bool:
    return bool(gpus())


class Stopwatch:
    """Seconds spent in each state; a thread-safe ledger of who works and who waits.

    Example:
        >>> watch = Stopwatch()
        >>> with watch("train"):
        ...     pass
        >>> sorted(watch.seconds())
        ['train']
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, state: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self.add(state, time.monotonic() - begin)

    def add(self, state: str, seconds: float) -> None:
        with self._lock:
            self._seconds[state] = self._seconds.get(state, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        with self._lock:
            return dict(self._seconds)
