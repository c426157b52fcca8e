"""Runs all processes of a run on this machine: the learner, a reward process and actors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from common.config import Config, load
from common.gpus import visible_gpus
from scripts.ops.supervise import Children

_ROOT = Path(__file__).parents[2]


def run_to_end(command: Sequence[str]) -> None:
    """Runs a Python program in the foreground and blocks until it ends.

    Raises:
        SystemExit: with the code of the program if it failed, after it has printed why.
    """
    code = subprocess.run([sys.executable, *command], check=False).returncode
    if code:
        raise SystemExit(code)


def assign_gpus(gpus: Sequence[str], config: Config, actors: int) -> list[Sequence[str]]:
    """The GPUs of the learner, of the reward process and of each actor, in this order.

    Where there are too few GPUs, every process gets all of them. The reward process gets a GPU that is left over, or
    else shares the last GPU of the learner.
    """
    ranks, width = config.learner.ranks, int(config.actor.engine_args.get("tp", 1))
    used = ranks + actors * width
    if len(gpus) < used:
        return [gpus] * (2 + actors)
    engines = [gpus[first : first + width] for first in range(ranks, used, width)]
    return [gpus[:ranks], gpus[used : used + 1] or gpus[ranks - 1 : ranks], *engines]


def run_all(settings: Sequence[str], run_dir: Path, actors: int) -> None:
    """Trains on this machine's GPUs or CPU with one reward process and ``actors`` actors.

    Blocks until the learner has ended.

    Raises:
        ChildFailed: a process ended with an error and could not be started again.
    """
    with Children(run_dir / "logs") as children:
        gpus_of = assign_gpus(visible_gpus(), load(settings), actors)
        names = ["learner", "reward", *(f"actor-{number}" for number in range(actors))]
        for name, visible in zip(names, gpus_of, strict=True):
            role = name.partition("-")[0]
            launch = ["env", f"CUDA_VISIBLE_DEVICES={','.join(visible)}", str(_ROOT / "scripts" / f"launch_{role}.sh")]
            flags = ["--actor.name", name] if role == "actor" else []
            children.start(name, [*launch, *settings, *flags], restarts=0 if role == "learner" else 3)
        print(
            f"training in {run_dir}; watch it: {sys.executable} -m tensorboard.main --logdir {run_dir / 'tensorboard'}",
            flush=True,
        )
        children.wait_for("learner")
