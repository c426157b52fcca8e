"""``python -m learner.replay DIR``: trains a run recorded with ``learner.record`` again, without actors or rewards.

Prints each step beside what it was, and exits with 1 if any loss or gradient norm differs in a single bit.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from common.gpus import has_cuda
from common.process import FatalError
from learner import recording
from learner.launch import launch
from learner.train.trainer import Trainer, set_up_distributed

_TIMEOUT_S = 600  # of a collective


def replay(directory: Path) -> bool:
    """On every rank of the default group; whether each step came out as it was recorded."""
    config, steps = recording.read(directory)
    trainer = Trainer(config)
    count = differing = 0
    for step in steps:
        result = trainer.step(step.groups, step.number - 1)
        now = (result.means.get("loss", 0.0), result.grad_norm)
        same = repr(now) == repr((step.loss, step.grad_norm))  # repr tells all floats apart, and nan is nan
        count, differing = count + 1, differing + (not same)
        if dist.get_rank() == 0:
            was = "as recorded" if same else f"recorded {step.loss!r} and {step.grad_norm!r}"
            print(f"step {step.number}: loss {now[0]!r}, gradient norm {now[1]!r}, {was}", flush=True)
    if dist.get_rank() == 0:
        print(f"{count} steps, {differing} of them differ", flush=True)
    return not differing


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit("usage: python -m learner.replay DIR")
    try:
        if "RANK" in os.environ:
            if not has_cuda():
                torch.set_num_threads(1)
            set_up_distributed(_TIMEOUT_S)
            raise SystemExit(0 if replay(Path(sys.argv[1])) else 1)
        config = recording.read(Path(sys.argv[1]))[0].learner
        here = {"nodes": 1, "ranks": config.nodes * config.ranks, "restarts": 0}
        launch("learner.replay", config.model_copy(update=here), sys.argv[1:])
    except FatalError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
