"""A lock on ``run.dir``: one learner at a time writes there."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.process import FatalError

log = logging.getLogger("learner")

LOCK_FILE = "learner.lock"  # in run.dir; it stays, and means nothing unless a process holds the lock


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the lock of a run's directory, which is made if it is missing.

    The system frees the lock with the process that holds it, however that ends, so none is ever left behind.

    Raises:
        FatalError: another learner holds it, or the directory cannot be written.
    """
    path = directory / LOCK_FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise FatalError(f"cannot write to run.dir = {directory}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise FatalError(
                f"run.dir = {directory} is in use by {_owner(file.read())}: wait until that learner has ended, end it, "
                "or give another run.dir"
            ) from None
        except OSError as error:  # a file system without locks
            log.warning("cannot lock %s (%s): make sure that no other learner uses this run.dir", path, error.strerror)
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        file.flush()
        yield


def _owner(content: str) -> str:
    try:
        found = json.loads(content)
        return f"the learner with process id {found['pid']} on host {found['host']}"
    except (ValueError, LookupError, TypeError):  # that learner has not written it yet
        return "another learner"
