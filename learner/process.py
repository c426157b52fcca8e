"""The process of one rank: what every rank sets up, and what rank 0 does beside the actions of all."""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from common.config import Config
from common.context import check_context
from common.gpus import has_cuda
from common.net import rendezvous
from common.progress import BRIEF_S, Activity
from common.rollout_settings import rollout_settings
from common.tokenizer import load_tokenizer
from learner import resume
from learner.actions import RankActions
from learner.build import build_run
from learner.checkpoint import STATE_FILE, Checkpoints
from learner.loop.interrupts import Interrupted, Interrupts
from learner.rank_links import RankLinks
from learner.rank_watch import RankWatch
from learner.ranks import Ranks, broadcast, collective_timeout_s
from learner.report.trackers.start import check_trackers
from learner.run_lock import locked
from learner.state import Snapshot
from learner.supervision import SUCCESSOR
from learner.train.distributed import set_up_distributed
from learner.train.trainer import Trainer
from learner.work.questions import RunQuestions, read_questions
from learner.work.server import WorkServer

log = logging.getLogger("learner")


@dataclass(frozen=True)
class Lead:
    """What rank 0 alone has, as it leads the run.

    Attributes:
        server: hands out groups to the actors.
        questions: of the run.
        place: what it announced in the rendezvous; None where there is none.
    """

    server: WorkServer
    questions: RunQuestions
    place: rendezvous.Place | None


def learn(config: Config, make_trainer: Callable[..., Trainer] = Trainer) -> None:
    """Runs one rank of the learner under torchrun, from its start to the end of the run.

    Args:
        make_trainer: makes the trainer, once the default process group is up; takes what ``Trainer`` does.

    Raises:
        FatalError: the run cannot begin or go on; or another rank has failed, for the reason given.
        KeyboardInterrupt: it was asked to end early, and is saved.
    """
    leads = int(os.environ.get("RANK", "0")) == 0
    check_trackers(config)
    with ExitStack() as owned:
        if leads:
            owned.enter_context(locked(config.run.dir))
        address = config.learner.address
        rendezvous.use_interface(rendezvous.host_of(address))
        server = WorkServer(address, config.learner.lease_timeout_s) if leads else None
        if server is not None:
            owned.push(_closing(server, config.learner.restarts))
        place = rendezvous.announce(config.run, "learner", address) if leads else None
        if not has_cuda():
            torch.set_num_threads(1)
        tokenizer = load_tokenizer(config.model.path)
        if server is not None:
            server.require(rollout_settings(config, tokenizer))
        questions = None
        if leads:  # before anything that takes long: what is wrong with the data is said at once
            with Activity("learner", f"reading the questions of {config.data.train}"):
                questions = read_questions(config, tokenizer)
        there = f"waiting for {config.learner.nodes} x {config.learner.ranks} ranks"
        start_others = "start the same command on each of learner.nodes machines"
        with Activity("learner", there, missing=start_others if config.learner.nodes > 1 else "", silent_s=BRIEF_S):
            set_up_distributed(collective_timeout_s(config))
        if not leads:  # until here each is ended by torchrun if another fails
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # rank 0 ends the run, and needs the others to save it
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        links = RankLinks(rendezvous.host_of(address) if config.learner.nodes > 1 else "127.0.0.1")
        lead = None if server is None or questions is None else Lead(server, questions, place)
        with RankWatch(links):
            _train(config, make_trainer, tokenizer, links, lead)
        dist.destroy_process_group()


def _count_questions(lead: Lead | None) -> int:
    """How many questions are trained on. Rank 0 alone reads them and tells the others; every rank must call this."""
    told = broadcast(b"" if lead is None else str(len(lead.questions.train)).encode())
    return int(told)


def _closing(server: WorkServer, restarts: int) -> Callable[..., None]:
    """Closes the server at the end of a run; actors wait for the next learner where there will be one."""

    def close(kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        failed = kind is not None and issubclass(kind, Exception)
        goes_on = failed and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) < restarts
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        server.close(over=not (goes_on or (interrupted and os.environ.get(SUCCESSOR))))

    return close


def _train(
    config: Config,
    make_trainer: Callable[..., Trainer],
    tokenizer: PreTrainedTokenizerBase,
    links: RankLinks,
    lead: Lead | None,
) -> None:
    """Makes what all ranks have, and then leads or follows."""
    torch.manual_seed(config.run.seed)
    if lead is not None:
        log.info("run.seed is %d; each engine's seed is made of it and of its actor's name", config.run.seed)
    config = config.with_questions(_count_questions(lead))
    others_wait_s = collective_timeout_s(config) if dist.get_world_size() > 1 else math.inf
    checkpoints = Checkpoints(config.run.dir / "checkpoints", config.learner.checkpoints_kept, others_wait_s)
    with Activity("learner", f"looking for a whole checkpoint in {config.run.dir}", silent_s=BRIEF_S):
        latest = checkpoints.latest()
    snapshot = None if latest is None else Snapshot.from_json(latest.state, latest.path / STATE_FILE)
    if lead is not None:  # before a model is read, and weights of another layout
        resume.check(config, None if snapshot is None else snapshot.settings)
        check_context(config, lead.questions.longest_prompt)
    with Activity("learner", f"reading the weights of {config.model.path}"):
        trainer = make_trainer(config, reference_moves=latest is not None and latest.has_reference_adapters)
    if latest is not None and snapshot is not None:
        with Activity("learner", f"reading the checkpoint {latest.path}"):
            found = checkpoints.load(latest.path, trainer.policy, trainer.optimizer, trainer.reference.copy)
            trainer.reference.resume(found, snapshot.step)
    actions = RankActions(config, trainer, checkpoints, tokenizer, links, None if lead is None else lead.place)
    ranks = Ranks(actions.by_name())
    if lead is None:
        ranks.follow()
        checkpoints.wait()
        return
    interrupts = Interrupts()
    try:
        run = build_run(
            config, lead.server, trainer, lead.questions, ranks, links, checkpoints, latest, snapshot, interrupts
        )
        actions.state = run.state
        interrupts.install()
        run.train()
        ranks.run("stop")
        rendezvous.retire(config.run, "learner", lead.place)
    except BaseException as error:
        ranks.stop()
        checkpoints.finish()
        if isinstance(error, Interrupted):
            raise KeyboardInterrupt from None
        raise
