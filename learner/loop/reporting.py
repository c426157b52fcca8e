"""Collects what the report is made of: how long steps took, where each process spent its time, how the ledger adds up.

What is made of it, and written, is in ``learner.report``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from common import wire
from common.config import Config
from common.stopwatch import Stopwatch
from learner.groups import Group, StepResult
from learner.loop.publishing import Publishing
from learner.report.metrics import StepContext
from learner.report.report import Report
from learner.report.router_log import steps_between_lines
from learner.report.summary import Measured, routed_pairs, summarise
from learner.report.timing import TimeByState, time_by_process, time_per_step
from learner.state import LEDGER_FILE, RunState
from learner.weights.publisher import Published
from learner.work.ledger import audit, read_routed
from learner.work.server import WorkServer


class Reporting:
    """Reports every step of a run, and its summary.

    Args:
        config: of the run.
        state: of the run; the totals of time are kept here.
        questions: of the training set.
        staleness_bound: largest lag that the settings allow, in policy updates.
        report: writes.
        server: knows the actors and the queue; is given the newest step's line for those who ask for the status.
        publishing: knows what publishing took.
        stopwatch: of this process; counts the seconds of the state ``report``.
    """

    def __init__(
        self,
        config: Config,
        state: RunState,
        questions: Sequence[wire.Question],
        staleness_bound: int,
        report: Report,
        server: WorkServer,
        publishing: Publishing,
        stopwatch: Stopwatch,
    ) -> None:
        self._config, self._state, self._questions, self._bound = config, state, questions, staleness_bound
        self._report, self._server, self._publishing, self._stopwatch = report, server, publishing, stopwatch
        self._first_step, self._first_seconds = state.step, TimeByState()
        self._published = Published({}, 0.0, 0.0)  # what came of publishing before the newest step
        self._step_began = time.monotonic()
        self._step_seconds = TimeByState()

    def begin(self) -> None:
        """The first step of this process begins now; what was spent before belongs to no step."""
        self._step_began = time.monotonic()
        self._first_seconds = self._seconds()
        self._report.begin(self._first_seconds)

    def exclude(self, seconds: float) -> None:
        """So much of the step that is under way does not belong to it."""
        self._step_began += seconds

    def step(self, batch: list[Group], result: StepResult) -> None:
        """Reports the step that was trained last, and adds its time to the totals; ``state.step`` counts it already."""
        now = time.monotonic()
        spent_s, self._step_began = now - self._step_began, now
        self._state.totals.loop_s += spent_s
        self._state.totals.staleness_bound = max(self._state.totals.staleness_bound, self._bound)
        self._published = self._take_published()
        with self._stopwatch("report"):
            counts, members = self._server.counts(), self._server.members()
            context = StepContext(self._seconds(), counts, members, self._published, spent_s)
            self._server.update_status(*self._report.step(self._state.step, batch, result, context))
            if self._state.step % steps_between_lines(self._config.router.interval) == 0 or self._state.step == 1:
                with self._state.lock:  # the server draws from it on its thread
                    learned = self._state.router.log()
                self._report.router(self._state.step, learned)

    def _take_published(self) -> Published:
        """Adds the pauses of the publishing rounds since the last call to the totals.

        Returns:
            Who has the newest weights, and the longest round and pause of these.
        """
        rounds = self._publishing.take_rounds() or [self._published]
        self._state.totals.pause_s += sum(one.pause_s for one in rounds if one is not self._published)
        return Published(rounds[-1].members, max(one.seconds for one in rounds), max(one.pause_s for one in rounds))

    def end(self) -> None:
        """The last step has ended; what is spent from now on belongs to no step."""
        self._take_published()
        steps = max(self._state.step - self._first_step, 1)
        self._step_seconds = time_per_step(self._first_seconds, self._seconds(), steps)

    def summary(self, evaluation_before: Mapping[str, Any], evaluation_after: Mapping[str, Any]) -> None:
        """Audits the ledger and writes ``summary.json``.

        Args:
            evaluation_before: of the sets whose questions are those of ``evaluation_after``.
        """
        self._state.ledger.flush()
        path, queue, step = self._config.run.dir / LEDGER_FILE, self._state.queue, self._state.step
        last_third = read_routed(path, step - step // 3)  # earlier choices say less of what the router has learned
        summary = summarise(
            self._config,
            self._state,
            audit(path, queue.next_sequence, queue.untaken()),
            routed_pairs(last_third, self._questions, self._state.router),
            evaluation_before,
            evaluation_after,
            self._bound,
            Measured(
                bottleneck=self._report.overall_bottleneck().stage,
                seconds=self._seconds(),
                step_seconds=self._step_seconds,
                wall_seconds=self._state.wall_seconds(),
            ),
        )
        self._report.summary(summary)

    def close(self) -> None:
        """Writes out what was noted and not written yet."""
        self._report.close()

    def _seconds(self) -> TimeByState:
        """process -> state -> seconds since it started."""
        return time_by_process(self._stopwatch.seconds(), self._server.members())
