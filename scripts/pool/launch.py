"""Starts the processes of a pool file: those with hosts over ssh, as long as this command runs, those with a
partition as Slurm jobs.

    scripts/launch_pool.sh POOL.toml [--dry-run] [--role ROLE] [--together] CONFIG.toml ... [--section.key value] ...

Every process is started by its launch script, from this directory's path, which all hosts must see. When a host goes
away, its processes are started again as soon as it is back. Reward processes that fail after they were ready are
started again after a pause. So are actors whenever they fail: a host that cannot run one costs the run no more than
that. Where all actors have hosts and none of them becomes ready, the run ends; those of Slurm may still come. When this
command is interrupted, it interrupts them all, and the learner saves a checkpoint.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from common.config import Config, ConfigError, RunConfig, load
from common.net import rendezvous
from common.net.sockets import check_keys
from common.process import FatalError
from learner.supervision import CONNECTED_AGAIN, SUCCESSOR
from scripts.ops.command_line import command
from scripts.ops.supervise import Children
from scripts.pool.agreement import settle
from scripts.pool.pool_file import Nodes, Pool, read_pool

_ROOT = Path(__file__).parents[2]
_QUEUE_PORT, _REWARD_PORT, _TORCHRUN_PORT = 5700, 5701, 29400
_RESTARTS = 1000
_ENDING = ("learner", "actor", "reward")  # a process ends by itself when the run is over; the last one does not
_OVER_S = 5.0  # between two looks whether it is
_SET_HERE = "LRPO_ENV_SET"  # names of the variables that scripts/env/env.sh has set for this host, and not the user
_CARRIED = ("LRPO_KEYS", "LRPO_DEVICE", "HF_HUB_OFFLINE")  # variables of the user that every host gets; none is secret
_SSH = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=10"]
# Closing its input is how the other side learns that this one has ended or is cut off.
_ONCE = 'exec 3< <(exec sleep infinity); ssh "$@" <&3; code=$?; kill $!; exit $code'
_AWAY = 255  # ssh's own failure
_HERE = (
    'while :; do exec 3< <(exec sleep infinity); ssh "$@" <&3; code=$?; kill $!; '
    f'((code == {_AWAY})) || exit $code; echo " WARNING launch_pool: $0 is away" >&2; sleep 5; done'
)
_THERE = (
    "cd {root} || exit 1; exec 3<&0; {command} </dev/null & pid=$!; {{ cat <&3; kill $pid; }} >/dev/null 2>&1 & "
    "wait $pid; code=$?; kill $! 2>/dev/null; exit $code"
)


@dataclass(frozen=True)
class Process:
    """A process on another host, which is started over ssh.

    Args:
        name: of its log, and of an actor.
        host: as ssh takes it, perhaps with the name of a user.
    """

    name: str
    role: str
    host: str
    command: list[str]

    def over_ssh(self) -> list[str]:
        """The command that runs it from here, and again whenever the host was away."""
        return ["bash", "-c", _HERE, self.host, *_SSH, self.host, self._there()]

    def once(self, *, again: bool = False) -> list[str]:
        """The command that runs it from here until it ends, or with code 255 until the host is away.

        Args:
            again: whether it takes the place of one that was cut off, and may still be there.
        """
        told = f"env {CONNECTED_AGAIN}=1 " if again else ""
        return ["bash", "-c", _ONCE, self.host, *_SSH, self.host, told + self._there()]

    def _there(self) -> str:
        there = _THERE.format(root=shlex.quote(str(_ROOT)), command=shlex.join(self.command))
        return f"bash -c {shlex.quote(there)}"


def shared_flags(pool: Pool, config: Config) -> list[str]:
    """The flags that follow from the pool for every process of the run.

    A pool of actors alone comes to a run that is going: its reward replicas are those that have announced themselves.

    Raises:
        ConfigError: the learner nodes differ in their number of engines, or would not find each other; or the
            configuration names another number of reward addresses than the pool has replicas.
    """
    learners = [nodes for nodes in pool.nodes if nodes.role == "learner"]
    if len(learners) > 1 and any(nodes.partition for nodes in learners):
        raise ConfigError(
            "nodes: learner nodes of a partition meet on the first of them, which those of another [[nodes]] do not "
            "know: give all learner nodes in one [[nodes]], or all by hosts"
        )
    if len({nodes.engines for nodes in learners}) > 1:
        raise ConfigError("nodes: all learner nodes need the same number of engines, which are its ranks")
    flags = [] if config.run.rendezvous else ["--run.rendezvous", str(config.run.dir / "rendezvous")]
    if config.learner.address == type(config.learner)().address:
        flags += ["--learner.address", f"tcp://*:{_QUEUE_PORT}"]
    if learners:
        count = sum(nodes.machines for nodes in learners)
        flags += ["--learner.nodes", str(count), "--learner.ranks", str(learners[0].engines)]
        if learners[0].hosts and config.learner.torchrun == type(config.learner)().torchrun:
            flags += ["--learner.torchrun", f"{machine(learners[0].hosts[0])}:{_TORCHRUN_PORT}"]
    replicas = sum(nodes.number for nodes in pool.nodes if nodes.role == "reward")
    if not (replicas or learners):  # of actors that come to a run, which has its reward replicas already
        replicas = len(list((config.run.rendezvous or config.run.dir / "rendezvous").glob("reward-*.json")))
    if config.reward.addresses != type(config.reward)().addresses:
        if replicas and len(config.reward.addresses) != replicas:
            raise ConfigError(
                f"reward.addresses is for so many reward replicas: {len(config.reward.addresses)}; the pool has "
                f"{replicas}: give an address for each, or none, and each gets a port of its own"
            )
    elif replicas:
        # A port for each, as replicas of two [[nodes]] may come to lie on one machine.
        flags += ["--reward.addresses", json.dumps([f"tcp://*:{_REWARD_PORT + n}" for n in range(replicas)])]
    return flags


def number_replicas(pool: Pool) -> list[tuple[Nodes, int]]:
    """Each of the nodes with the number of its first reward replica; learners come first, else as in the file."""
    found, replica = [], 0
    for nodes in sorted(pool.nodes, key=lambda nodes: nodes.role != "learner"):
        found.append((nodes, replica))
        replica += nodes.number if nodes.role == "reward" else 0
    return found


def own_flags(nodes: Nodes) -> list[str]:
    """The flags of the processes on these nodes alone."""
    flags = []
    if nodes.role == "actor" and nodes.tp > 1:
        flags += ["--actor.engine_args.tp", str(nodes.tp)]
    if nodes.role == "actor" and nodes.groups_in_flight:
        flags += ["--actor.groups_in_flight", str(nodes.groups_in_flight)]
    for name, value in nodes.engine_args.items():
        flags += [f"--actor.engine_args.{name}", json.dumps(value, ensure_ascii=False)]
    return flags


def check_own_flags(pool: Pool, flags: list[str]) -> None:
    """Returns if the actors of each entry can be configured as it says.

    Args:
        flags: which all processes get.

    Raises:
        ConfigError: an entry's engine has a flag that is not for the user to give or a wrong value, or would hold too
            short texts; the message names the entry.
    """
    for nodes in [nodes for nodes in pool.nodes if nodes.role == "actor"]:
        try:
            config = load([*flags, *own_flags(nodes)])
        except ConfigError as error:
            raise ConfigError(f"nodes: the actors of {nodes.place}: {error}") from None
        prompt, answer = config.data.max_prompt_tokens, config.sampling.max_new_tokens
        held = {name.replace("_", "-"): value for name, value in nodes.engine_args.items()}.get("context-length")
        if held is not None and int(held) < prompt + answer:
            raise ConfigError(
                f"nodes: the actors of {nodes.place} have engine_args.context_length = {held}, and "
                f"data.max_prompt_tokens + sampling.max_new_tokens = {prompt} + {answer}: these engines would refuse "
                "what others take, so raise the first or lower one of the others"
            )


def machine(host: str) -> str:
    """The name of a host by which others reach it, without the user that ssh is to log in as."""
    return host.rpartition("@")[2]


def users_own(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that other hosts may get: without those that scripts/env/env.sh has set for this one."""
    set_here = {_SET_HERE, *environment.get(_SET_HERE, "").split()}
    return {name: value for name, value in environment.items() if name not in set_here}


def processes(numbered: list[tuple[Nodes, int]], flags: list[str], role: str | None = None) -> list[Process]:
    """The processes on hosts, those of one role or all. Each gets the next GPUs of its host, after those of the others.

    Args:
        numbered: all nodes of the pool, as ``number_replicas`` gives them.
        flags: which all processes get.
        role: of the processes that are wanted.
    """
    found, gpus, names = [], Counter[str](), Counter[str]()
    carried = [f"{name}={value}" for name, value in users_own(os.environ).items() if name in _CARRIED and value]
    for nodes, replica in numbered:
        for host in nodes.hosts:
            own = machine(host)
            for _ in range(nodes.tasks):
                visible = ",".join(str(gpus[own] + gpu) for gpu in range(nodes.task_gpus))
                gpus[own] += nodes.task_gpus
                kind = f"{nodes.role}-{own}"
                name = f"{kind}-{names[kind]}"
                names[kind] += 1
                environment = [f"LRPO_HOST={own}", f"CUDA_VISIBLE_DEVICES={visible}", *carried]
                environment += [f"{SUCCESSOR}=1"] if nodes.role == "learner" else []
                command = ["env", *environment, f"scripts/launch_{nodes.role}.sh", *flags, *own_flags(nodes)]
                if nodes.role == "actor":
                    command += ["--actor.name", name]
                if nodes.role == "reward":
                    command += ["--reward.replica", str(replica)]
                    replica += 1
                if role in (None, nodes.role):
                    found.append(Process(name, nodes.role, host, command))
    return found


def jobs(
    numbered: list[tuple[Nodes, int]], flags: list[str], role: str | None = None, *, together: bool = False
) -> list[list[str]]:
    """The sbatch commands of the nodes in partitions, with arguments as of ``processes``.

    Args:
        together: one heterogeneous job.

    Raises:
        ConfigError: such a job would get other memory than the nodes name.
    """
    memory = {bool(nodes.memory) for nodes, _ in numbered if nodes.partition and role in (None, nodes.role)}
    if together and len(memory) > 1:
        raise ConfigError(
            "nodes: in one heterogeneous job Slurm gives the memory of one component to all that name none: name "
            "memory in every [[nodes]] with a partition, or in none"
        )
    parts = []
    # The script of a heterogeneous job waits for its first component, and reward processes do not end by themselves.
    for nodes, replica in sorted(numbered, key=lambda one: _ENDING.index(one[0].role)):
        if nodes.partition and role in (None, nodes.role):
            options = [f"--partition={nodes.partition}", f"--nodes={nodes.count}"]
            options += [f"--gpus-per-task={nodes.task_gpus}"] if nodes.task_gpus else []
            options += [f"--cpus-per-task={nodes.task_cpus}"] if nodes.task_cpus else []
            options += [f"--mem={nodes.memory}"] if nodes.memory else []
            options += [f"--ntasks-per-node={nodes.tasks}"]
            parts.append((options, [nodes.role, str(replica), str(nodes.task_cpus), *flags, *own_flags(nodes)]))
    script = "scripts/deploy/slurm/pool.sbatch"
    if not together or not parts:
        return [["sbatch", f"--job-name=lrpo-{words[0]}", *options, script, *words] for options, words in parts]
    command = ["sbatch"]
    for n, (options, _) in enumerate(parts):
        command += [*([":"] if n else []), *options]
    command.append(script)
    for n, (_, words) in enumerate(parts):
        command += [*(["--"] if n else []), *words]
    return [command]


class RunEnds:
    """Whether the run has ended since this was made, by what its learner writes for all hosts.

    The learner may be started afterwards, or run already. A run that was over before does not count.
    """

    def __init__(self, run: RunConfig) -> None:
        self._run = run
        before = rendezvous.find(run, "learner")
        # The newest life that says nothing of this run. One that is not over may be that of the learner that runs now.
        self._life = 0 if before is None else before.life if before.over else before.life - 1
        self._next_s = 0.0

    def __call__(self) -> bool:
        if time.monotonic() < self._next_s:
            return False
        self._next_s = time.monotonic() + _OVER_S
        now = rendezvous.find(self._run, "learner")
        return now is not None and now.over and now.life > self._life


def awaited(over_ssh: Sequence[Process], role: str | None) -> list[str]:
    """The names of the processes with the first of which the command ends: the first learner, or else any actor.

    A reward process does not end by itself.

    Args:
        role: of the processes that were asked for, if not all were.
    """
    names = {kind: [process.name for process in over_ssh if process.role == kind] for kind in _ENDING}
    if names["learner"]:
        return names["learner"][:1]
    return names["actor"] or (names["reward"] if role == "reward" else [])


def start(
    batches: list[list[str]],
    over_ssh: list[Process],
    run: RunConfig,
    role: str | None = None,
    *,
    actors_in_jobs: bool = False,
    dry_run: bool,
) -> None:
    """Submits the Slurm jobs, then runs the other processes until the run is over.

    Args:
        run: of the configuration that all processes have.
        role: of the processes that were asked for, if not all were.
        actors_in_jobs: whether some of the Slurm jobs are actors. Then the run does without those over ssh.

    Raises:
        ChildFailed: a process failed and could not be started again.
        FatalError: a job could not be submitted.
    """
    if dry_run:
        for process in over_ssh:
            print(f"# {process.name}\n{shlex.join(['ssh', process.host, shlex.join(process.command)])}")
        for command in batches:
            print(f"# Slurm\n{shlex.join(command)}")
        return
    run_ends = RunEnds(run)
    for number, command in enumerate(batches):
        try:
            code = subprocess.run(command, cwd=_ROOT, env=users_own(os.environ), check=False).returncode
            why = f"ended with code {code}" if code else ""
        except OSError as error:
            why = str(error)
        if why:
            told = f"; {number} of {len(batches)} jobs were submitted before it: scancel those" if number else ""
            raise FatalError(f"sbatch submitted no job: {why}{told}. The command was: {shlex.join(command)}")
    if over_ssh:
        with Children(run.dir / "logs") as children:
            # Learner nodes need each other: when one of them is cut off, all save and begin again.
            learners = [process for process in over_ssh if process.role == "learner"]
            first = {process.name: process.once() for process in learners}
            again = {process.name: process.once(again=True) for process in learners}
            children.start_together(first, again, _AWAY)
            for process in over_ssh:
                if process.role == "reward":
                    children.start(process.name, process.over_ssh(), restarts=_RESTARTS)
            actors = {process.name: process.over_ssh() for process in over_ssh if process.role == "actor"}
            children.start_any(actors, restarts=_RESTARTS, elsewhere=actors_in_jobs)
            last = awaited(over_ssh, role)
            if last and actors_in_jobs and not learners:  # perhaps none of the actors here ever works
                children.wait_until(lambda: run_ends() or children.any_ended(*last))
            elif last:
                children.wait_for(*last)
            else:  # reward processes, whose run is one of Slurm's jobs
                children.wait_until(run_ends)


@command(name="launch_pool.sh", passes_flags_on=True)
def main(
    context: typer.Context,
    pool_file: Annotated[Path, typer.Argument(metavar="POOL.toml", help="Who does what; see docs/cluster.md.")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be started.")] = False,
    role: Annotated[
        Literal["learner", "reward", "actor"] | None,
        typer.Option(help="Start only these nodes; the others run already."),
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="Start all partitions as one heterogeneous Slurm job.")
    ] = False,
) -> None:
    if not _ROOT.samefile(Path.cwd()):
        raise ConfigError(
            f"give this command in {_ROOT}, where all processes start: a path that is relative to {Path.cwd()} would "
            "be another one there"
        )
    config = load(context.args)
    pool = settle(read_pool(pool_file), config, context.args)
    if role is not None and all(nodes.role != role for nodes in pool.nodes):
        raise ConfigError(f"--role {role}: no [[nodes]] of {pool_file} has role = {role!r}")
    flags = [*context.args, *shared_flags(pool, config)]
    config = load(flags)
    check_own_flags(pool, flags)
    numbered = number_replicas(pool)
    batches, over_ssh = jobs(numbered, flags, role, together=together), processes(numbered, flags, role)
    if not dry_run:  # before anything waits in a queue
        roles = {nodes.role for nodes in pool.nodes if role in (None, nodes.role)}
        addresses = [config.learner.address, *config.reward.addresses]
        check_keys(addresses, serves=roles != {"actor"}, asks="actor" in roles)
    in_jobs = any(nodes.partition and nodes.role == "actor" and role in (None, "actor") for nodes in pool.nodes)
    start(batches, over_ssh, config.run, role, actors_in_jobs=in_jobs, dry_run=dry_run)


if __name__ == "__main__":
    main()
