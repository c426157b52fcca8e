"""A training run as rank 0 leads it: the algorithm and nothing else.

    publish the policy to the engines; evaluate it
    for each step:
        take the next P groups         learner.loop.batches
        set the rewards of the stage   learner.train.stages, learner.train.step_reward
        train on them, on all ranks    learner.train.trainer, through learner.ranks
        settle what became of them     learner.loop.settling
        report the step                learner.loop.reporting
        end where nothing is trained   learner.loop.skips
        publish, or evaluate as well   learner.loop.publishing, learner.loop.evaluator
        save now and then              learner.loop.saving
    save; evaluate; export the model; write the summary

The parts are made in ``learner.build``. Everything that outlives this process is in ``learner.state``.
"""

from __future__ import annotations

import logging

from common.config import LearnerConfig
from common.progress import BRIEF_S, Activity
from common.stopwatch import Stopwatch
from learner.groups import Group, StepResult
from learner.loop.batches import Batches
from learner.loop.evaluator import Evaluator
from learner.loop.interrupts import Interrupted, NobodyCame
from learner.loop.publishing import Publishing
from learner.loop.reporting import Reporting
from learner.loop.saving import Saving
from learner.loop.settling import Settling
from learner.loop.skips import SkippedSteps
from learner.loop.training_work import TrainingWork
from learner.ranks import Ranks
from learner.state import RunState
from learner.train import stages
from learner.train.step_reward import StepReward

log = logging.getLogger("learner")


class Run:
    """The run's loop.

    Args:
        config: the section ``learner``.
        step_reward: a step term of the user's own; None: there is none.
        state: what the steps change.
        ranks: knows the actions ``train`` and ``export``.
        training_work: has training groups handed out.
        batches: waits for them.
        publishing: publishes the policy.
        evaluator: evaluates it.
        settling: settles what became of a step's groups.
        reporting: tells people.
        saving: writes checkpoints.
        stopwatch: counts the seconds of the state ``train``.
        skipped_steps: notices that nothing is trained any more.
    """

    def __init__(
        self,
        config: LearnerConfig,
        *,
        state: RunState,
        ranks: Ranks,
        training_work: TrainingWork,
        batches: Batches,
        publishing: Publishing,
        evaluator: Evaluator,
        settling: Settling,
        reporting: Reporting,
        saving: Saving,
        stopwatch: Stopwatch,
        skipped_steps: SkippedSteps,
        step_reward: StepReward | None = None,
    ) -> None:
        self.config, self.state, self.ranks = config, state, ranks
        self.training_work, self.batches, self.publishing = training_work, batches, publishing
        self.evaluator, self.settling, self.reporting, self.saving = evaluator, settling, reporting, saving
        self.stopwatch, self.skipped_steps, self.step_reward = stopwatch, skipped_steps, step_reward

    def train(self) -> None:
        """Trains to the last step, exports the model and writes the summary.

        Blocks for all of the run; every wait within has a deadline.

        Raises:
            Interrupted: the process was asked to end early; the newest step is in a checkpoint.
            NobodyCame: no actor came, or no group in time; the newest step is in a checkpoint.
            FatalError: every question was given up, no answer can be scored, nothing is trained in many steps in a row
                (at once where that was so in the run that is resumed), or something could not be written.
        """
        try:
            if (error := self.skipped_steps.error()) is not None:  # as the run ended that this one resumes
                raise error
            self.begin()
            while self.state.step < self.config.steps:
                scored = self.batches.next_batch()
                batch = self.with_step_rewards(scored)
                result = self.train_step(batch)
                self.settling.settle(batch, result, scored)
                # This step is trained, so it is reported before an interrupt may end the run.
                self.reporting.step(batch, result)
                self.end_if_nothing_is_trained(result)
                self.publish_or_evaluate()
                self.saving.save_if_due(self.state.step)
            self.finish()
        except Interrupted:
            self._save_at_an_early_end()
            log.info("interrupted after step %d; the same command resumes", self.state.step)
            raise
        except NobodyCame as error:
            log.error("the run ends after step %d: %s", self.state.step, error)  # before the save, which may fail, too
            self._save_at_an_early_end()
            log.info("the same command resumes")
            raise
        finally:
            try:
                self.state.ledger.flush()  # lines since the last step, of groups that were given up
            finally:
                self.reporting.close()  # last, as it may wait for somebody else's service

    def _save_at_an_early_end(self) -> None:
        self.saving.save(self.state.step)
        self.saving.wait()

    def begin(self) -> None:
        """Publishes the policy, evaluates it where that is due, and begins to lease training groups.

        An evaluation is due before the first step, and where a run that is resumed still owes one.
        """
        self.publishing.publish(self.state.step)
        if self.state.step:
            self.evaluator.resume()
        elif self.config.evaluate_before:
            self.evaluator.evaluate_before()
        self.training_work.serve()
        self.reporting.begin()

    def with_step_rewards(self, scored: list[Group]) -> list[Group]:
        """The P groups of the next step with the rewards of its stage and of the user's step term."""
        state, stage = self.state, self.config.stage(self.state.step)
        batch, state.choice_shares = stages.stage_rewards(scored, stage, state.choice_shares)
        if self.step_reward is not None:
            batch, state.step_reward = self.step_reward(batch, state.step, state.step_reward)
        return batch

    def train_step(self, batch: list[Group]) -> StepResult:
        """Trains on a batch, on all ranks."""
        with self.stopwatch("train"), Activity("learner", f"training step {self.state.step + 1}", silent_s=BRIEF_S):
            result: StepResult = self.ranks.run("train", number=self.state.step, batch=batch)
        return result

    def end_if_nothing_is_trained(self, result: StepResult) -> None:
        """Saves and raises the FatalError of a run in which every optimizer step is left out, step after step."""
        if (error := self.skipped_steps.count(result)) is not None:
            log.error("the run ends after step %d: %s", self.state.step, error)  # before the save, which may fail, too
            self._save_at_an_early_end()
            raise error

    def publish_or_evaluate(self) -> None:
        """Publishes the new policy; every ``learner.evaluate_every`` steps it is evaluated, too."""
        if self.evaluator.is_due(self.state.step):
            self.reporting.exclude(self.evaluator.publish_and_evaluate())
        else:
            self.publishing.publish(self.state.step)

    def finish(self) -> None:
        """Saves, evaluates, exports and sums up."""
        self.saving.save(self.state.step)
        self.reporting.end()
        after = self.evaluator.evaluate("after")
        self.saving.wait()  # before what may fail for want of room, and is done again from there
        self.ranks.run("export")
        self.reporting.summary(self.evaluator.comparable_before(), after)
