"""Evaluations before the first step, after the last, and between: what to ask, and when training groups may not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

from common import wire
from common.config import LearnerConfig
from common.progress import BRIEF_S, Activity
from common.stopwatch import Stopwatch
from learner.evaluate.choices import compare_settings, languages_by_setting
from learner.evaluate.languages import Evaluation, read_reward_matrix
from learner.groups import Group
from learner.loop.batches import Batches
from learner.loop.interrupts import Interrupts
from learner.loop.publishing import Publishing
from learner.loop.training_work import TrainingWork
from learner.ranks import Ranks
from learner.state import RunState
from learner.work.admission import Limits
from learner.work.questions import digest_of_questions, pick_evenly
from learner.work.scheduler import WorkQueue
from learner.work.server import EveryQuestionGivenUp, WorkServer

log = logging.getLogger("learner")

_ATTEMPTS = 3  # a question at which so many attempts have failed for one cause is left out, see learner/work/turns.py
_NEWCOMERS = 3  # times that actors come in the wait before an evaluation, after which it is left out
_SETTINGS = "_settings"  # after the name of a set: its figures with sampled answers


class EvaluationReport(Protocol):
    """Who is given the results as they come."""

    def evaluation(self, number: int, name: str, evaluation: Evaluation) -> None:
        """Of the question set ``name``, after step ``number``."""

    def answered(self, name: str, groups: Sequence[Group]) -> None:
        """The greedy answers of the evaluation ``name``, whose figures :meth:`evaluation` is given."""

    def sampled_evaluation(self, number: int, name: str, told: dict[str, float]) -> None:
        """As :meth:`evaluation`, for sampled answers where the policy chooses its language."""


class Evaluator:
    """Has the actors answer a fixed choice of questions, instead of training groups, and reads the results off.

    Args:
        config: the section ``learner``.
        languages: in which every question is asked besides its own: those of the run, or none.
        question_sets: name -> questions; at most ``evaluate_questions`` of each set are asked, evenly spread.
        state: has the router and the training queue, and remembers which evaluations were made.
        server: hands out the questions.
        training_work: what the server hands out otherwise.
        publishing: publishes before an evaluation between steps.
        batches: waits for the answers.
        ranks: are kept waiting meanwhile.
        limits: what an answer must keep to.
        detector: ``reward.diagnostics``, whose name the diagnostics bear.
        report: is given every result.
        stopwatch: counts the seconds of the state ``evaluate``.
        interrupts: end a wait.
    """

    def __init__(
        self,
        config: LearnerConfig,
        languages: Sequence[str],
        question_sets: Mapping[str, list[wire.Question]],
        *,
        state: RunState,
        server: WorkServer,
        training_work: TrainingWork,
        publishing: Publishing,
        batches: Batches,
        ranks: Ranks,
        limits: Limits,
        detector: str,
        report: EvaluationReport,
        stopwatch: Stopwatch,
        interrupts: Interrupts,
    ) -> None:
        self._config, self._languages, self._state, self._server = config, list(languages), state, server
        self._detector = detector
        self._question_sets = {
            name: pick_evenly(questions, config.evaluate_questions)
            for name, questions in question_sets.items()
            if questions
        }
        for name, asked_now in self._question_sets.items() if config.evaluate else ():
            log.info(
                "evaluating %d of %d questions of %s (learner.evaluate_questions)", len(asked_now),
                len(question_sets[name]), name,
            )  # fmt: skip
        self._training_work, self._publishing, self._batches, self._ranks = training_work, publishing, batches, ranks
        self._limits, self._report, self._stopwatch, self._interrupts = limits, report, stopwatch, interrupts
        asked = self._question_sets if config.evaluate else {}
        self._digests = {name: digest_of_questions(questions) for name, questions in asked.items()}

    def is_due(self, step: int) -> bool:
        """Whether there is an evaluation after this step; the one after the last step is not meant."""
        every = self._config.evaluate_every
        return every > 0 and step % every == 0 and step < self._config.steps

    def evaluate_before(self) -> None:
        """Evaluates what no step has trained, and remembers what was found and of which questions.

        Blocks and raises as :meth:`evaluate`.
        """
        self._state.evaluation_before = self.evaluate("before")
        self._state.evaluated_before = self._digests

    def comparable_before(self) -> dict[str, Any]:
        """What :meth:`evaluate_before` found, of the sets whose questions are still those that are asked."""
        others = self._other_sets()
        return {
            name: figures
            for name, figures in self._state.evaluation_before.items()
            if name.removesuffix(_SETTINGS) not in others
        }

    def _other_sets(self) -> list[str]:
        """The sets of which other questions are asked now than before the first step, as far as that is known."""
        before = self._state.evaluated_before
        return [name for name, digest in self._digests.items() if before.get(name, digest) != digest]

    def resume(self) -> None:
        """Begins where a run goes on, after its policy was published and before training groups are handed out.

        Warns where other questions are asked than before the first step, and makes the evaluation of the step that the
        run goes on from, if that is due and was not made, as where it was interrupted. Blocks and raises as
        :meth:`evaluate`.
        """
        for name in self._other_sets():
            log.warning(
                "the %s questions that are evaluated are not those that were before the first step: summary.json will "
                "have no figures of %s before it", name, name,
            )  # fmt: skip
        step = self._state.step
        if self.is_due(step) and self._state.evaluated_step != step:
            log.info("making the evaluation after step %d, which has not been made", step)
            self._evaluate_step()

    def _evaluate_step(self) -> None:
        step = self._state.step
        self.evaluate(f"step-{step}")
        self._state.evaluated_step = step

    def evaluate(self, when: str) -> dict[str, Any]:
        """Evaluates the published policy, with the server's queue taken away from training.

        Every question is answered greedily in each language of the run and in its own. With ``evaluate_samples`` it is
        then also answered by sampling, in languages that the policy chooses or is given.

        Blocks until all questions are answered or given up; raises NobodyCame where no answers came for
        ``learner.group_timeout_s``, and Interrupted when the process is asked to end.

        Args:
            when: "before", "after", "step-10"; part of the names of the work.

        Returns:
            set -> Evaluation as a dictionary, and ``set_settings`` -> figures; empty without ``learner.evaluate``. A
            set is missing where no answer could be scored, which is an error in the log.
        """
        results: dict[str, Any] = {}
        for name, questions in self._question_sets.items() if self._config.evaluate else ():
            evaluation = self._evaluate_greedy(f"{when}-{name}", questions)
            if evaluation is None:
                log.error(
                    "evaluation %s-%s has no figures: of no question was the answer in its own language scored; "
                    "the reward process says why", when, name,
                )  # fmt: skip
                continue
            self._report.evaluation(self._state.step, name, evaluation)
            results[name] = evaluation.as_dict()
            if self._config.evaluate_samples:
                figures = self._evaluate_choices(f"{when}-{name}-settings", questions)
                self._report.sampled_evaluation(self._state.step, name, figures)
                results[name + _SETTINGS] = figures
        return results

    def publish_and_evaluate(self) -> float:
        """Publishes the newest step and evaluates it with no training group under way; finished ones wait.

        So no training group grows older for the evaluation: those that are out are waited for, and none is handed out
        before its end. Where actors come meanwhile, or lose their weights, all get the newest and the wait begins anew.
        Where the groups do not come, it only publishes. Blocks and raises as :meth:`evaluate`.

        Returns:
            Seconds that belong to no step: those of the evaluation; 0 where there was none. The wait for the groups
            that were out and the publishing belong to the next step, which trains the tokens that came meanwhile.
        """
        step = self._state.step
        if why := self._wait_until_quiet():
            log.warning("no evaluation after step %d: %s", step, why)
            self._publish_where_needed()
            return 0.0
        self._serve(_queue(0), self._training_work.make, self._training_work.enter_failure)  # nothing is handed out
        self._publish_where_needed()
        began = time.monotonic()
        self._evaluate_step()
        seconds = time.monotonic() - began
        with self._state.lock:
            self._state.queue.mark_published()
        self._training_work.serve()
        return seconds

    def _wait_until_quiet(self) -> str:
        """Waits until no training group is under way; returns why that cannot be waited for, empty where it could."""
        what = "waiting for the groups that are under way, before an evaluation"
        for _ in range(_NEWCOMERS):
            with self._stopwatch("wait"), Activity("learner", what, silent_s=BRIEF_S):
                if self._server.wait_until_all_finished(self._config.group_timeout_s, self._check):
                    return ""
            if not self._server.has_newcomers():
                return (
                    "groups are still under way, and none has come for learner.group_timeout_s = "
                    f"{self._config.group_timeout_s:.0f} s"
                )
            self._publish_where_needed()
        return f"an actor has come or lost its weights, {_NEWCOMERS} times while groups were waited for"

    def _publish_where_needed(self) -> None:
        """Publishes the newest step, unless every actor has it."""
        if self._publishing.version != self._state.step or self._server.has_newcomers():
            self._publishing.publish(self._state.step)

    def _check(self) -> None:
        self._interrupts.check()
        self._ranks.keep_waiting(self._config.group_timeout_s / 2)

    def _evaluate_greedy(self, name: str, questions: list[wire.Question]) -> Evaluation | None:
        languages = [list(dict.fromkeys([*self._languages, question.language])) for question in questions]
        groups = self._answers(name, questions, languages, greedy=True)
        self._report.answered(name, groups)
        return read_reward_matrix(groups, self._languages, self._state.router, self._detector)

    def _evaluate_choices(self, name: str, questions: list[wire.Question]) -> dict[str, float]:
        by_setting = {
            question.index: languages_by_setting(question, self._state.router, self._languages, self._config)
            for question in questions
        }
        languages = [list(chain.from_iterable(by_setting[question.index].values())) for question in questions]
        return compare_settings(self._answers(name, questions, languages, greedy=False), by_setting, self._detector)

    def _answers(
        self, name: str, questions: list[wire.Question], languages: list[list[str]], *, greedy: bool
    ) -> list[Group]:
        """The groups of all questions that were answered, question n in ``languages[n]``; none if all were given up."""

        def make(sequence: int) -> wire.Work:
            return wire.Work(
                id=f"{name}-{sequence}",
                question=questions[sequence],
                languages=languages[sequence],
                propensities=[1.0] * len(languages[sequence]),
                router_version=0,
                policy_version=self._publishing.version,
                greedy=greedy,
            )

        def leave_out(sequence: int, reason: str) -> None:
            log.error("evaluation %s goes on without question %d: %s", name, sequence, reason)
            queue.lower_total()

        queue = _queue(len(questions))
        self._serve(queue, make, leave_out)
        try:
            return self._batches.next_batch("evaluate")
        except EveryQuestionGivenUp:
            log.error(
                "evaluation %s: all %d questions were given up, for the reasons logged above", name, len(questions)
            )
            return []

    def _serve(
        self, queue: WorkQueue[Group], make: Callable[[int], wire.Work], on_failed: Callable[[int, str], None]
    ) -> None:
        self._server.serve(queue, make, on_failed, self._limits)


def _queue(questions: int) -> WorkQueue[Group]:
    """Hands all questions out at once, each to be answered once; ``take`` gives them together."""
    return WorkQueue(groups_per_step=questions, staleness=0, window=1, attempts=_ATTEMPTS, total=questions)
