"""The section ``sync``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from common.config.section import Port, Section


class SyncConfig(Section):
    """How new weights reach the engines."""

    # Of an actor: the learner's group; its memory (or GPU, with the same CUDA_VISIBLE_DEVICES), where it holds a second
    # copy of the weights; or files, for an engine that can do neither.
    transport: Literal["group", "shared", "disk"] = "group"
    backend: Literal["auto", "gloo", "nccl"] = "auto"  # of groups; auto: nccl when the learner has CUDA
    host: str = ""  # where engines find the learner's store; empty: the host of learner.address
    port: Port = 0  # of that store; 0: a free one
    directory: Path = Path("/dev/shm")  # what goes by disk lies here; shared memory where learner and engine share it
    pause: Literal["retract", "in_place", "drain"] = "retract"  # of answers in flight; docs/staleness.md compares them
    bucket_mb: float = Field(256, gt=0)
    timeout_s: float = Field(60, gt=0)  # of each of: forming a group, a pause, a probe; and of a transfer, on top of
    slowest_mb_per_s: float = Field(20, gt=0)  # the time its bytes take at this speed, one engine after the other
    drain_s: float = Field(600, gt=0)  # how long answers in flight may take to end when pause = "drain"
    probe_tolerance: float = Field(
        0, ge=0
    )  # nats; 0: 1e-3 if engine and learner compute in float32, else learner/train/trainer.py
