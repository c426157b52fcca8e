"""The section ``actor``."""

from __future__ import annotations

from pydantic import Field

from common.config.section import Port, Section


class ActorConfig(Section):
    """One actor process and its engine."""

    name: str = ""  # unique in the run, and the seed of its engine's samples; empty means host and process number
    engine_url: str = ""  # attach to this SGLang server or sglang-router; empty means a server as a child process
    engine_port: Port = 0  # loopback port of an own server; 0 means any free one
    engine_args: dict[str, str | int | float | bool] = {}  # further flags of an own server: "tp" = 2 becomes --tp 2
    groups_in_flight: int = Field(16, gt=0)  # most groups it works on at once; it finds how many fit (docs/tuning.md)
    attempts: int = Field(3, gt=0)  # tries of generation, and of scoring, before a group is handed back
    score_patience_s: float = Field(600, gt=0)  # how long answers wait while the reward service or a judge is out
    # Failures of its engine in a row, without a weight update between, before it ends; one if the engine never started.
    restarts: int = Field(5, ge=0)
    # Each of these may take so long: its engine's start; an attached engine to come back; the learner's and the reward
    # processes' rendezvous files to appear; the learner to be heard again; the learner's first actor to come. It is
    # part of the learner's collective timeout, too.
    start_timeout_s: float = Field(600, gt=0)
    request_timeout_s: float = Field(600, gt=0)  # for one generation call, with the pauses for weight updates
