"""The section ``actor``."""

from __future__ import annotations

from pydantic import Field

from common.config.section import Port, Section


class ActorConfig(Section):
    name: str = ""  # unique in the run, and the seed of its engine's samples; empty: host and process id
    engine_url: str = ""  # attach to this SGLang server or sglang-router; empty: own a server as a child process
    engine_port: Port = 0  # of an owned server, on loopback; 0: a free one
    engine_args: dict[str, str | int | float | bool] = {}  # further flags of an owned server, "tp" = 2 is --tp 2
    groups_in_flight: int = Field(16, gt=0)  # leases it holds at most; how many, it finds itself: docs/tuning.md
    attempts: int = Field(3, gt=0)  # per engine or reward call before a group is handed back
    restarts: int = Field(5, ge=0)  # of a failing engine, with no weight update between; then the actor ends
    start_timeout_s: float = Field(600, gt=0)  # engine start, weights and kernels included
    request_timeout_s: float = Field(600, gt=0)  # one generation call, pauses for weight updates included
