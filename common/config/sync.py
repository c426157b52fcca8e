"""The section ``sync``: how new weights reach the engines."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from common.config.section import Directory, Port, Section


class SyncConfig(Section):
    """Weight sync; docs/weight-sync.md compares the ways to pause."""

    # How an actor's engine gets the weights: "group" through a process group with the learner; "shared" from the
    # learner's memory on the same machine (or GPU, with the same CUDA_VISIBLE_DEVICES), which then holds a second copy
    # of the weights; "disk" from files, for an engine that can do neither.
    transport: Literal["group", "shared", "disk"] = "group"
    backend: Literal["auto", "gloo", "nccl"] = "auto"  # of process groups; "auto" is nccl when the learner has CUDA
    host: str = ""  # where engines find the learner's store; empty means the host of learner.address
    port: Port = 0  # of that store; 0 means any free one
    directory: Directory = Path("/dev/shm")  # of the files of "disk"; memory, if learner and engine share a machine
    # What happens to answers in flight when weights arrive: "retract" puts them back, to be continued under the new
    # weights with a fresh cache; "in_place" continues them with their old cache; "drain" lets them end first.
    pause: Literal["retract", "in_place", "drain"] = "retract"
    bucket_mb: float = Field(256, gt=0)  # MiB of weights that travel in one piece
    # Seconds for each of: forming a process group, a pause, a probe. A transfer has these seconds and, on top, the
    # time that its bytes take at slowest_mb_per_s, one engine of a learner node after the other.
    timeout_s: float = Field(60, gt=0)
    slowest_mb_per_s: float = Field(20, gt=0)
    drain_s: float = Field(600, gt=0)  # seconds that answers in flight may take to end when pause = "drain"
    # How far an engine's log-probabilities of the probe may be from the learner's, mean absolute difference in nats.
    # 0 means 1e-3 where engine and learner compute in float32, and a bound on rounding errors elsewhere.
    probe_tolerance: float = Field(0, ge=0)
