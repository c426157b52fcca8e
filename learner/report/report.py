"""What is reported of a run: its metrics, one line a step in the terminal, and ``summary.json`` at the end."""

from __future__ import annotations

import io
import json
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from common.config import Config
from common.config.resume import CONFIG_FILE
from common.files import replace_text
from common.header import Header
from learner.evaluate.languages import Evaluation
from learner.groups import Group, StepResult, token_lags
from learner.report import evaluations
from learner.report.best_effort import BestEffortFiles
from learner.report.bottleneck import Bottleneck, find_bottleneck
from learner.report.heat_maps import HeatMaps
from learner.report.machine import Machine
from learner.report.metrics import (
    StepContext,
    diagnostic_metrics,
    flow_metrics,
    health_metrics,
    language_metrics,
    learning_metrics,
    regions_and_languages,
    with_row_names,
)
from learner.report.router_log import RouterLog, steps_between_lines
from learner.report.series import ScalarSeries
from learner.report.text_samples import group_as_markdown
from learner.report.timing import TimeByState, TimeWindow, time_between
from learner.report.trackers.start import start_trackers
from learner.report.watch import MismatchWatch
from router.show import mutual_information, picture

log = logging.getLogger("learner")

_POINTS = 1000  # of a series in a run; TensorBoard keeps no more
_TEXTS = 10  # and as many pictures of each name, in a run; TensorBoard keeps no more
_WINDOW_S = 30.0  # what the bottleneck and the rates are measured over: actors send their times every two seconds
_DRAWS = 4096  # newest draws by the router, for the mutual information of region and language
_SHUFFLES = 20  # of these draws, for its value by chance


class Report:
    """Writes metrics to ``run.trackers``, and files about the run to ``run.dir``.

    The files are ``config.json``, ``router.jsonl``, ``evaluations/`` and ``summary.json``. It also logs the progress.
    docs/metrics.md lists the metrics. A long run has one point for several steps. A file
    that cannot be written costs a warning and never the run.

    Args:
        bound: the staleness bound, in policy updates.
        begin: the step that a resumed run continues from; what was written of later steps is discarded.
    """

    def __init__(self, config: Config, bound: int, begin: int) -> None:
        self._config, self._bound, self._number = config, bound, begin
        self._steps = config.learner.steps
        self._steps_per_point = math.ceil(self._steps / _POINTS)
        self._steps_per_text = math.ceil(self._steps / _TEXTS)
        self._files = BestEffortFiles()
        self._tracker = start_trackers(config, begin)
        self._series = ScalarSeries(self._tracker)
        self._heat_maps = HeatMaps(bound)
        self._machine = Machine(config)
        self._window = TimeWindow(_WINDOW_S)
        self._watch = MismatchWatch()
        self._header = Header(config.model.header, config.run.languages)
        self._first: TimeByState = {}
        self._draws: deque[tuple[str, str]] = deque(maxlen=_DRAWS)  # region, language
        settings = config.run.dir / CONFIG_FILE
        with self._files.writing(settings):
            settings.parent.mkdir(parents=True, exist_ok=True)
            replace_text(settings, config.model_dump_json(indent=2) + "\n")
        of_evaluations = config.run.dir / evaluations.DIRECTORY
        with self._files.writing(of_evaluations):
            evaluations.undo(of_evaluations, begin)
        self._router_log = RouterLog(config.run.dir / "router.jsonl", begin, self._files)

    def begin(self, seconds: TimeByState) -> None:
        """The first step begins; time that the processes have spent before does not count.

        Args:
            seconds: of every process in each of its states, since it started.
        """
        self._first = seconds
        self._window.begin(time.monotonic(), seconds)

    def overall_bottleneck(self) -> Bottleneck:
        """The bottleneck of all steps together."""
        return find_bottleneck(time_between(self._first, self._window.latest()), self._config, {}, {})

    def step(
        self, number: int, batch: list[Group], result: StepResult, context: StepContext
    ) -> tuple[str, dict[str, float]]:
        """Reports that step ``number``, counted from 1, has trained on ``batch``.

        Returns:
            The line about the step that was logged, and tokens/s of each actor.
        """
        self._number = number
        learner, lags = self._config.learner, token_lags(batch, number - 1)
        tokens = Counter[str]()
        for group in batch:
            tokens[group.actor] += sum(len(rollout.response_ids) for rollout in group.rollouts)
        window = self._window.add(time.monotonic(), context.seconds, tokens)
        rates = {name: window.tokens[name] / window.elapsed_s for name in sorted(context.published.members)}
        gauges = {name: peer.gauges for name, peer in context.peers.items() if peer.gauges}
        spare = self._machine.spare(sum(peer.engine_ranks for peer in context.peers.values()))
        bottleneck = find_bottleneck(window.times, self._config, rates, gauges, spare)
        by_language = language_metrics(batch, number - 1, result)
        by_actor = {
            "actor_tokens": rates,
            "kv_use": {n: gauge["usage"] for n, gauge in gauges.items() if "usage" in gauge},
        }
        metrics = {
            **health_metrics(batch, lags, self._bound, result, context, learner),
            **learning_metrics(batch, result, learner),
            **diagnostic_metrics(batch, self._config.reward.diagnostics),
            **flow_metrics(result, context, len(lags), window, rates, bottleneck),
            "health/mismatch_alarm": float(self._watch.check(number, result) is not None),
        }
        tables = {**with_row_names("languages", by_language), **with_row_names("flow", by_actor)}
        self._series.add({**metrics, **tables})
        self._heat_maps.add(number, lags, by_language, by_actor)
        self._draws.extend(regions_and_languages(batch))
        if number % self._steps_per_point == 0 or number == self._steps:
            self._tracker.histogram(number, "health/staleness", lags)
            self._series.write_points(number)
        if number % self._steps_per_text == 1 % self._steps_per_text:
            diverse = max(batch, key=lambda group: len({rollout.language for rollout in group.rollouts}))
            self._tracker.text(number, "sample", group_as_markdown(diverse, self._header))
        if number % self._steps_per_text == 0 or number == self._steps:
            for name, png in self._heat_maps.draw():
                self._tracker.image(number, name, png)
        line = (
            f"step {number}/{self._steps}  reward {_shown(metrics.get('learning/reward'))}  "
            f"compliance {_shown(metrics.get('learning/compliance'), 2)}  staleness {lags.mean():.1f}/{self._bound}  "
            f"{metrics['flow/tokens_per_second']:.0f} tokens/s  {bottleneck}"
        )
        log.info("%s", line)
        return line, rates

    def router(self, number: int, learned: dict[str, Any]) -> None:
        """Reports what the router has learned by step ``number``, as ``Router.log`` gives it.

        It becomes a line of ``router.jsonl`` and, some times in a run, heat maps.
        """
        shared, by_chance = mutual_information(list(self._draws), _SHUFFLES)
        self._series.add({"router/region_language_bits": shared, "router/region_language_bits_by_chance": by_chance})
        line = {"step": number, **learned}
        self._router_log.append(line)
        before = number - steps_between_lines(self._config.router.interval)
        if learned["probs"] and number // self._steps_per_text > before // self._steps_per_text:
            png = io.BytesIO()
            picture(line, png)
            self._tracker.image(number, "router/probabilities", png.getvalue())

    def evaluation(self, number: int, name: str, evaluation: Evaluation) -> None:
        """Reports an evaluation of the question set ``name``, with greedy answers, after ``number`` steps."""
        numbers = {key: value for key, value in evaluation.as_dict().items() if isinstance(value, float)}
        numbers |= evaluation.diagnostics
        self._write_evaluation(number, name, numbers)
        log.info(
            "%s after %d steps: greedy reward in the question's own language %.3f (compliance %.2f); "
            "oracle %s, routed %s, best fixed language (%s) %s, English %s, uniform %s",
            name, number, evaluation.own, evaluation.compliance, _shown(evaluation.oracle), _shown(evaluation.routed),
            evaluation.best_fixed_language, _shown(evaluation.best_fixed), _shown(evaluation.english),
            _shown(evaluation.uniform),
        )  # fmt: skip
        if evaluation.unscored:
            log.warning(
                "%.1f%% of the answers of this evaluation could not be scored and are left out; where these are mostly "
                "good or mostly bad answers, its figures are off", 100 * evaluation.unscored,
            )  # fmt: skip

    def answered(self, name: str, groups: Sequence[Group]) -> None:
        """Writes the rewards of the evaluation ``name``, question by question, to ``evaluations/NAME.jsonl``."""
        path = self._config.run.dir / evaluations.DIRECTORY / f"{name}.jsonl"
        with self._files.writing(path):
            path.parent.mkdir(exist_ok=True)
            path.write_text(evaluations.rewards_as_lines(groups), encoding="utf-8")

    def sampled_evaluation(self, number: int, name: str, metrics: dict[str, float]) -> None:
        """Reports an evaluation of the question set ``name``, with sampled answers, after ``number`` steps."""
        self._write_evaluation(number, name, metrics)

    def _write_evaluation(self, number: int, name: str, metrics: dict[str, float]) -> None:
        self._number = number
        self._series.add({f"evaluation_{name}/{metric}": value for metric, value in metrics.items()})
        self._series.write_points(number)

    def summary(self, summary: dict[str, Any]) -> None:
        """Writes ``summary.json``."""
        path = self._config.run.dir / "summary.json"
        with self._files.writing(path):
            replace_text(path, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Writes what has not been written yet, and closes the trackers."""
        self._series.write_points(self._number)
        self._tracker.close()


def _shown(value: float | None, digits: int = 3) -> str:
    """A figure for the log."""
    return "none" if value is None else f"{value:.{digits}f}"
