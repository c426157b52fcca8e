"""What the machine has left for further processes of a run that is on one machine alone."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import psutil

from common.config import Config
from common.gpus import visible_gpus

_GPUS_OF_DRIVER = Path("/proc/driver/nvidia/gpus")  # one entry for each, whatever CUDA_VISIBLE_DEVICES says
_REFRESH_S = 5.0  # over which the use of the processors is measured


@dataclass(frozen=True)
class Spare:
    """GPUs or processor cores of a machine, and how many of them are free; a part of a core may be."""

    device: Literal["GPU", "core"]
    total: int
    free: float

    def __str__(self) -> str:
        many = "s" if self.total != 1 else ""
        return f"{self.total} {self.device}{many}, {self.free:.1f} free"


class Machine:
    """Counts the free GPUs, or without any the idle cores, of the machine on which all processes of a run are.

    A run is known to be on one machine where actors reach the learner by its loopback address.
    """

    def __init__(self, config: Config) -> None:
        address = config.learner.address
        host = "127.0.0.1" if address.startswith("ipc:") else urlsplit(address).hostname or ""
        self._alone = config.learner.nodes == 1 and (host.startswith("127.") or host in ("localhost", "::1"))
        self._ranks = config.learner.ranks
        self._gpus = _count_gpus()
        self._measured_s, self._busy = -_REFRESH_S, psutil.cpu_percent() / 100

    def spare(self, engine_ranks: int) -> Spare | None:
        """What is free now; None if the run may have further machines.

        Args:
            engine_ranks: GPUs of all engines together, where engines are on GPUs.
        """
        if not self._alone:
            return None
        if self._gpus:
            return Spare("GPU", self._gpus, max(0, self._gpus - self._ranks - engine_ranks))
        if time.monotonic() >= self._measured_s + _REFRESH_S:
            self._measured_s, self._busy = time.monotonic(), psutil.cpu_percent() / 100
        cores = len(os.sched_getaffinity(0))
        return Spare("core", cores, cores * (1 - self._busy))


def _count_gpus() -> int:
    """GPUs of this machine; 0 if this process may not use any."""
    visible = len(visible_gpus())
    return max(visible, len(list(_GPUS_OF_DRIVER.iterdir())) if _GPUS_OF_DRIVER.is_dir() else 0) if visible else 0
