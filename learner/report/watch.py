"""Watches how well engines and learner agree about log-probabilities, and names the likely cause where they do not.

Three faults look alike in one mean, and differ in the pattern:

* *Stale answers*: fresh tokens agree, and the disagreement grows with the lag.
* *Wrong weights*: fresh tokens disagree for one actor alone, or began to at some step of the run.
* *Wrong architecture*, dtype or temperature: fresh tokens disagree from the first step on, whoever made them.
"""

from __future__ import annotations

import logging
import statistics
from dataclasses import dataclass
from typing import Literal

from learner.groups import StepResult

log = logging.getLogger("learner")

_LEAST_EFFECTIVE = 0.5  # share of the tokens, as learner/train/statistics.py defines the effective sample
_MOST_OUTSIDE = 0.05  # share of the tokens outside the bounds of the importance weight
_MOST_FRESH = 0.1  # nats; rounding in bfloat16 explains some hundredths
_APART = 3.0  # times the mismatch of the others


@dataclass(frozen=True)
class Alarm:
    """What is likely wrong, and a sentence about it that says what to do."""

    cause: Literal["stale answers", "wrong weights", "wrong architecture"]
    sentence: str


class MismatchWatch:
    """Remembers of a run, since its start or resume, whether fresh tokens ever agreed."""

    def __init__(self) -> None:
        self._agreed: float | None = None  # mismatch of lag 0 in the newest step where it was small, nats
        self._alarm: Alarm | None = None  # of the step before

    def check(self, number: int, result: StepResult) -> Alarm | None:
        """Looks at a step; logs a warning when an alarm begins or changes its cause, and a line when it ends.

        Args:
            number: of the step, from 1.

        Returns:
            The alarm, if there is one. A step in which no token carried gradient says nothing new.
        """
        if "mismatch" not in result.means:
            return self._alarm
        fresh = result.by_lag.get("mismatch", {}).get(0)
        effective = result.means.get("effective_sample", 1.0)
        outside = result.means.get("outside_bounds", 0.0)
        fresh_agree = fresh is None or fresh <= _MOST_FRESH
        fine = fresh_agree and effective >= _LEAST_EFFECTIVE and outside <= _MOST_OUTSIDE
        alarm = None if fine else self._find_cause(result, fresh)
        if fresh is not None and fresh_agree:
            self._agreed = fresh
        if alarm is not None and (self._alarm is None or self._alarm.cause != alarm.cause):
            log.warning(
                "step %d: engines and learner disagree by %.2g nats a token; %.0f%% of the tokens have importance "
                "weights out of bounds, and the effective sample is %.0f%%. Likely cause: %s: %s",
                number, result.means["mismatch"], 100 * outside, 100 * effective, alarm.cause, alarm.sentence,
            )  # fmt: skip
        elif alarm is None and self._alarm is not None:
            log.info("step %d: engines and learner agree again", number)
        self._alarm = alarm
        return alarm

    def _find_cause(self, result: StepResult, fresh: float | None) -> Alarm:
        by_lag, by_actor = result.by_lag.get("mismatch", {}), result.by_actor.get("mismatch", {})
        oldest = max(by_lag, default=0)
        good = self._agreed if fresh is None else fresh
        if oldest > 0 and good is not None and good <= _MOST_FRESH and by_lag[oldest] >= _APART * good:
            return Alarm(
                "stale answers",
                f"{good:.2g} nats in fresh tokens, {by_lag[oldest]:.2g} at lag {oldest}. Lower learner.staleness, "
                "learner.window or learner.lr",
            )
        if len(by_actor) > 1:
            worst = max(by_actor, key=by_actor.__getitem__)
            others = statistics.median(value for name, value in by_actor.items() if name != worst)
            if by_actor[worst] >= _APART * others:
                return Alarm(
                    "wrong weights",
                    f"those of actor {worst}, with {by_actor[worst]:.2g} nats where the others have {others:.2g}. Read "
                    "its log, and start it again",
                )
        if self._agreed is not None:
            return Alarm(
                "wrong weights",
                f"fresh tokens agreed to {self._agreed:.2g} nats earlier in this run. Read the log about the last "
                "weight syncs, and start the actors again",
            )
        return Alarm(
            "wrong architecture",
            "fresh tokens have disagreed from the first step on, so engine and learner compute different things from "
            "the same weights. Compare model.dtype, learner.param_dtype, model.path and the engine's settings",
        )
