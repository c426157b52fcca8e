"""All of a run that outlives its processes, but the weights: as it is in memory, and as it is in a checkpoint.

:meth:`RunState.capture` and :meth:`RunState.restore` are each other's inverse and stand side by side; what lies between
them is a :class:`Snapshot`, typed and with a version.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.process import FatalError
from learner import resume
from learner.former_run import set_aside_former_run
from learner.groups import Group
from learner.train.outcomes import group_outcome
from learner.work.curriculum import CurriculumState, SavedCurriculum
from learner.work.ledger import Ledger
from learner.work.scheduler import Setbacks, WorkQueue, find_stale, staleness_bound
from router import Router

log = logging.getLogger("learner.state")

# Of a checkpoint. Before 3 the optimizer kept all parameters in one group, and advantages were divided by another
# standard deviation.
VERSION = 3
LEDGER_FILE = "ledger.jsonl"  # in run.dir


class Totals(msgspec.Struct, forbid_unknown_fields=True):
    """Sums over the steps of a run, which the summary makes its means of.

    Args:
        response_tokens: number of response tokens in the groups of all steps, trained or not.
        lag_sum: sum of their lags, in policy updates.
        lag_max: largest of these.
        loop_s: seconds that the steps took, without evaluations between them.
        pause_s: seconds that generation stood still for weight updates, of the longest pause in each.
        staleness_bound: largest bound of these steps, which a resume may have changed, in policy updates.
    """

    response_tokens: int = 0
    lag_sum: float = 0.0
    lag_max: int = 0
    loop_s: float = 0.0
    pause_s: float = 0.0
    staleness_bound: int = 0

    def add_tokens(self, lags: NDArray[np.int32]) -> None:
        """Counts the response tokens of a step's groups, given the lag of each: [tokens]."""
        self.response_tokens += len(lags)
        self.lag_sum += float(lags.sum())
        self.lag_max = max(self.lag_max, int(lags.max()))


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The run's state in a checkpoint (``run.json``); finished groups that wait for their step lie beside it.

    Args:
        version: of this layout.
        step: how many steps were trained.
        questions_digest: of the seed and the training questions, as ``learner.work.questions.hash_questions`` gives it.
        next_sequence: the sequence number of the next fresh group.
        pending: sequence numbers handed out before it that no step has trained yet.
        setbacks: failed attempts and ended engines of these, where there were any.
        groups_retried: how many groups were given out again so far.
        groups_orphaned: how many of these because their actor was lost.
        groups_failed: how many were given up.
        ledger_size: bytes of the ledger that belong to these steps.
        router: as ``Router.state`` gives it.
        totals: sums over the steps.
        evaluation_before: what the evaluation before the first step found; empty without one.
        evaluated_before: set of questions -> digest of those that it asked, by ``digest_of_questions``.
        evaluated_step: after which step the newest evaluation between steps was made, 0 before the first; None where a
            program wrote the checkpoint that did not keep it.
        settings: the configuration of the steps until now, as JSON; empty where a program wrote the checkpoint that did
            not keep it.
        choice_shares: running shares of the languages that the policy chose.
        step_reward: what the user's step term keeps from step to step; it must be plain JSON.
        curriculum: which questions are asked, and which taught nothing lately.
        skipped_in_a_row: how many steps in a row trained nothing, as ``learner.loop.skips`` counts them; 0 where a
            program wrote the checkpoint that did not keep it.
        sound_step: the last step before the first of these, and the newest step where there are none; None where a
            program wrote the checkpoint that did not keep it.
        wall_seconds: since the run began, without the time between an end and a resume.
    """

    version: int
    step: int
    questions_digest: str
    next_sequence: int
    pending: list[int]
    groups_retried: int
    groups_orphaned: int
    groups_failed: int
    ledger_size: int
    router: dict[str, Any]
    totals: Totals
    evaluation_before: dict[str, Any]
    choice_shares: dict[str, float]
    wall_seconds: float
    step_reward: dict[str, Any] = {}
    curriculum: SavedCurriculum = SavedCurriculum()
    setbacks: list[Setbacks] = []
    evaluated_before: dict[str, str] = {}
    evaluated_step: int | None = None
    settings: dict[str, Any] = {}
    skipped_in_a_row: int = 0
    sound_step: int | None = None

    @classmethod
    def from_json(cls, state: Mapping[str, Any], file: Path) -> Snapshot:
        """Checks what was read from ``file``.

        Raises:
            FatalError: it has another version, or none, as the layout before version 2; or it is not such a record.
        """
        if state.get("version") != VERSION:
            found = (
                f"version {state['version']!r}" if "version" in state else "no version, so an older program wrote it"
            )
            raise FatalError(
                f"cannot resume from {file}: it has {found}, and this program reads version {VERSION}; finish the run "
                "with the program that began it, or begin anew in another run.dir"
            )
        try:
            return msgspec.convert(state, cls)
        except msgspec.ValidationError as error:
            raise FatalError(  # the file is as it was written: its digest is right
                f"cannot resume from {file}: {error}. It was written by another version of the program: finish the "
                "run with that one, or begin anew in another run.dir"
            ) from None

    def as_json(self) -> dict[str, Any]:
        state: dict[str, Any] = msgspec.to_builtins(self)
        return state


@dataclass
class RunState:
    """The run's state in memory; rank 0 alone has it.

    Nothing else is random or remembered: the router's state has its generator, and a step draws no random number.

    Args:
        lock: guards the queue and the router, which the server uses on its thread as it leases groups.
        questions_digest: see Snapshot.
        queue: which group is leased, finished or in training.
        ledger: what became of every group.
        router: draws the languages.
        step: how many steps were trained; the version of the newest policy.
        totals: sums over these steps.
        settings: of the steps from now on, as JSON.
        evaluation_before: see Snapshot.
        evaluated_before: see Snapshot.
        evaluated_step: see Snapshot.
        choice_shares: see Snapshot.
        step_reward: see Snapshot.
        curriculum: see Snapshot.
        skipped_in_a_row: see Snapshot.
        sound_step: see Snapshot.
        began: when the run would have begun had it never been interrupted, in seconds of ``time.monotonic``.
    """

    lock: threading.Condition
    questions_digest: str
    queue: WorkQueue[Group]
    ledger: Ledger
    router: Router
    settings: dict[str, Any]
    step: int = 0
    totals: Totals = field(default_factory=Totals)
    evaluation_before: dict[str, Any] = field(default_factory=dict)
    evaluated_before: dict[str, str] = field(default_factory=dict)
    evaluated_step: int = 0
    choice_shares: Mapping[str, float] = field(default_factory=dict)
    step_reward: dict[str, Any] = field(default_factory=dict)
    curriculum: CurriculumState = field(default_factory=CurriculumState)
    skipped_in_a_row: int = 0
    sound_step: int = 0
    began: float = field(default_factory=time.monotonic)

    def wall_seconds(self) -> float:
        """Since the run began, without the time between an end and a resume."""
        return time.monotonic() - self.began

    def capture(self) -> tuple[Snapshot, list[Group]]:
        """The state as it is now, and the finished groups that wait for their step.

        Writes the ledger out, so that the file has at least the bytes that the snapshot speaks of.
        """
        with self.lock:
            snapshot = Snapshot(
                version=VERSION,
                step=self.step,
                questions_digest=self.questions_digest,
                next_sequence=self.queue.next_sequence,
                pending=self.queue.untaken(),
                setbacks=self.queue.setbacks(),
                groups_retried=self.queue.retried,
                groups_orphaned=self.queue.orphaned,
                groups_failed=self.queue.failed,
                ledger_size=self.ledger.size(),
                router=self.router.state(),
                totals=msgspec.structs.replace(self.totals),  # a copy
                evaluation_before=self.evaluation_before,
                evaluated_before=self.evaluated_before,
                evaluated_step=self.evaluated_step,
                settings=self.settings,
                choice_shares=dict(self.choice_shares),
                step_reward=self.step_reward,
                curriculum=self.curriculum.capture(self.queue.untaken()),
                skipped_in_a_row=self.skipped_in_a_row,
                sound_step=self.sound_step,
                wall_seconds=self.wall_seconds(),
            )
            queued = list(self.queue.finished().values())
        self.ledger.flush()  # without the lock: the server answers actors while a file system hangs
        return snapshot, queued

    @classmethod
    def restore(
        cls,
        snapshot: Snapshot,
        queued: Sequence[Group],
        *,
        config: Config,
        router: Router,
        questions_digest: str,
        lock: threading.Condition,
    ) -> RunState:
        """The state that was captured, in this process.

        With a lower staleness bound than before, finished groups whose answers could become too old are asked for
        again, and the ledger says so. Steps that trained nothing are counted anew as ``learner.resume`` has it.

        Args:
            queued: the finished groups that were captured with it.
            router: of this run's configuration, before anything was drawn or observed; it loads the saved state.
            questions_digest: of the seed and the questions of this process.

        Raises:
            FatalError: the seed, the questions or the router's languages are not those of the run, or its ledger has
                lost lines.
        """
        if snapshot.questions_digest != questions_digest:
            raise FatalError(
                f"{config.run.dir} was begun with another seed or other questions than those of {config.data.train}: "
                "use the same, or another run.dir"
            )
        try:
            router.load(snapshot.router)
        except ValueError as error:
            raise FatalError(f"cannot resume {config.run.dir}: {error}") from None
        ledger = Ledger(config.run.dir / LEDGER_FILE, snapshot.ledger_size)
        fresh = _without_stale(config, snapshot, queued, ledger)
        queue = _queue(config, snapshot.step, snapshot.next_sequence, snapshot.pending, fresh, snapshot.setbacks)
        queue.retried = snapshot.groups_retried + len(queued) - len(fresh)
        queue.orphaned, queue.failed = snapshot.groups_orphaned, snapshot.groups_failed
        return cls(
            lock=lock,
            questions_digest=questions_digest,
            queue=queue,
            ledger=ledger,
            router=router,
            settings=config.model_dump(mode="json"),
            step=snapshot.step,
            totals=msgspec.structs.replace(snapshot.totals),
            evaluation_before=snapshot.evaluation_before,
            evaluated_before=snapshot.evaluated_before,
            # Where it was not kept, most likely the one that was due has been made.
            evaluated_step=snapshot.step if snapshot.evaluated_step is None else snapshot.evaluated_step,
            choice_shares=snapshot.choice_shares,
            step_reward=snapshot.step_reward,
            curriculum=CurriculumState.restore(snapshot.curriculum, snapshot.next_sequence),
            skipped_in_a_row=_skipped_in_a_row(config, snapshot),
            sound_step=_sound_step(snapshot),
            began=time.monotonic() - snapshot.wall_seconds,
        )

    @classmethod
    def begin(cls, *, config: Config, router: Router, questions_digest: str, lock: threading.Condition) -> RunState:
        """The state of a run before its first step; what another run left in its directory is set aside."""
        set_aside_former_run(config.run.dir)
        return cls(
            lock=lock,
            questions_digest=questions_digest,
            queue=_queue(config),
            ledger=Ledger(config.run.dir / LEDGER_FILE),
            router=router,
            settings=config.model_dump(mode="json"),
        )


def _skipped_in_a_row(config: Config, snapshot: Snapshot) -> int:
    skipped = snapshot.skipped_in_a_row
    if skipped and resume.are_forgiven(config, snapshot.settings, snapshot.step):
        log.info("steps that train nothing are counted anew: until step %d there were %d", snapshot.step, skipped)
        return 0
    return skipped


def _sound_step(snapshot: Snapshot) -> int:
    # Where it was not kept: this late at the most, and earlier where steps without gradient lie between those skipped.
    return snapshot.step - snapshot.skipped_in_a_row if snapshot.sound_step is None else snapshot.sound_step


def _without_stale(config: Config, snapshot: Snapshot, queued: Sequence[Group], ledger: Ledger) -> list[Group]:
    """The finished groups that keep the staleness bound of this configuration; the others are entered as stale."""
    learner = config.learner
    bound = staleness_bound(learner.groups_per_step, learner.staleness, learner.window)
    oldest = {group.work.sequence: min(int(rollout.versions.min()) for rollout in group.rollouts) for group in queued}
    useless = sorted(group.work.sequence for group in queued if group_outcome(group, learner) != "trained")
    aside = useless[: learner.refill]
    stale = find_stale(snapshot.pending, oldest, snapshot.step, learner.groups_per_step, bound, aside)
    for group in queued:
        if (sequence := group.work.sequence) in stale:
            reason = (
                f"made by policy version {oldest[sequence]}, too old for the bound of {bound} that the run resumes with"
            )
            ledger.enter(sequence, group.work.question.index, "stale", snapshot.step, reason)
    if stale:
        log.warning(
            "%d of %d finished groups are too old for the staleness bound of %d (learner.groups_per_step, staleness, "
            "window), and are asked for again", len(stale), len(queued), bound,
        )  # fmt: skip
    return [group for group in queued if group.work.sequence not in stale]


def _queue(
    config: Config,
    step: int = 0,
    next_sequence: int = 0,
    pending: Sequence[int] = (),
    queued: Sequence[Group] = (),
    setbacks: Sequence[Setbacks] = (),
) -> WorkQueue[Group]:
    learner = config.learner
    return WorkQueue(
        groups_per_step=learner.groups_per_step,
        staleness=learner.staleness,
        window=learner.window,
        attempts=learner.group_attempts,
        engines=learner.group_engines,
        total=max(0, learner.steps - step) * learner.groups_per_step,
        next_sequence=next_sequence,
        pending=pending,
        results={group.work.sequence: group for group in queued},
        setbacks=setbacks,
        refill=learner.refill,
        is_useful=lambda group: group_outcome(group, learner) == "trained",
    )
