"""The process of one rank: what every rank sets up, the actions all ranks know, and what rank 0 does beside them."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from common.config import Config
from common.context import check_context
from common.gpus import has_cuda
from common.net import rendezvous
from common.progress import BRIEF_S, Activity
from common.prompts import ChatTemplate
from common.tokenizer import load_tokenizer
from common.wire import Probe
from learner import resume
from learner.build import build_run
from learner.checkpoint import STATE_FILE, Checkpoints
from learner.export import export, export_adapters
from learner.loop.interrupts import Interrupted, Interrupts
from learner.ranks import Command, Ranks, broadcast
from learner.report.trackers.start import check_trackers
from learner.run import Run
from learner.state import Snapshot
from learner.train.distributed import set_up_distributed
from learner.train.policy import full_weights
from learner.train.trainer import Trainer
from learner.work.questions import read_questions
from learner.work.server import WorkServer


def learn(config: Config, make_trainer: Callable[[Config], Trainer] = Trainer) -> None:
    """Runs one rank of the learner under torchrun, from its start to the end of the run.

    Args:
        make_trainer: makes the trainer, once the default process group is up.

    Raises:
        FatalError: the run cannot begin or go on.
        KeyboardInterrupt: it was asked to end early, and is saved.
    """
    leads = int(os.environ.get("RANK", "0")) == 0
    check_trackers(config)
    address = config.learner.address
    rendezvous.use_interface(rendezvous.host_of(address))
    server = WorkServer(address, config.learner.lease_timeout_s) if leads else None
    place = rendezvous.announce(config.run, "learner", address) if leads else None
    if not leads:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # rank 0 ends the run, and needs the others to save it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not has_cuda():
        torch.set_num_threads(1)
    tokenizer = load_tokenizer(config.model.path)
    questions = None
    if leads:  # before anything that takes long: what is wrong with the data is said at once
        with Activity("learner", f"reading the questions of {config.data.train}"):
            questions = read_questions(config, tokenizer)
    ranks_there = f"waiting for {config.learner.nodes} x {config.learner.ranks} ranks"
    start_others = "start the same command on each of learner.nodes machines"
    with Activity("learner", ranks_there, missing=start_others if config.learner.nodes > 1 else "", silent_s=BRIEF_S):
        set_up_distributed(config.learner.batch_timeout_s + config.actor.start_timeout_s)
    torch.manual_seed(config.run.seed)
    # Rank 0 alone reads the questions; the others are told how many there are.
    counted = str(len(questions.train) if questions else 0).encode()
    config = config.with_questions(int(broadcast(counted)))
    if leads:
        resume.check(config)
    if questions is not None:
        check_context(config, questions.longest_prompt)
    with Activity("learner", f"reading the weights of {config.model.path}"):
        trainer = make_trainer(config)
    checkpoints = Checkpoints(config.run.dir / "checkpoints", config.learner.checkpoints_kept)
    latest = checkpoints.latest()
    if latest is not None:
        Snapshot.from_json(latest.state, latest.path / STATE_FILE)  # before weights of another layout are read
        with Activity("learner", f"reading the checkpoint {latest.path}"):
            trainer.anchor_moved = checkpoints.load(latest.path, trainer.policy, trainer.optimizer, trainer.reference)
    run: Run | None = None  # of rank 0, once it is built

    def save(command: Command) -> None:
        rendezvous.confirm(config.run, "learner", place)  # two learners must not write over each other
        snapshot, queued = run.state.capture() if run is not None else (None, [])
        state = {} if snapshot is None else snapshot.as_json()
        anchor = trainer.reference if trainer.anchor_moved else None
        checkpoints.save(trainer.policy, trainer.optimizer, command.number, state, queued, anchor)

    def export_model() -> None:
        with Activity("learner", f"exporting the model to {config.run.dir / 'model'}"):
            stop_ids = ChatTemplate(tokenizer, config.model).stop_ids
            export(trainer.policy, tokenizer, config.run.dir / "model", stop_ids)
            export_adapters(trainer.policy, config.model.path, config.run.dir / "adapter")

    def gather(_: Command) -> tuple[Iterator[tuple[str, Tensor]], Probe]:
        adapters = trainer.policy.adapters if config.lora.sends_adapters else None
        probe, weights = trainer.probe(), full_weights(trainer.policy) if adapters is None else adapters.gather()
        if not leads:  # rank 0 walks through the weights as it sends them, and each is gathered from all ranks
            deque(weights, maxlen=0)
        return weights, probe

    ranks = Ranks(
        {
            "train": lambda command: trainer.step(command.batch, command.number),
            "gather": gather,
            "save": save,
            "export": lambda _: export_model(),
        }
    )
    if server is None or questions is None:
        ranks.follow()
        checkpoints.wait()
    else:
        interrupts = Interrupts()
        finished = False
        over = True  # for the actors: there will be no other learner
        try:
            run = build_run(config, server, trainer, questions, ranks, checkpoints, latest, interrupts)
            interrupts.install()
            run.train()
            finished = True
        except Interrupted:
            raise KeyboardInterrupt from None
        except Exception:  # whatever it is: if torchrun starts another learner, actors wait for that one
            over = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) >= config.learner.restarts
            raise
        finally:
            try:
                ranks.run("stop")
            finally:
                if finished:
                    rendezvous.retire(config.run, "learner", place)
                server.close(over=over)
    dist.destroy_process_group()
