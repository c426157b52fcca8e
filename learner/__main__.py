"""``torchrun ... -m learner CONFIG.toml [--section.key value]``"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from common.config import Config
from common.gpus import has_cuda
from common.net import rendezvous
from common.process import die_with_parent, main
from common.tokenizer import load_tokenizer
from common.wire import Probe
from learner.checkpoint import Checkpoints, export
from learner.ranks import Command, Ranks
from learner.run import Interrupted, Run
from learner.train.policy import full_weights
from learner.train.trainer import Trainer, set_up_distributed
from learner.work.server import WorkServer


def learn(config: Config) -> None:
    die_with_parent()  # torchrun starts its processes in sessions of their own
    leads = int(os.environ.get("RANK", "0")) == 0
    address = config.learner.address
    rendezvous.use_interface(rendezvous.host_of(address))
    server = WorkServer(address, config.learner.lease_timeout_s) if leads else None
    place = rendezvous.announce(config.run, "learner", address) if leads else None
    if not leads:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # rank 0 ends the run, and needs the others to save it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not has_cuda():
        torch.set_num_threads(1)
    set_up_distributed(config.learner.batch_timeout_s + config.actor.start_timeout_s)
    torch.manual_seed(config.run.seed)
    tokenizer = load_tokenizer(config.model.path)
    trainer = Trainer(config)
    checkpoints = Checkpoints(config.run.dir / "checkpoints", config.learner.checkpoints_kept)
    latest = checkpoints.latest()
    if latest is not None:
        trainer.anchor_moved = checkpoints.load(latest["path"], trainer.policy, trainer.optimizer, trainer.reference)
    run: Run | None = None

    def save(command: Command) -> None:
        rendezvous.confirm(config.run, "learner", place)  # two learners must not write over each other
        state: dict[str, Any] = run.state() if run is not None else {}
        queued = state.pop("queued", [])
        anchor = trainer.reference if trainer.anchor_moved else None
        checkpoints.save(trainer.policy, trainer.optimizer, command.number, state, queued, anchor)

    def gather(_: Command) -> tuple[Iterator[tuple[str, Tensor]], Probe]:
        probe, weights = trainer.probe(), full_weights(trainer.policy)
        if server is None:  # rank 0 sends them as it walks
            deque(weights, maxlen=0)
        return weights, probe

    ranks = Ranks(
        {
            "train": lambda command: trainer.step(command.batch, command.number),
            "gather": gather,
            "save": save,
            "export": lambda command: export(trainer.policy, tokenizer, config.run.dir / "model"),
        }
    )
    if server is None:
        ranks.obey()
        checkpoints.wait()
    else:
        over = True
        try:
            run = Run(config, server, trainer, tokenizer, ranks, checkpoints, latest or {})
            run.lead()
        except Exception as error:  # if torchrun starts another learner, actors wait for that one
            again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) < config.learner.restarts
            over = isinstance(error, Interrupted) or not again
            raise
        finally:
            ranks.call("stop")
            server.close(over=over)
    dist.destroy_process_group()


def _run(config: Config) -> None:
    try:
        learn(config)
    except Interrupted:
        raise KeyboardInterrupt from None


if __name__ == "__main__":
    main(_run)
