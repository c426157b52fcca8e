"""The metrics of one step, by name; docs/metrics.md explains each of them. Pure functions."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.config import LearnerConfig
from common.diagnostics import summarise
from common.wire import Rollout
from learner.evaluate.diagnostics import samples, tagged
from learner.groups import Group, StepResult
from learner.report.bottleneck import Bottleneck
from learner.report.choice_metrics import choice_metrics
from learner.report.timing import MeasuredActor, TimeByState, WindowTotals, shares_of_time
from learner.train.outcomes import group_outcome

_GRADIENT_STATISTICS = ("entropy", "mismatch", "outside_bounds")  # those of a step's result shown by language
_DIAGNOSTICS = ("lc_thought", "lc_answer", "accuracy", "lc_accuracy")  # those that are shown by language
_AGREEMENT = ("mismatch", "outside_bounds", "effective_sample")  # of engine and learner; on the page Health


class WeightSync(Protocol):
    """The part of a weight sync's result that the report reads."""

    @property
    def members(self) -> Collection[str]: ...  # actors whose engines have the weights

    @property
    def seconds(self) -> float: ...  # of the whole sync

    @property
    def pause_s(self) -> float: ...  # the longest time that an engine stood still


@dataclass(frozen=True)
class StepContext:
    """The state of the processes at the end of a step.

    Args:
        seconds: time of every process in each of its states, since it started.
        counts: groups that are leased, waiting, and so far retried, lost, failed and refused; messages of other
            lives, "foreign".
        peers: the actors, by name.
        published: the weight sync before this step; the longest, if actors that came later had one of their own.
        spent_s: seconds since the end of the step before.
    """

    seconds: TimeByState
    counts: Mapping[str, int]
    peers: Mapping[str, MeasuredActor]
    published: WeightSync
    spent_s: float


def health_metrics(
    batch: Sequence[Group], lags: NDArray[np.int32], bound: int, result: StepResult, context: StepContext,
    config: LearnerConfig,
) -> dict[str, float]:  # fmt: skip
    """Whether the run does what it promises.

    Args:
        lags: as ``learner.groups.token_lags`` gives them.
        bound: what no lag may exceed.
    """
    p50, p99 = np.percentile(lags, [50, 99], method="inverted_cdf")
    outcomes = Counter(group_outcome(group, config) for group in batch)
    metrics = {
        "staleness_mean": lags.mean(), "staleness_p50": p50, "staleness_p99": p99, "staleness_max": lags.max(),
        "staleness_bound": bound,
        "masked": outcomes["masked"] / len(batch),
        "skipped_steps": result.left_out / result.optimizer_steps,
        "unscored": np.mean([not rollout.score.scored for group in batch for rollout in group.rollouts]),
        "calibration_drift": max(rollout.score.drift for group in batch for rollout in group.rollouts),
        "sync_seconds": context.published.seconds,
        "pause_seconds": context.published.pause_s,
    }  # fmt: skip
    counts = context.counts
    metrics |= {"leases_retried": counts["retried"], "leases_orphaned": counts["orphaned"]}
    metrics |= {"groups_failed": counts["failed"], "groups_refused": counts["refused"]}
    dropped = sum(peer.gauges.get("dropped_messages", 0.0) for peer in context.peers.values())
    metrics |= {"foreign_messages": counts["foreign"], "foreign_orders": dropped}
    metrics |= {name: result.means[name] for name in _AGREEMENT if name in result.means}
    for name in ("mismatch", "outside_bounds"):
        metrics |= {f"{name}_by_lag/{lag}": value for lag, value in result.by_lag.get(name, {}).items()}
    if errors := [peer.gauges["probe_error"] for peer in context.peers.values() if "probe_error" in peer.gauges]:
        metrics["probe_error"] = max(errors)
    return _tagged("health", metrics)


def learning_metrics(batch: Sequence[Group], result: StepResult, config: LearnerConfig) -> dict[str, float]:
    """Reward and loss, the terms of the reward, and the languages that the policy chose, if it chose any.

    A mean over scored answers is left out where there is none.
    """
    scores = [rollout.score for group in batch for rollout in group.rollouts if rollout.score.scored]
    outcomes = Counter(group_outcome(group, config) for group in batch)
    metrics = {
        **{name: value for name, value in result.means.items() if name not in _AGREEMENT},
        "tokens": np.mean([len(rollout.response_ids) for group in batch for rollout in group.rollouts]),
        "grad_norm": result.grad_norm,
        "lr": result.lr,
        "zero_variance": outcomes["zero_variance"] / len(batch),
    }
    if scores:
        metrics["reward"] = np.mean([score.reward for score in scores])
        metrics["compliance"] = np.mean([score.compliant for score in scores])
        metrics["reward_std"] = np.mean([std for group in batch if (std := _reward_std(group)) is not None])
    if result.gradient_noise is not None:
        metrics["gradient_noise"] = result.gradient_noise
    values_by_term: defaultdict[str, list[float]] = defaultdict(list)
    for score in scores:
        for term, value in score.terms.items():
            values_by_term[term].append(value)
    terms = {term: np.mean(values) for term, values in values_by_term.items()}
    choices = choice_metrics(batch)
    return _tagged("learning", metrics) | _tagged("terms", terms) | _tagged("selection", choices)


def _reward_std(group: Group) -> float | None:
    """The standard deviation of a group's scored rewards, with ``ddof`` 0; None without any."""
    rewards = [rollout.score.reward for rollout in group.rollouts if rollout.score.scored]
    return float(np.std(rewards)) if rewards else None


def diagnostic_metrics(batch: Sequence[Group], detector: str) -> dict[str, float]:
    """Language consistency, accuracy, both, LCPR and code switching, as ``common/diagnostics.py`` defines them.

    Args:
        detector: ``reward.diagnostics``.
    """
    figures = summarise(samples(rollout for group in batch for rollout in group.rollouts))
    figures.pop("tokens", None)  # of scored answers alone; learning/tokens counts all
    return tagged(figures, detector)


def flow_metrics(
    result: StepResult, context: StepContext, tokens: int, window: WindowTotals, rates: Mapping[str, float],
    bottleneck: Bottleneck,
) -> dict[str, float]:  # fmt: skip
    """Who works, who waits, and how many tokens come from where.

    Args:
        tokens: response tokens of the step's groups, trained or not.
        window: what happened in the last seconds.
        rates: tokens/s of each actor in the window.
    """
    pools: defaultdict[str, float] = defaultdict(float)
    for name, rate in rates.items():
        pools[pool_of(name)] += rate
    metrics = {
        "tokens_per_second": tokens / max(context.spent_s, 1e-9),
        "batch_fill": result.fill,
        "bottleneck_cost": bottleneck.cost,
        "bottleneck_saving": bottleneck.gain,
        "groups_leased": context.counts["leased"],
        "groups_waiting": context.counts["waiting"],
        **_tagged("demand", bottleneck.demand),
        **_tagged("pool_tokens", pools),
    }
    for process, states in shares_of_time(window.times).items():
        metrics |= _tagged(process, states)
    return _tagged("flow", metrics)


def language_metrics(batch: Sequence[Group], version: int, result: StepResult) -> dict[str, dict[str, float]]:
    """Metric -> language of the batch -> value. Answers in no language are under ``none``.

    What answers are worth is a mean over those that could be scored, and is left out for a language that has none.
    Their number, length and staleness are of all answers.

    Args:
        version: the policy version that the step begins with.
    """
    by_language: defaultdict[str, list[Rollout]] = defaultdict(list)
    for group in batch:
        for rollout in group.rollouts:
            by_language[rollout.language or "none"].append(rollout)
    total = sum(map(len, by_language.values()))
    found: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for language, rollouts in sorted(by_language.items()):
        metrics = {
            "length": np.mean([len(rollout.response_ids) for rollout in rollouts]),
            "truncated": np.mean([rollout.truncated for rollout in rollouts]),
            "share": len(rollouts) / total,
            "staleness": version - np.concatenate([rollout.versions for rollout in rollouts]).mean(),
        }
        if scores := [rollout.score for rollout in rollouts if rollout.score.scored]:
            metrics |= {
                "reward": np.mean([score.reward for score in scores]),
                "quality": np.mean([score.quality for score in scores]),
                "compliance": np.mean([score.compliant for score in scores]),
            }
        figures = summarise(samples(rollouts))
        metrics |= {name: figures[name] for name in _DIAGNOSTICS if name in figures}
        for name, value in metrics.items():
            found[name][language] = float(value)
    for name in _GRADIENT_STATISTICS:  # of rollouts that carry gradient
        found[name] = {language or "none": value for language, value in result.by_language.get(name, {}).items()}
    return found


def with_row_names(page: str, tables: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The cells of tables, each under ``PAGE/TABLE/ROW``."""
    return {f"{page}/{table}/{row}": value for table, rows in tables.items() for row, value in rows.items()}


def regions_and_languages(batch: Sequence[Group]) -> list[tuple[str, str]]:
    """(region, language) of every rollout whose language was drawn at random, once for each region of its question."""
    return [
        (region, rollout.language)
        for group in batch
        for propensity, rollout in zip(group.work.propensities, group.rollouts, strict=True)
        for region in group.work.question.regions
        if propensity < 1 and rollout.language
    ]


def pool_of(actor: str) -> str:
    """The pool of an actor, which is its name without the number at the end: ``l40s`` for ``l40s-0``."""
    return re.sub(r"[-_.]?\d+$", "", actor) or actor


def _tagged(page: str, metrics: Mapping[Any, Any]) -> dict[str, float]:
    return {f"{page}/{name}": float(value) for name, value in metrics.items()}
