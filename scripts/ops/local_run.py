"""Runs all processes of a run on this machine: the learner, the reward processes and the actors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common.config import Config, ConfigError, load
from common.gpus import usable_gpus
from common.parent import die_with_parent
from scripts.ops.progress_display import make_display
from scripts.ops.supervise import Children

_ROOT = Path(__file__).parents[2]
_MODULES = {"learner": "learner.launch", "reward": "reward", "actor": "actor"}
_RESTARTS = 3  # of a reward process or an actor that had been ready
_GRACE_S = 5.0  # from the request to end to the kill


def run_to_end(command: Sequence[str], *, silent: bool = False) -> None:
    """Runs a Python program in the foreground and blocks until it ends. If this process is interrupted, so is it.

    Args:
        silent: leave out what it prints, but for its errors.

    Raises:
        SystemExit: with the code of the program if it failed, after it has printed why.
    """
    process = subprocess.Popen(
        [sys.executable, *command],
        env=_environment(),
        stdout=subprocess.DEVNULL if silent else None,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    if code:
        raise SystemExit(code if code > 0 else 1)


def count_actors(gpus: Sequence[str], config: Config) -> int:
    """How many actors the GPUs that the learner leaves are enough for; one where there are none to leave."""
    return max(1, (len(gpus) - config.learner.ranks) // _width(config))


def assign_gpus(gpus: Sequence[str], config: Config, actors: int) -> list[Sequence[str]]:
    """The GPUs of the learner, of the reward processes together, and of each actor, in this order.

    The learner has ``learner.ranks`` GPUs and each actor as many as its engine's ``tp``. The reward processes get a GPU
    that is left over, or else share the last GPU of the learner. On a machine with one GPU all share it; without any,
    all run on the CPU.

    Raises:
        ConfigError: there are GPUs, but too few, or the only one cannot be shared.
    """
    ranks, width = config.learner.ranks, _width(config)
    used = ranks + actors * width
    if not gpus:
        return [[]] * (2 + actors)
    if len(gpus) >= used:
        engines = [gpus[first : first + width] for first in range(ranks, used, width)]
        return [gpus[:ranks], gpus[used : used + 1] or gpus[ranks - 1 : ranks], *engines]
    if len(gpus) == ranks == width == 1:
        forms_groups = config.sync.transport == "group" and not config.lora.sends_adapters
        if forms_groups and config.sync.backend != "gloo":
            raise ConfigError(
                "learner and engine share the only GPU of this machine, which NCCL does not allow: give "
                "configs/gpus-1.toml before your own file, or set --sync.transport shared"
            )
        return [gpus] * (2 + actors)
    raise ConfigError(
        f"learner.ranks = {ranks} and {actors} x actor.engine_args.tp = {width} need {used} GPUs, and this machine has "
        f"{len(gpus)}: lower --learner.ranks or --actors, or give a file for so many GPUs, such as configs/gpus-1.toml "
        "or configs/gpus-4.toml, before your own file"
    )


def run_all(settings: Sequence[str], run_dir: Path, actors: int | None = None) -> None:
    """Trains on this machine's GPUs or CPU. Blocks until the learner has ended, and shows what all processes do.

    Args:
        settings: configuration files and flags, as ``common.config.load`` reads them.
        run_dir: its ``logs`` directory gets the output of every process.
        actors: how many; None for as many as the GPUs are enough for, one without GPUs.

    Raises:
        ConfigError: the configuration does not fit the GPUs of this machine.
        ChildFailed: a process ended with an error and could not be started again.
        FatalError: a GPU that this process was given is missing or cannot be used.
    """
    config, gpus = load(settings), usable_gpus()
    actors = actors or count_actors(gpus, config)
    for_learner, for_rewards, *for_actors = assign_gpus(gpus, config, actors)
    replicas = len(config.reward.addresses)
    with make_display() as display, Children(run_dir / "logs", display) as children:
        board = f"{sys.executable} -m tensorboard.main --logdir {run_dir / 'tensorboard'}"
        display.message(f"training in {run_dir}; watch it: {board}")
        children.start("learner", _command("learner", for_learner, settings))
        for number in range(replicas):
            name = "reward" if replicas == 1 else f"reward-{number}"
            flags = [*settings, "--reward.replica", str(number)]
            children.start(name, _command("reward", for_rewards, flags), restarts=_RESTARTS)
        for number, own in enumerate(for_actors):
            flags = [*settings, "--actor.name", f"actor-{number}"]
            children.start(f"actor-{number}", _command("actor", own, flags), restarts=_RESTARTS)
        children.wait_for("learner")


def gains(summary: Mapping[str, Any]) -> str:
    """A line for each figure of ``summary.json`` that was evaluated, before training as well or after it alone."""
    lines = []
    for part in ("reward", "heldout", "compliance"):
        before, after = summary[f"{part}_before"], summary[f"{part}_after"]
        if after is not None:
            lines.append(f"{part:<11} " + (f"{before:.3f} -> {after:.3f}" if before is not None else f"{after:.3f}"))
    return "\n".join(lines)


def _command(role: str, gpus: Sequence[str], settings: Sequence[str]) -> list[str]:
    own = [f"CUDA_VISIBLE_DEVICES={','.join(gpus)}", f"PYTHONPATH={_environment()['PYTHONPATH']}"]
    return ["env", *own, sys.executable, "-m", _MODULES[role], *settings]


def _environment() -> dict[str, str]:
    """This process's own, with this project on the path of whatever it starts."""
    path = filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def _width(config: Config) -> int:
    return int(config.actor.engine_args.get("tp", 1))
