"""Ends a process with the process that started it. Imports nothing slow, because it is the first thing done."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1
LAUNCHER = "LRPOLAUNCHER"  # the environment variable that tells a rank which process started it


def die_with_parent(parent: int | None = None) -> None:
    """Asks Linux to kill this process as soon as its parent process is gone. Does nothing on other systems.

    A child process must not outlive a parent that was killed and could not clean up. As ``preexec_fn`` of the child,
    ``partial(die_with_parent, os.getpid())`` leaves no gap; a process that somebody else's code starts calls it before
    its other imports, which may take ten seconds.

    Args:
        parent: the process number that the parent should have. If the parent is another one, it was gone already when
            Linux was asked, and this process ends at once. None if it is not known.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def go_on_without_parent() -> None:
    """Asks Linux to let this process go on, if it is stopped, when its parent process is gone.

    For a process that then has something to do, which it could not while it is stopped (SIGSTOP). Does nothing on other
    systems, and nothing to a process that runs.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)


@contextmanager
def launcher_of_ranks() -> Iterator[None]:
    """Within it, ranks that this process starts know it as their parent; see ``die_with_launcher``."""
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[LAUNCHER]


def die_with_launcher() -> None:
    """``die_with_parent`` for a rank, which torchrun starts; without a launcher of ours the parent is not compared."""
    launcher = os.environ.get(LAUNCHER)
    die_with_parent(int(launcher) if launcher else None)
