"""Which process an actor is, and whether that of another actor on the same machine is gone."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

import psutil

from common import wire
from common.machine import boot_id

_SAME_S = 2.0  # by which two readings of when a process started may differ


def own_process() -> wire.ActorProcess:
    """This process."""
    machine = ""
    boot = boot_id()
    with suppress(OSError):  # other systems than Linux do not say; then nobody can tell that we are gone
        machine = f"{boot} {os.stat('/proc/self/ns/pid').st_ino}" if boot else ""
    started_s = _seconds_after_boot(psutil.Process())
    return wire.ActorProcess(host=socket.gethostname(), pid=os.getpid(), started_s=started_s, machine=machine)


def is_gone(other: wire.ActorProcess, own: wire.ActorProcess) -> bool:
    """Whether another actor's process has certainly ended. False where that cannot be seen from here."""
    if not own.machine or other.machine != own.machine:
        return False
    try:
        process = psutil.Process(other.pid)
        is_other = abs(_seconds_after_boot(process) - other.started_s) > _SAME_S
        return bool(is_other or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def _seconds_after_boot(process: psutil.Process) -> float:
    """When the process started. Unlike the time of day, this is the same after somebody has set the machine's clock.

    Raises:
        psutil.Error: there is no such process any more, or it may not be looked at.
    """
    return max(0.0, float(process.create_time() - psutil.boot_time()))
