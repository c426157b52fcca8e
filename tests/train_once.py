"""Run by torchrun from test_distributed.py: one step of the trainer, a checkpoint, and the weights as a file.

``train_once.py MODEL OUT SEED BUDGET [CHECKPOINTS]``: loads the newest checkpoint first if there is one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from common.config import load
from learner.checkpoint import Checkpoints, export
from learner.control import Ranks
from learner.policy import full_weights
from learner.server import Finished
from learner.trainer import Trainer, set_up_distributed
from tests.helpers import random_rollout, work


def main() -> None:
    model, out, seed, budget = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    set_up_distributed(60)
    settings = ["--model.path", model, "--learner.microbatch_tokens", budget, "--learner.param_dtype", "float32"]
    trainer = Trainer(load([*settings, "--learner.kl", "0.05", "--learner.lr", "1e-3"]))
    checkpoints = Checkpoints(Path(sys.argv[5]) if len(sys.argv) > 5 else out / "checkpoints", kept=1)
    latest = checkpoints.latest()
    if latest is not None:
        checkpoints.load(latest["path"], trainer.policy, trainer.optimizer)
    ranks = Ranks({"train": lambda command: trainer.step(command.batch, command.number)})
    if dist.get_rank() == 0:
        result = ranks.call("train", batch=_batch(seed))
        ranks.call("stop")
    else:
        ranks.obey()
    step = latest["step"] + 1 if latest is not None else 1
    checkpoints.save(trainer.policy, trainer.optimizer, step, {"step": step})
    checkpoints.wait()
    weights = full_weights(trainer.policy, torch.float32)
    export(trainer.policy, None, out / "model")
    if dist.get_rank() == 0:
        save_file(dict(weights), out / "weights.safetensors")
        (out / "result.json").write_text(json.dumps({**result.means, "grad_norm": result.grad_norm}))
    dist.barrier()
    dist.destroy_process_group()


def _batch(seed: int) -> list[Finished]:
    rng = np.random.default_rng(seed)
    groups = [[random_rollout(rng) for _ in range(4)] for _ in range(5)]
    groups.append([random_rollout(rng, reward=0.5) for _ in range(4)])  # nothing to learn from this one
    return [
        Finished(work=work(n, [r.language for r in rollouts]), actor="a", rollouts=rollouts)
        for n, rollouts in enumerate(groups)
    ]


if __name__ == "__main__":
    main()
