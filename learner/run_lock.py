"""A lock on ``run.dir``: one learner at a time writes there."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from common.process import FatalError
from common.progress import Activity
from learner.supervision import CONNECTED_AGAIN

log = logging.getLogger("learner")

LOCK_FILE = "learner.lock"  # in run.dir; it stays, and means nothing unless a process holds the lock
_FORMER_S, _POLL_S = 900.0, 0.5
_AFTER_S = 5.0  # in which torchrun, whose store has a port that is needed again, ends after its ranks


def await_former(directory: Path) -> None:
    """Waits until a learner that a broken connection has cut off is gone, at most ``_FORMER_S``.

    Returns at once for a learner that was not started again: a second one that a user starts by mistake is told so.

    Raises:
        FatalError: the lock is still held, or the directory cannot be written.
    """
    if os.environ.get(CONNECTED_AGAIN):
        began = time.monotonic()
        with locked(directory, _FORMER_S):
            pass
        if time.monotonic() - began > _POLL_S:
            time.sleep(_AFTER_S)


@contextmanager
def locked(directory: Path, patience_s: float = 0.0) -> Iterator[None]:
    """Holds the lock of a run's directory, which is made if it is missing.

    The system frees the lock with the process that holds it, however that ends, so none is ever left behind.

    Args:
        patience_s: how long another learner that holds it may take to end.

    Raises:
        FatalError: another learner holds it, or the directory cannot be written.
    """
    path = directory / LOCK_FILE
    waited = f", after {patience_s:.0f} s still" if patience_s else ""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise FatalError(f"cannot write to run.dir = {directory}: {error.strerror}") from None
    with file:
        try:
            if not (_take(file) or (patience_s and _take_after(file, patience_s))):
                raise FatalError(
                    f"run.dir = {directory} is in use by {_owner(file)}{waited}: wait until that learner "
                    "has ended, end it, or give another run.dir"
                )
        except OSError as error:  # a file system without locks
            log.warning("cannot lock %s (%s): make sure that no other learner uses this run.dir", path, error.strerror)
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        file.flush()
        yield


def _take(file: TextIO) -> bool:
    """Takes the lock, unless another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take_after(file: TextIO, patience_s: float) -> bool:
    """Takes the lock once the learner that holds it has ended, if that is soon enough."""
    deadline = time.monotonic() + patience_s
    with Activity("learner", f"waiting until {_owner(file)} has saved and ended: the connection to it broke"):
        while time.monotonic() < deadline:
            time.sleep(_POLL_S)
            if _take(file):
                return True
    return False


def _owner(file: TextIO) -> str:
    file.seek(0)
    try:
        found = json.loads(file.read())
        return f"the learner with process id {found['pid']} on host {found['host']}"
    except (ValueError, LookupError, TypeError):  # that learner has not written it yet
        return "another learner"
