"""Learner rank 0: the one owner of data cursor, ledger, router, queue and policy version, and the algorithm's loop."""

from __future__ import annotations

import logging
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import chain
from typing import Any, get_args

from transformers import PreTrainedTokenizerBase

from common import wire
from common.config import Config
from common.process import FatalError
from common.stopwatch import Stopwatch
from learner import recording
from learner.checkpoint import Checkpoints
from learner.evaluate.languages import evaluation_queue, evaluation_work, summarise
from learner.groups import Group
from learner.ranks import Ranks
from learner.report.report import Pulse, Report, per_step, time_spent, token_lags
from learner.report.verdict import shares
from learner.train import stages
from learner.train.policy import layout
from learner.train.trainer import StepResult, Trainer, outcome
from learner.weights.buckets import plan
from learner.weights.publisher import Publisher
from learner.work.admission import Limits
from learner.work.ledger import Ledger, Outcome, audit, read_routed
from learner.work.questions import ShuffledQuestions, hash_questions, pick_evenly, read_questions
from learner.work.scheduler import WorkQueue, staleness_bound
from learner.work.server import WorkServer
from router import Router, mutual_information

log = logging.getLogger("learner")

_TURN_S = 0.5  # how long a wait lasts before it looks at newcomers, deadlines and interrupts


class Interrupted(Exception):
    """The run was asked to end early."""


class Run:
    """A training run as rank 0 leads it.

    Args:
        server: already listening, so that a taken port is noticed before the model is loaded.
        ranks: knows the actions ``train``, ``gather``, ``save`` and ``export``.
        checkpoints: where to write them.
        state: of the one to go on from, as ``Checkpoints.latest`` gives it; empty at the beginning of a run.
    """

    def __init__(
        self, config: Config, server: WorkServer, trainer: Trainer, tokenizer: PreTrainedTokenizerBase, ranks: Ranks,
        checkpoints: Checkpoints, state: dict[str, Any],
    ) -> None:  # fmt: skip
        self.config, self._server, self._ranks, self._checkpoints = config, server, ranks, checkpoints
        learner = config.learner
        longest = config.data.max_prompt_tokens
        self._questions = ShuffledQuestions(read_questions(config.data.train, tokenizer, longest), config.run.seed)
        self._heldout = read_questions(config.data.heldout, tokenizer, longest) if config.data.heldout else []
        self._languages = list(config.run.languages)
        try:
            self._router = Router(config.router, self._languages, config.run.seed, learner.steps)
        except ValueError as error:
            raise FatalError(str(error)) from None
        self._digest = hash_questions(self._questions.questions, config.run.seed)
        self.bound = staleness_bound(learner.groups_per_step, learner.staleness, learner.window)
        buckets = plan(layout(trainer.policy), config.model.dtype, config.sync.bucket_mb)
        self._publisher = Publisher(server, config.sync, buckets, trainer.device, self._check_interrupt)
        self._limits = Limits(trainer.policy.vocabulary, learner.microbatch_tokens)
        self._watch = Stopwatch()
        self._interrupted, self._version = False, 0  # asked to end; of the policy the engines have
        self._totals: dict[str, float] = {"response_tokens": 0, "lag_sum": 0, "lag_max": 0, "loop_s": 0, "pause_s": 0}
        self._before: dict[str, Any] = {}
        self._shares: Mapping[str, float] = {}  # of the languages that the policy chose, an average over steps
        self._begin(state)
        if learner.record is not None:
            recording.begin(learner.record, config, self.step)
        self._report = Report(config, self.bound, self.step)

    def _begin(self, state: dict[str, Any]) -> None:
        learner = self.config.learner
        self.step = self._saved = int(state.get("step", 0))  # of the newest checkpoint, or the untrained policy
        self._began = time.monotonic() - float(state.get("wall_seconds", 0.0))  # as if never interrupted
        if state:
            if state["questions"] != self._digest:
                raise FatalError(
                    f"{self.config.run.dir} was begun with another seed or other questions than those of "
                    f"{self.config.data.train}: use the same, or another run.dir"
                )
            try:
                self._router.load(state["router"])
            except ValueError as error:
                raise FatalError(f"cannot resume {self.config.run.dir}: {error}") from None
            self._totals |= state["totals"]
            self._before, self._shares = state["before"], state["shares"]
            log.info("resuming after step %d of %d", self.step, learner.steps)
        self.ledger_path = self.config.run.dir / "ledger.jsonl"
        self._ledger = Ledger(self.ledger_path, state.get("ledger_size", 0))
        self._queue: WorkQueue[Group] = WorkQueue(
            groups_per_step=learner.groups_per_step,
            staleness=learner.staleness,
            window=learner.window,
            attempts=learner.group_attempts,
            total=max(0, learner.steps - self.step) * learner.groups_per_step,
            next_sequence=state.get("next_sequence", 0),
            pending=state.get("pending", []),
            results={group.work.sequence: group for group in state.get("queued", [])},
        )
        self._queue.retried, self._queue.orphaned, self._queue.failed = state.get("so_far", (0, 0, 0))

    # -- the loop ------------------------------------------------------------------------------------------------

    def lead(self) -> None:
        """The algorithm. Ends with ``summary.json`` and the exported model; raises Interrupted on SIGTERM or SIGINT."""
        for kind in (signal.SIGTERM, signal.SIGINT):
            signal.signal(kind, self._interrupt)
        try:
            self._publish()
            self._before = self._before or self._evaluate("before")
            self._server.serve(self._queue, self._work, self._failed, self._limits)
            self._mark, self._start = time.monotonic(), (self.step, self._seconds())
            self._report.begin(self._start[1])
            every = self.config.learner.evaluate_every
            while self.step < self.config.learner.steps:
                stage = self.config.learner.stage(self.step)
                batch, self._shares = stages.rewarded(self._take(), stage, self._shares)
                result = self._train(batch)
                self._observe(batch)
                self._log(batch, result)  # first, as an interrupt may end what follows
                between = every and self.step % every == 0 and self.step < self.config.learner.steps
                self._evaluate_between() if between else self._publish()
                self._save()
            self._save(always=True)
            self._finish(self._step_seconds(), self._evaluate("after"))
        except Interrupted:
            self._save(always=True)
            self._checkpoints.wait()
            log.info("interrupted after step %d; the same command resumes", self.step)
            raise
        finally:
            self._report.close()

    def _take(self, state: str = "wait") -> list[Group]:
        """The P groups of the next step; newcomers get the current weights meanwhile."""
        deadline = time.monotonic() + self.config.learner.batch_timeout_s
        while True:
            self._check_interrupt()
            with self._watch(state):
                batch = self._server.take(_TURN_S)
            if batch is not None:
                return batch
            if self._server.has_newcomers():
                self._publish()
            if time.monotonic() > deadline:
                raise FatalError(
                    f"no full batch within learner.batch_timeout_s = {self.config.learner.batch_timeout_s:.0f} s: "
                    f"{self._server.counts()}, actors: {', '.join(self._server.members()) or 'none'}"
                )

    def _train(self, batch: list[Group]) -> StepResult:
        with self._watch("train"):
            result: StepResult = self._ranks.call("train", number=self.step, batch=batch)
        lags = token_lags(batch, self.step)
        self.step += 1
        self._totals["lag_sum"] += float(lags.sum())
        self._totals["lag_max"] = max(self._totals["lag_max"], int(lags.max()))
        self._totals["response_tokens"] += len(lags)
        if self.config.learner.record is not None:
            recording.write(self.config.learner.record, self.step, batch, result)
        if result.problem:
            path = recording.write(self.config.run.dir / "skipped", self.step, batch, result)
            log.error("step %d is skipped, %s; its groups are in %s", self.step, result.problem, path)
        for group in batch:
            what, reason = outcome(group, self.config.learner), group.note
            if result.problem and what == "trained":
                what, reason = "skipped", result.problem
            sequence, row, work = group.work.sequence, group.work.question.index, stages.settled(group)
            self._ledger.enter(sequence, row, what, self.step, reason, work, **group.took())
        return result

    def _observe(self, batch: list[Group]) -> None:
        learned = stages.observations(batch, self._languages)
        with self._server.lock:  # the server draws from the router as it leases
            self._router.observe(learned)

    def _publish(self) -> None:
        """The current weights as version ``step`` to all actors; waits for the first one if there is none."""
        deadline = time.monotonic() + self.config.actor.start_timeout_s
        while not self._server.members():
            with self._watch("start"):
                time.sleep(_TURN_S / 5)
            self._check_interrupt()
            if time.monotonic() > deadline:
                raise FatalError(
                    f"no actor came to {self.config.learner.address} within actor.start_timeout_s = "
                    f"{self.config.actor.start_timeout_s:.0f} s"
                )
        with self._watch("publish"):
            weights, probe = self._ranks.call("gather")
            self.published = self._publisher.publish(self.step, weights, probe)
        self._version = self.step
        self._server.mark_published(self.published.members)

    def _log(self, batch: list[Group], result: StepResult) -> None:
        spent, self._mark = time.monotonic() - self._mark, time.monotonic()
        self._totals["loop_s"] += spent
        self._totals["pause_s"] += self.published.pause_s
        with self._watch("report"):
            pulse = Pulse(self._seconds(), self._server.counts(), self._server.members(), self.published, spent)
            self._server.update_status(*self._report.step(self.step, batch, result, pulse))
            if self.step % self.config.router.interval == 0 or self.step == 1:
                with self._server.lock:  # the server meets new names as it leases
                    learned = self._router.log()
                self._report.router(self.step, learned)

    def _save(self, *, always: bool = False) -> None:
        self._checkpoints.poll()
        due = always or self.step % self.config.learner.checkpoint_every == 0
        if not due or self.step == self._saved:
            return
        self._saved = self.step
        with self._watch("save"):
            self._ranks.call("save", number=self.step)

    def state(self) -> dict[str, Any]:
        """All of the run but model and optimizer, as JSON but for ``queued``; goes into their checkpoint.

        Nothing else is random or remembered: the router's state has its generator, and a step draws no numbers.
        """
        with self._server.lock:
            return {
                "step": self.step,
                "questions": self._digest,
                "next_sequence": self._queue.next_sequence,
                "pending": self._queue.untaken(),
                "so_far": [self._queue.retried, self._queue.orphaned, self._queue.failed],
                "queued": list(self._queue.finished().values()),
                "ledger_size": self._ledger.flush(),
                "router": self._router.state(),
                "totals": self._totals,
                "before": self._before,
                "shares": self._shares,
                "wall_seconds": time.monotonic() - self._began,
            }

    # -- what the server asks, on its thread -----------------------------------------------------------------------

    def _work(self, sequence: int) -> wire.Work:
        question = self._questions[sequence]
        draw = self._router.draw(question.language, question.topics, question.regions)
        return wire.Work(
            id=f"train-{sequence}",
            question=question,
            languages=draw.languages,
            propensities=draw.propensities,
            router_version=draw.router_version,
            policy_version=self._version,
            greedy=False,
        )

    def _failed(self, sequence: int, reason: str) -> None:
        self._ledger.enter(sequence, self._questions[sequence].index, "failed", self.step, reason)

    # -- before, after, and the end --------------------------------------------------------------------------------

    def _evaluate(self, when: str) -> dict[str, Any]:
        """Greedy answers to trained and held-out questions in every language: ``{set: Evaluation as dict}``.

        And, if asked for, sampled ones in languages that the policy chooses or is told: ``{set_settings: figures}``.
        """
        learner, results = self.config.learner, dict[str, Any]()
        for name, questions in {"train": self._questions.questions, "heldout": self._heldout}.items():
            if questions and learner.evaluate:
                some = pick_evenly(questions, learner.evaluate_questions)
                asked = [list(dict.fromkeys([*self._languages, question.language])) for question in some]
                answers = self._answers(f"{when}-{name}", some, asked, greedy=True)
                evaluation = summarise(answers, self._languages, self._router)
                self._report.evaluation(self.step, name, evaluation)
                results[name] = evaluation.as_dict()
                if learner.evaluate_samples:
                    how = (self._router, self._languages, learner)
                    plans = {question.index: stages.settings(question, *how) for question in some}
                    asked = [list(chain.from_iterable(plan.values())) for plan in plans.values()]
                    answers = self._answers(f"{when}-{name}-settings", some, asked, greedy=False)
                    results[f"{name}_settings"] = stages.compared(answers, plans)
                    self._report.settings(self.step, name, results[f"{name}_settings"])
        return results

    def _answers(
        self, name: str, questions: list[wire.Question], languages: list[list[str]], *, greedy: bool
    ) -> list[Group]:
        def work(sequence: int) -> wire.Work:
            asked, version = languages[sequence], self._version
            return evaluation_work(name, sequence, questions[sequence], asked, version, greedy=greedy)

        def failed(sequence: int, reason: str) -> None:
            log.error("evaluation %s goes on without question %d: %s", name, sequence, reason)
            queue.lower_total()

        queue = evaluation_queue(len(questions))
        self._server.serve(queue, work, failed, self._limits)
        self._ranks.call("wait")  # for one batch timeout more
        return self._take("evaluate")

    def _evaluate_between(self) -> None:
        """Publishes and evaluates with no training group under way; finished ones wait, so that no lag grows."""
        began = time.monotonic()
        with self._watch("evaluate"):
            quiet = self._server.wait_until_all_finished(self.config.learner.batch_timeout_s, self._check_interrupt)
        if not quiet:
            log.warning("no evaluation after step %d: actors come or go", self.step)
            return self._publish()
        self._server.serve(evaluation_queue(0), self._work, self._failed)  # nothing to lease while weights go out
        self._publish()
        self._evaluate(f"step-{self.step}")
        with self._server.lock:
            self._queue.mark_published()
        self._server.serve(self._queue, self._work, self._failed, self._limits)
        self._mark += time.monotonic() - began

    def _finish(self, spent: dict[str, dict[str, float]], after: dict[str, Any]) -> None:
        self._ranks.call("export")
        self._checkpoints.wait()
        self._report.summary(self._summary(after) | {"step_seconds": spent})

    def _summary(self, after: dict[str, Any]) -> dict[str, Any]:
        self._ledger.flush()
        found = audit(self.ledger_path, self._queue.next_sequence, self._queue.untaken())
        totals, before = self._totals, self._before
        regions = self._routed_by_region()
        information, shuffled = mutual_information(regions)
        by_region: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for region, language in regions:
            by_region[region][language] += 1

        def of(results: dict[str, Any], part: str, key: str) -> Any:
            return results.get(part, {}).get(key)

        return {
            "steps": self.step,
            **{f"groups_{outcome}": found.outcomes.get(outcome, 0) for outcome in get_args(Outcome)},
            "groups_retried": self._queue.retried,
            "questions_lost": found.lost,
            "questions_duplicated": found.duplicated,
            "staleness_max": totals["lag_max"],
            "staleness_mean": totals["lag_sum"] / max(totals["response_tokens"], 1),
            "staleness_bound": self.bound,
            "reward_before": of(before, "train", "own"),
            "reward_after": of(after, "train", "own"),
            "heldout_before": of(before, "heldout", "own"),
            "heldout_after": of(after, "heldout", "own"),
            "compliance_before": of(before, "train", "compliance"),
            "compliance_after": of(after, "train", "compliance"),
            "reward_by_language": of(after, "train", "own_by_language"),
            "router_top_by_topic": {
                name.removeprefix("topic:"): max(chances["softmax"].items(), key=lambda one: one[1])[0]
                for name, chances in self._router.log()["probs"].items()
                if name.startswith("topic:")
            },
            "routed_by_region": {region: dict(counts.most_common()) for region, counts in sorted(by_region.items())},
            "region_language_bits": information,
            "region_language_bits_shuffled": shuffled,
            "tokens_per_second": totals["response_tokens"] / max(totals["loop_s"], 1e-9),
            "bottleneck": self._report.overall().bottleneck,
            "time_shares": {process: shares(states) for process, states in self._seconds().items()},
            "evaluation_before": before,
            "evaluation_after": after,
            "wall_seconds": time.monotonic() - self._began,
            "config": self.config.model_dump(mode="json"),
        }

    def _step_seconds(self) -> dict[str, dict[str, float]]:
        """Of a step of the loop, on average, for every process; and the whole step and generation's pause in it."""
        since, before = self._start
        told = per_step(before, self._seconds(), max(self.step - since, 1))
        return told | {"run": {name: self._totals[f"{name}_s"] / max(self.step, 1) for name in ("loop", "pause")}}

    def _routed_by_region(self) -> list[tuple[str, str]]:
        """Region and language of every draw and choice in the last third of the run."""
        asked = {question.index: question for question in self._questions.questions}
        pairs = []
        for row, languages in read_routed(self.ledger_path, self.step - self.step // 3):
            drawn = languages[len(languages) - self._router.drawn(asked[row].topics) :]
            pairs += [(region, language) for region in asked[row].regions for language in drawn if language]
        return pairs

    def _seconds(self) -> dict[str, dict[str, float]]:
        return time_spent(self._watch.seconds(), self._server.members())

    def _interrupt(self, *_: object) -> None:
        self._interrupted = True

    def _check_interrupt(self) -> None:
        if self._interrupted:
            raise Interrupted
