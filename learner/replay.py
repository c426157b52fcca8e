"""``python -m learner.replay DIR``: trains a run recorded with ``learner.record`` again, without actors or rewards.

Prints every step beside what was recorded, and exits with 1 if any loss or gradient norm differs in a single bit.
The number of ranks is that of the recorded run, all of them on this machine.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from common.gpus import has_cuda
from common.parent import die_with_launcher
from common.process import FatalError
from learner import recording
from learner.launch import launch
from learner.train.distributed import set_up_distributed
from learner.train.trainer import Trainer

_COLLECTIVE_TIMEOUT_S = 600


def replay(directory: Path) -> bool:
    """Trains the recorded steps; every rank of the default process group calls it. Rank 0 prints.

    Returns:
        Whether loss and gradient norm of every step came out as recorded, to the last bit.

    Raises:
        FatalError: ``directory`` is no whole recording.
    """
    config, steps = recording.read(directory)
    trainer = Trainer(config)
    trained = differing = 0
    for step in steps:
        result = trainer.step(step.groups, step.number - 1)
        now = (result.means.get("loss", 0.0), result.grad_norm)
        same = repr(now) == repr((step.loss, step.grad_norm))  # repr tells all floats apart, and nan equals nan
        trained, differing = trained + 1, differing + (not same)
        if dist.get_rank() == 0:
            verdict = "as recorded" if same else f"recorded {step.loss!r} and {step.grad_norm!r}"
            print(f"step {step.number}: loss {now[0]!r}, gradient norm {now[1]!r}, {verdict}", flush=True)
    if dist.get_rank() == 0:
        print(f"{trained} steps, {differing} of them differ", flush=True)
    return not differing


def main() -> None:
    """Replays under torchrun, or starts itself under torchrun with the recorded number of ranks."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit("usage: python -m learner.replay DIR")
    try:
        if "RANK" in os.environ:
            die_with_launcher()
            if not has_cuda():
                torch.set_num_threads(1)
            set_up_distributed(_COLLECTIVE_TIMEOUT_S)
            raise SystemExit(0 if replay(Path(sys.argv[1])) else 1)
        recorded = recording.read(Path(sys.argv[1]))[0].learner
        on_this_machine = {"nodes": 1, "ranks": recorded.nodes * recorded.ranks, "restarts": 0}
        launch("learner.replay", recorded.model_copy(update=on_this_machine), sys.argv[1:])
    except FatalError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
