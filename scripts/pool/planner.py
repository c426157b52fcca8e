"""Makes the scenario of a pool file and a configuration, and recommends settings by simulating other ones."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np

from common.config import Config, ConfigError
from scripts.pool.measured_run import MeasuredRun
from scripts.pool.pool_file import Nodes, Pool
from scripts.pool.simulation import Forecast, Scenario, SimulatedEngine, Simulation
from scripts.pool.sync import transfer_s

TRIAL_STEPS = 12
_STALENESS = range(5)
_NEARLY = 0.97  # a smaller setting is preferred if it reaches this share of the best throughput
_DRAWN_GROUPS = 512  # groups whose answer lengths are drawn from a distribution


def make_scenario(pool: Pool, run: MeasuredRun | None, config: Config, source: Path) -> Scenario:
    """The scenario that a pool file, a measured run and a configuration describe.

    Args:
        source: path of the pool file, for messages.

    Raises:
        ConfigError: a rate is neither measured nor in ``source``.
    """

    def missing(key: str) -> ConfigError:
        return ConfigError(
            f"{source}: {key} is missing, and {'the run of --run did not measure it' if run else 'there is no --run'}"
        )

    def engine_of(nodes: Nodes) -> SimulatedEngine:
        gpu, slots = pool.gpus[nodes.gpu], nodes.groups_in_flight or config.actor.groups_in_flight
        if gpu.token_ms is not None and gpu.group_ms is not None:
            token_s, group_s = gpu.token_ms / 1000, gpu.group_ms / 1000
        elif run is not None and gpu.like in run.engines:
            token_s, group_s = (rate / gpu.speed for rate in run.engines[gpu.like])
        else:
            known = f"like = one of {', '.join(run.engines)}, or " if run else ""
            raise missing(f"gpus.{nodes.gpu}: {known}token_ms and group_ms")
        if token_s + group_s <= 0:
            raise ConfigError(f"{source}: gpus.{nodes.gpu}: token_ms and group_ms are both 0")
        return SimulatedEngine(nodes.gpu, token_s, group_s, slots)

    def trained_per_second(nodes: Nodes) -> float:
        gpu = pool.gpus[nodes.gpu]
        if gpu.train_tokens_s is not None:
            return nodes.number * gpu.train_tokens_s
        if run is None or gpu.like != "learner":
            raise missing(f"gpus.{nodes.gpu}: like = 'learner', or train_tokens_s")
        ranks = Config.model_validate(run.config).learner.ranks
        return nodes.number * gpu.speed / ranks / run.train_token_s

    learners = sum(trained_per_second(nodes) for nodes in pool.nodes if nodes.role == "learner")
    if not learners and run is None:
        raise ConfigError(f"{source}: no [[nodes]] has role = 'learner'")
    work = {**(run.work if run else {}), **_predicted_sync(pool), **pool.work.model_dump(exclude_none=True)}
    times = ("publish_s", "pause_s", "rest_s", "score_s", "score_busy_s")
    for key in times if run else ("answer_tokens", *times):
        if key not in work:
            raise missing(f"work.{key}")
    answers = run.answers if run else []
    if "answer_tokens" in work:
        answers = _draw_lengths(work["answer_tokens"], work["answer_spread"], config)
    return Scenario(
        [engine_of(nodes) for nodes in pool.nodes if nodes.role == "actor" for _ in range(nodes.number)],
        answers, config.learner.groups_per_step, config.learner.staleness, config.learner.window,
        1 / learners if learners or run is None else run.train_token_s,
        **{key: work[key] for key in times},
        replicas=sum(nodes.number for nodes in pool.nodes if nodes.role == "reward") or 1,
    )  # fmt: skip


def _predicted_sync(pool: Pool) -> dict[str, float]:
    """How long a sync takes and engines stand still, by the bandwidth of the learner's nodes; empty if it is unknown.

    The slowest of these nodes counts, because all leaders gather together.
    """
    learners = [nodes for nodes in pool.nodes if nodes.role == "learner"]
    rates = [nodes.network_gb_s for nodes in learners if nodes.network_gb_s is not None]
    if pool.work.weights_gb is None or not rates or len(rates) < len(learners):
        return {}
    engines = sum(nodes.number for nodes in pool.nodes if nodes.role == "actor")
    seconds = transfer_s(engines, sum(nodes.machines for nodes in learners), pool.work.weights_gb, min(rates))
    return {"publish_s": seconds, "pause_s": seconds}


def _draw_lengths(mean: float, spread: float, config: Config) -> list[list[int]]:
    """Log-normal lengths of the answers of many groups."""
    draw = random.Random(0).lognormvariate
    shift, most = np.log(mean) - spread**2 / 2, config.sampling.max_new_tokens
    group = range(config.router.rollouts)
    return [[min(most, max(1, round(draw(shift, spread)))) for _ in group] for _ in range(_DRAWN_GROUPS)]


def forecast(scenario: Scenario, **changes: Any) -> Forecast:
    """Simulates a scenario, with ``changes`` to its fields."""
    return Simulation(dataclasses.replace(scenario, **changes)).run()


def engine_tokens_s(scenario: Scenario, engine: SimulatedEngine) -> float:
    """Tokens per second of an engine that never waits."""
    tokens, steps = (float(np.mean([f(lengths) for lengths in scenario.answers])) for f in (sum, max))
    return engine.slots * tokens / steps / (engine.token_s + engine.group_s * engine.slots)


def recommend(scenario: Scenario) -> dict[str, Any]:
    """The smallest staleness bound, then the fewest groups per step, with nearly the best throughput of all tried."""

    def smallest(key: str, values: list[int], base: Scenario) -> tuple[int, dict[int, Forecast]]:
        tried = {value: forecast(base, **{key: value}, steps=TRIAL_STEPS) for value in values}
        enough = _NEARLY * max(found.tokens_per_second for found in tried.values())
        return min(value for value, found in tried.items() if found.tokens_per_second >= enough), tried

    staleness, by_staleness = smallest("staleness", list(_STALENESS), scenario)
    better = dataclasses.replace(scenario, staleness=staleness)
    sizes = sorted({max(1, scenario.groups_per_step * n // 4) for n in (2, 4, 8)})
    groups, by_groups = smallest("groups_per_step", sizes, better)
    tokens = float(np.mean([sum(lengths) for lengths in scenario.answers])) * groups
    learner_tokens_s = tokens / (tokens * scenario.train_token_s + scenario.publish_s + scenario.rest_s)
    kinds = {engine.pool: engine_tokens_s(scenario, engine) for engine in scenario.engines}
    return {
        "staleness": staleness,
        "groups_per_step": groups,
        "tokens_per_second": by_groups[groups].tokens_per_second,
        "lag_mean": by_groups[groups].lag_mean,
        "learner_tokens_s": learner_tokens_s,
        "actors_to_fill_the_learner": {kind: learner_tokens_s / rate for kind, rate in kinds.items()},
        "actors_share_of_learner": sum(engine_tokens_s(scenario, engine) for engine in scenario.engines)
        / learner_tokens_s,
        "by_staleness": {s: dataclasses.asdict(found) | {"spans": None} for s, found in by_staleness.items()},
    }
