"""Makes the parts of a run on rank 0, and fits them together: files are read, and what is wrong with them is said."""

from __future__ import annotations

import logging
import math
import threading

import torch.distributed as dist

from common.config import Config
from common.process import FatalError
from common.run_files import sync_of_run
from common.stopwatch import Stopwatch
from learner import recording, resume
from learner.checkpoint import Checkpoint, Checkpoints
from learner.gather_action import published_buckets
from learner.loop.batches import Batches
from learner.loop.evaluator import Evaluator
from learner.loop.interrupts import Interrupts
from learner.loop.publishing import Publishing
from learner.loop.reporting import Reporting
from learner.loop.saving import Saving
from learner.loop.settling import Settling
from learner.loop.skips import SkippedSteps
from learner.loop.training_work import TrainingWork
from learner.rank_links import RankLinks
from learner.ranks import Ranks, collective_timeout_s
from learner.recording import Recorder
from learner.report.report import Report
from learner.run import Run
from learner.state import RunState, Snapshot
from learner.train.step_reward import StepReward
from learner.train.trainer import Trainer
from learner.weights.adapter_publisher import AdapterPublisher
from learner.weights.publisher import Publisher
from learner.work.admission import Limits
from learner.work.curriculum import Curriculum
from learner.work.questions import RunQuestions, ShuffledQuestions, hash_questions
from learner.work.scheduler import staleness_bound
from learner.work.server import WorkServer
from router import Router

log = logging.getLogger("learner")


def build_run(
    config: Config,
    server: WorkServer,
    trainer: Trainer,
    run_questions: RunQuestions,
    ranks: Ranks,
    links: RankLinks,
    checkpoints: Checkpoints,
    latest: Checkpoint | None,
    snapshot: Snapshot | None,
    interrupts: Interrupts,
) -> Run:
    """A run that has yet to begin, or to go on.

    Opens the ledger, the report's files and, with ``learner.record``, the recording; what these
    hold of steps after the checkpoint is undone.

    Args:
        server: listens already, so that a taken port is noticed before the model is loaded.
        trainer: its policy is the one to publish; that of ``latest``, if there is one.
        run_questions: what is trained on and evaluated.
        ranks: knows the actions ``train``, ``probe``, ``gather``, ``save`` and ``export``.
        links: with the other ranks.
        checkpoints: where ``ranks`` saves.
        latest: the checkpoint to go on from; None at the beginning of a run.
        snapshot: what that checkpoint holds besides the weights; None exactly where ``latest`` is.
        interrupts: end every wait.

    Raises:
        ConfigError: the step term cannot be loaded, or does not fit the other settings.
        FatalError: the router's settings or the checkpoint do not fit, or the weights'
            address is taken.
    """
    learner = config.learner
    questions = ShuffledQuestions(run_questions.train, config.run.seed)
    digest = hash_questions(questions.questions, config.run.seed)
    state = _state(config, digest, server.lock, snapshot, latest)
    bound = staleness_bound(learner.groups_per_step, learner.staleness, learner.window)
    chosen = frozenset(config.run.languages)
    limits = Limits(trainer.policy.vocabulary, learner.microbatch_tokens, bound, chosen)
    stopwatch = Stopwatch()
    publisher = _publisher(config, server, trainer, links, interrupts)
    if learner.record is not None:
        recording.begin(learner.record, config, state.step)
    skipped = config.run.dir / "skipped"
    if snapshot is not None:
        recording.undo(skipped, state.step)
        resume.keep_configuration(config, snapshot.settings, state.step)
    report = Report(config, bound, state.step)
    publishing = Publishing(config, server, publisher, ranks, stopwatch, interrupts)
    batches = Batches(server, publishing, ranks, learner.group_timeout_s, stopwatch, interrupts)
    curriculum = Curriculum(questions, config.data.curriculum, state.curriculum)
    training_work = TrainingWork(server, state, curriculum, publishing, limits)
    evaluator = Evaluator(
        learner,
        () if config.model.silent_about_language else config.run.languages,
        {"train": questions.questions, "heldout": run_questions.heldout},
        state=state,
        server=server,
        training_work=training_work,
        publishing=publishing,
        batches=batches,
        ranks=ranks,
        limits=limits,
        detector=config.reward.diagnostics,
        report=report,
        stopwatch=stopwatch,
        interrupts=interrupts,
    )
    return Run(
        learner,
        state=state,
        ranks=ranks,
        training_work=training_work,
        batches=batches,
        publishing=publishing,
        evaluator=evaluator,
        settling=Settling(config, state, Recorder(learner.record, skipped)),
        reporting=Reporting(config, state, questions.questions, bound, report, server, publishing, stopwatch),
        saving=Saving(learner.checkpoint_every, state.step, checkpoints, ranks, stopwatch),
        stopwatch=stopwatch,
        skipped_steps=SkippedSteps(state, learner.steps, skipped),
        step_reward=StepReward.of(learner),
    )


def _publisher(
    config: Config, server: WorkServer, trainer: Trainer, links: RankLinks, interrupts: Interrupts
) -> Publisher | AdapterPublisher:
    policy, dtype, sync = trainer.policy, config.model.dtype, sync_of_run(config)
    others_wait_s = collective_timeout_s(config) if dist.get_world_size() > 1 else math.inf
    if config.lora.sends_adapters and policy.adapters is not None:
        peft_config = policy.adapters.peft_config(config.model.path)
        return AdapterPublisher(
            server, sync, peft_config, policy.adapters.parameters, dtype, interrupts.check, others_wait_s
        )
    buckets = published_buckets(config, trainer)
    return Publisher(server, sync, buckets, trainer.device, interrupts.check, others_wait_s, links)


def _state(
    config: Config,
    questions_digest: str,
    lock: threading.Condition,
    snapshot: Snapshot | None,
    latest: Checkpoint | None,
) -> RunState:
    try:
        router = Router(config.router, list(config.run.languages), config.run.seed, config.learner.steps)
    except ValueError as error:
        raise FatalError(str(error)) from None
    if snapshot is None or latest is None:
        return RunState.begin(config=config, router=router, questions_digest=questions_digest, lock=lock)
    state = RunState.restore(
        snapshot, latest.read_queued(), config=config, router=router, questions_digest=questions_digest, lock=lock
    )
    log.info("resuming after step %d of %d", state.step, config.learner.steps)
    return state
