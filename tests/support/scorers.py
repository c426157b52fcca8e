"""A scorer without models, for the reward service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from common.wire import Score, ScoreRequest
from reward.batching import each_or_error
from reward.liveness import Liveness
from reward.scored import ScoredAnswer

ScoreBatch = Callable[[Sequence[ScoreRequest]], list[list[Score]]]
_NO_DECISION: Any = None  # the gate imports for seconds, and the service does not read what it decides


class FunctionScorer:
    """Scores in the caller's thread, as a function of the batch says."""

    def __init__(self, score: ScoreBatch) -> None:
        self.counts: Counter[str] = Counter()
        self._score, self._liveness = score, Liveness()

    def begin(self, requests: Sequence[ScoreRequest]) -> list[Future[list[ScoredAnswer]]]:
        with self._liveness.step():
            results = each_or_error(self._score, requests)
        futures: list[Future[list[ScoredAnswer]]] = [Future() for _ in requests]
        for future, result in zip(futures, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result([ScoredAnswer(one, _NO_DECISION, None, None) for one in result])
        return futures

    def busy_s(self) -> float:
        return self._liveness.busy_s()

    def stalled_s(self) -> float:
        return self._liveness.stalled_s()

    def check(self) -> None:
        pass  # nothing of it can die
