"""The pool file: which machines a run has, what they do, and how fast they are. See ``configs/pools/example.toml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from common.config import ConfigError, Section, explain, read_toml

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
AtLeast0 = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Gpu(Section):
    """How fast a kind of GPU is: as a run measured it, or in figures of your own."""

    like: str = ""  # an actor of --run, or "learner": measured rates are taken from it
    speed: Positive = 1.0  # times as fast as that
    token_ms: AtLeast0 | None = None  # of a decoding step of an engine
    group_ms: AtLeast0 | None = None  # more of it for every group in flight
    train_tokens_s: Positive | None = None  # response tokens that one of them trains a second


class Nodes(Section):
    """Machines that have the same task: named for ssh, or counted in a Slurm partition."""

    role: Literal["actor", "learner", "reward"]
    gpu: str = ""  # a key of [gpus]; reward may be without
    hosts: tuple[str, ...] = ()
    partition: str = ""
    count: int = Field(0, ge=0)  # nodes of the partition
    engines: int = Field(1, gt=0)  # of each node: actors, learner ranks or reward replicas
    tp: int = Field(1, gt=0)  # GPUs of an engine; the rates of [gpus] are those of the whole engine
    groups_in_flight: int | None = Field(None, gt=0)  # of an actor; default: actor.groups_in_flight
    engine_args: dict[str, str | int | float | bool] = Field({})  # of an actor: over those of actor.engine_args
    network_gb_s: Positive | None = None  # gigabytes that leave a learner's node in a second
    # Of a partition; without them Slurm gives what the site has as its defaults, often one core for each process.
    cpus: int | None = Field(None, gt=0)  # cores of each engine: actor, learner rank or reward replica
    memory: str | None = Field(None, pattern=r"^\d+[KMGT]?$")  # of each node, as --mem of sbatch: "200G"; "0" is all

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        if bool(self.hosts) == bool(self.partition and self.count):
            raise ValueError(f"nodes of role {self.role!r} need either hosts, or partition and count")
        if self.hosts and (self.cpus or self.memory):
            raise ValueError(
                f"cpus and memory are what Slurm is asked for in a partition; {', '.join(self.hosts)} are reached by "
                "ssh, where a process takes what it needs: leave them out"
            )
        if self.engine_args and self.role != "actor":
            raise ValueError(f"engine_args are of an actor's engine, and role = {self.role!r} has none: leave them out")
        if "tp" in self.engine_args:
            raise ValueError(
                "engine_args.tp: write it as tp of the entry, which also says how many GPUs an engine gets"
            )
        return self

    @property
    def machines(self) -> int:
        """The number of machines."""
        return len(self.hosts) or self.count

    @property
    def place(self) -> str:
        """The hosts or the partition, for a message."""
        return ", ".join(self.hosts) or f"the partition {self.partition}"

    @property
    def number(self) -> int:
        """The number of engines on all machines together."""
        return self.machines * self.engines

    @property
    def tasks(self) -> int:
        """Processes that are started on a machine; a learner's starts its ranks itself."""
        return 1 if self.role == "learner" else self.engines

    @property
    def task_cpus(self) -> int:
        """Cores of each such process; 0: the site's default."""
        return (self.cpus or 0) * (self.engines if self.role == "learner" else 1)

    @property
    def task_gpus(self) -> int:
        """GPUs of each such process."""
        return 0 if not self.gpu else self.engines if self.role == "learner" else self.tp


class Work(Section):
    """What a step is made of. Without a measured run all of it is needed; with one these replace what it measured."""

    answer_tokens: Positive | None = None  # mean
    answer_spread: AtLeast0 = 0.5  # standard deviation of its logarithm
    weights_gb: Positive | None = None  # gigabytes of the published weights; with nodes.network_gb_s predicts the next
    publish_s: AtLeast0 | None = None
    pause_s: AtLeast0 | None = None  # of it, when generation stands still
    rest_s: AtLeast0 | None = None  # of the learner after a step: reports, checkpoints
    score_s: AtLeast0 | None = None  # until a group has its scores
    score_busy_s: AtLeast0 | None = None  # of a reward replica for a group


class Pool(Section):
    """Everything that a pool file holds."""

    gpus: dict[str, Gpu] = Field({})
    nodes: tuple[Nodes, ...] = Field(min_length=1)
    work: Work = Work()


def read_pool(path: Path) -> Pool:
    """The pool of a file.

    Raises:
        ConfigError: the file is no pool; the message names file and key.
    """
    try:
        pool = Pool.model_validate(read_toml(path))
    except ValidationError as error:
        raise ConfigError(f"{path} is no pool file: {explain(error, Pool)}") from None
    if not any(nodes.role == "actor" for nodes in pool.nodes):
        raise ConfigError(f"{path}: no [[nodes]] has role = 'actor'")
    if unknown := {nodes.gpu for nodes in pool.nodes if nodes.gpu or nodes.role != "reward"} - set(pool.gpus):
        raise ConfigError(
            f"{path}: nodes.gpu = {unknown.pop()!r} is no key of [gpus]: {', '.join(pool.gpus) or 'none'}"
        )
    return pool
