"""Directories for files that one process of a run leaves for another, in the directory ``sync.directory``.

Whoever is killed cannot delete what it has written. So each such directory lies in one that belongs to the run alone,
and the process that made it holds a lock in it, which the system frees when the process ends, however that happens.
Before a process makes a directory it deletes those of its own host in which nobody holds the lock: a file system that
several hosts share may keep locks to the host that took them. A warning names those of other hosts in which the lock
looks free. The files of another run lie elsewhere.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import logging
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.config import Config, SyncConfig
from common.machine import boot_id

log = logging.getLogger("files")

_LOCK_FILE = "owner.lock"
_NEW = ".new"  # suffix of a directory whose lock is not held yet; it is left alone
_ATTEMPTS = 10  # to make a directory while another process removes the empty one above it


def sync_of_run(config: Config) -> SyncConfig:
    """The section ``sync`` with a directory inside ``sync.directory`` that is the run's alone, by its ``run.dir``."""
    run = hashlib.sha256(str(config.run.dir.absolute().resolve()).encode()).hexdigest()[:16]
    return config.sync.model_copy(update={"directory": config.sync.directory / f"lrpo-{run}"})


@contextmanager
def owned_directory(parent: Path) -> Iterator[Path]:
    """A new directory in ``parent``, which is deleted at the end of the block, with ``parent`` where that is empty.

    On entry, what processes of this host that have ended left in ``parent`` is deleted. On a file system without locks,
    nobody's files are.

    Raises:
        OSError: it cannot be made.
    """
    delete_left_behind(parent)
    name = uuid.uuid4().hex[:8]
    new = _make(parent / f"{name}{_NEW}")
    try:
        with (new / _LOCK_FILE).open("w") as lock:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.write(json.dumps({"host": socket.gethostname(), "boot": boot_id()}))
            lock.flush()
            yield new.rename(parent / name)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(parent / name, ignore_errors=True)
        with suppress(OSError):  # others use it
            parent.rmdir()


def delete_left_behind(parent: Path) -> None:
    """Deletes the directories in ``parent`` whose process was on this host and has ended. Blocks meanwhile.

    Those of processes on other hosts, which may have ended, stay, as do those that do not say whose they are, as a
    version before left them: a warning names each.
    """
    for directory in sorted(parent.glob("*")):
        if directory.suffix == _NEW:
            continue
        with suppress(OSError), (directory / _LOCK_FILE).open("r+") as lock:  # no such file; no locks; somebody's lock
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            owner = lock.read()
            if not _is_of_this_host(owner):
                _warn_of_others(directory, _host(owner))
                continue
            shutil.rmtree(directory, ignore_errors=True)
            log.info("deleted %s, which a process of this run left behind when it was killed", directory)


@functools.cache  # once for each, however often this process makes a directory
def _warn_of_others(directory: Path, host: str) -> None:
    """Says that a directory of another host is left alone.

    Args:
        host: of the process that made the directory; empty where it did not note it.
    """
    log.warning(
        "%s was made by %s, and is not deleted: this host cannot tell whether it is still used. Delete it if no "
        "process of this run runs %s",
        directory,
        f"a process of this run on host {host}" if host else "an earlier version, which did not note its host",
        f"on {host}" if host else "on another host",
    )


def _host(owner: str) -> str:
    """The host that the text of a lock file names; empty where it names none."""
    try:
        return str(json.loads(owner)["host"])
    except (ValueError, TypeError, KeyError):
        return ""


def _is_of_this_host(owner: str) -> bool:
    """Whether the owner of a lock file ran on this machine, or on one of its name before it was started anew."""
    try:
        found = json.loads(owner)
        return bool(found["boot"] and found["boot"] == boot_id()) or found["host"] == socket.gethostname()
    except (ValueError, TypeError, KeyError):  # written by something else
        return False


def _make(directory: Path) -> Path:
    for attempt in range(_ATTEMPTS):
        try:
            directory.mkdir(parents=True)
            break
        except FileNotFoundError:  # the one above it was removed in this moment
            if attempt == _ATTEMPTS - 1:
                raise
    return directory
