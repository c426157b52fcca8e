"""Predicts step time, staleness and use of a pool, and recommends settings for it; docs/tuning.md shows how to use it.

    python scripts/pool/plan.py --pool POOL.toml [--run RUN] [--json] [--plot OUT.png] [CONFIG.toml] [--section.key V]

Settings are those of the run, then of configuration files and flags. Rates are the run's, or those of the pool file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it runs as a file, too

from common.config import Config, ConfigError, Section, explain, load, read_toml
from learner.work.scheduler import staleness_bound
from scripts.command import plain_errors
from scripts.pool.simulation import Engine, Forecast, Plan, Simulation

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
AtLeast0 = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_STALENESS = range(5)
_TRIAL_STEPS = 12
_NEARLY = 0.97  # of the best throughput is enough to prefer a smaller setting
_DRAWN = 512  # groups drawn from a distribution of lengths


class Gpu(Section):
    """How fast a kind of GPU is: as measured, or in figures of your own."""

    like: str = ""  # an actor of --run, or "learner": measured rates are taken from it
    speed: Positive = 1.0  # times as fast as that
    token_ms: AtLeast0 | None = None  # of a decoding step of an engine
    group_ms: AtLeast0 | None = None  # more of it for every group in flight
    train_tokens_s: Positive | None = None  # response tokens that one of them trains a second


class Nodes(Section):
    """Machines that do the same: named for ssh, or counted in a Slurm partition."""

    role: Literal["actor", "learner", "reward"]
    gpu: str = ""  # a key of [gpus]; reward may be without
    hosts: tuple[str, ...] = ()
    partition: str = ""
    count: int = Field(0, ge=0)  # nodes of the partition
    engines: int = Field(1, gt=0)  # a node: actors, learner ranks or reward replicas
    tp: int = Field(1, gt=0)  # GPUs of an engine, whose rates are those of the engine
    groups_in_flight: int | None = Field(None, gt=0)  # of an actor; none: actor.groups_in_flight

    @model_validator(mode="after")
    def _told_where(self) -> Self:
        if bool(self.hosts) == bool(self.partition and self.count):
            raise ValueError(f"nodes of role {self.role!r} need either hosts, or partition and count")
        return self

    @property
    def machines(self) -> int:
        return len(self.hosts) or self.count

    @property
    def number(self) -> int:
        return self.machines * self.engines

    @property
    def tasks(self) -> int:
        """Processes that are started on a machine; a learner's starts its ranks itself."""
        return 1 if self.role == "learner" else self.engines

    @property
    def task_gpus(self) -> int:
        return 0 if not self.gpu else self.engines if self.role == "learner" else self.tp


class Work(Section):
    """What a step is made of; without --run all of it must be told, with it these take the measured ones' place."""

    answer_tokens: Positive | None = None  # mean
    answer_spread: AtLeast0 = 0.5  # standard deviation of its logarithm
    publish_s: AtLeast0 | None = None
    pause_s: AtLeast0 | None = None  # of it, when generation stands still
    rest_s: AtLeast0 | None = None  # of the learner after a step: reports, checkpoints
    score_s: AtLeast0 | None = None  # until a group has its scores
    score_busy_s: AtLeast0 | None = None  # of a reward replica for a group


class Pool(Section):
    gpus: dict[str, Gpu] = Field({})
    nodes: tuple[Nodes, ...] = Field(min_length=1)
    work: Work = Work()


def read_pool(path: Path) -> Pool:
    """
    Raises:
        ConfigError: names file and key.
    """
    try:
        pool = Pool.model_validate(read_toml(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Pool)}") from None
    if not any(nodes.role == "actor" for nodes in pool.nodes):
        raise ConfigError(f"{path}: no [[nodes]] has role = 'actor'")
    if unknown := {nodes.gpu for nodes in pool.nodes if nodes.gpu or nodes.role != "reward"} - set(pool.gpus):
        raise ConfigError(
            f"{path}: nodes.gpu = {unknown.pop()!r} is no key of [gpus]: {', '.join(pool.gpus) or 'none'}"
        )
    return pool


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a finished run tells."""

    config: dict[str, Any]
    engines: dict[str, tuple[float, float]]  # actor -> token_s, group_s
    answers: list[list[int]]
    train_token_s: float
    work: dict[str, float]  # keys of Work
    step_s: float
    lag_mean: float


def read_run(directory: Path) -> Measured:
    """
    Raises:
        ConfigError: it is no finished run, or one of a version that did not measure.
    """
    try:
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (directory / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
        spent, groups = summary["step_seconds"], [line for line in lines if line.get("timing")]
        learner, steps = spent["learner"], summary["steps"]
        trained = [length for group in groups for length in group["lengths"]]
        rest = spent["run"]["loop"] - sum(learner.get(state, 0.0) for state in ("train", "publish", "wait"))
        work = {
            "publish_s": learner["publish"], "pause_s": spent["run"]["pause"], "rest_s": max(0.0, rest),
            "score_s": float(np.quantile([group["timing"]["score_s"] for group in groups], 0.25)),
            "score_busy_s": spent.get("reward", {}).get("busy", 0.0) * steps / len(groups),
        }  # fmt: skip
        by_actor: defaultdict[str, list[Any]] = defaultdict(list)
        for group in groups:
            by_actor[group["actor"]].append((max(group["lengths"]), group["timing"]))
        return Measured(
            summary["config"], {name: _rates(told) for name, told in by_actor.items()},
            [group["lengths"] for group in groups], learner["train"] * steps / sum(trained), work,
            spent["run"]["loop"], summary["staleness_mean"],
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"--run {directory}: no finished run: cannot read {error.filename}") from None
    except (ValueError, KeyError, ZeroDivisionError, TypeError, IndexError) as error:
        raise ConfigError(f"--run {directory}: its summary or ledger does not tell {error}: run it again") from None


def _rates(groups: list[tuple[int, dict[str, float]]]) -> tuple[float, float]:
    """Least squares of seconds a decoding step = token_s + group_s · groups, none below 0.

    Where the number of groups hardly changed nothing tells the two apart; then the engine is taken to be saturated.
    """
    steps, seconds, x = np.array([(n, t["generate_s"], t["groups"]) for n, t in groups], np.float64).T
    y, weights = seconds / steps, steps / steps.sum()
    x_mean, y_mean = float(weights @ x), float(weights @ y)
    variance = float(weights @ (x - x_mean) ** 2)
    if variance < (0.05 * x_mean) ** 2:
        return 0.0, y_mean / x_mean
    slope = min(max(float(weights @ ((x - x_mean) * (y - y_mean))) / variance, 0.0), y_mean / x_mean)
    return y_mean - slope * x_mean, slope


def make_plan(pool: Pool, run: Measured | None, config: Config, source: Path) -> Plan:
    """
    Raises:
        ConfigError: a rate is neither measured nor in ``source``.
    """

    def missing(key: str) -> ConfigError:
        return ConfigError(
            f"{source}: {key} is missing, and {'--run does not tell it' if run else 'there is no --run'}"
        )

    def engine_of(nodes: Nodes) -> Engine:
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
        return Engine(nodes.gpu, token_s, group_s, slots)

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
    work = {**(run.work if run else {}), **pool.work.model_dump(exclude_none=True)}
    times = ("publish_s", "pause_s", "rest_s", "score_s", "score_busy_s")
    for key in times if run else ("answer_tokens", *times):
        if key not in work:
            raise missing(f"work.{key}")
    answers = run.answers if run else []
    if "answer_tokens" in work:
        answers = _drawn(work["answer_tokens"], work["answer_spread"], config)
    return Plan(
        [engine_of(nodes) for nodes in pool.nodes if nodes.role == "actor" for _ in range(nodes.number)],
        answers, config.learner.groups_per_step, config.learner.staleness, config.learner.window,
        1 / learners if learners or run is None else run.train_token_s,
        **{key: work[key] for key in times},
        replicas=sum(nodes.number for nodes in pool.nodes if nodes.role == "reward") or 1,
    )  # fmt: skip


def _drawn(mean: float, spread: float, config: Config) -> list[list[int]]:
    """Log-normal lengths of as many groups as matter."""
    draw = random.Random(0).lognormvariate
    shift, most = np.log(mean) - spread**2 / 2, config.sampling.max_new_tokens
    group = range(config.router.rollouts)
    return [[min(most, max(1, round(draw(shift, spread)))) for _ in group] for _ in range(_DRAWN)]


def forecast(plan: Plan, **changes: Any) -> Forecast:
    return Simulation(dataclasses.replace(plan, **changes)).run()


def engine_tokens_s(plan: Plan, engine: Engine) -> float:
    """Of an engine that never waits."""
    tokens, steps = (float(np.mean([f(lengths) for lengths in plan.answers])) for f in (sum, max))
    return engine.slots * tokens / steps / (engine.token_s + engine.group_s * engine.slots)


def recommend(plan: Plan) -> dict[str, Any]:
    """The smallest S, then the fewest groups a step, that reach nearly the best throughput of those tried."""

    def smallest(key: str, values: list[int], base: Plan) -> tuple[int, dict[int, Forecast]]:
        tried = {value: forecast(base, **{key: value}, steps=_TRIAL_STEPS) for value in values}
        enough = _NEARLY * max(found.tokens_per_second for found in tried.values())
        return min(value for value, found in tried.items() if found.tokens_per_second >= enough), tried

    staleness, by_staleness = smallest("staleness", list(_STALENESS), plan)
    better = dataclasses.replace(plan, staleness=staleness)
    sizes = sorted({max(1, plan.groups_per_step * n // 4) for n in (2, 4, 8)})
    groups, by_groups = smallest("groups_per_step", sizes, better)
    tokens = float(np.mean([sum(lengths) for lengths in plan.answers])) * groups
    learner_tokens_s = tokens / (tokens * plan.train_token_s + plan.publish_s + plan.rest_s)
    kinds = {engine.pool: engine_tokens_s(plan, engine) for engine in plan.engines}
    return {
        "staleness": staleness,
        "groups_per_step": groups,
        "tokens_per_second": by_groups[groups].tokens_per_second,
        "lag_mean": by_groups[groups].lag_mean,
        "learner_tokens_s": learner_tokens_s,
        "actors_to_fill_the_learner": {kind: learner_tokens_s / rate for kind, rate in kinds.items()},
        "actors_share_of_learner": sum(engine_tokens_s(plan, engine) for engine in plan.engines) / learner_tokens_s,
        "by_staleness": {s: dataclasses.asdict(found) | {"spans": None} for s, found in by_staleness.items()},
    }


def show(plan: Plan, found: Forecast, advice: dict[str, Any]) -> str:
    lines = [
        f"step            {found.step_s:.3g} s, {found.tokens_per_second:.0f} tokens/s",
        f"staleness       {found.lag_mean:.2f} on average, {found.lag_max} at most "
        f"(bound {staleness_bound(plan.groups_per_step, plan.staleness, plan.window)})",
        *(f"{name:<16}{share:4.0%} of the time" for name, share in sorted(found.busy.items())),
        f"recommended     learner.staleness = {advice['staleness']}, "
        f"learner.groups_per_step = {advice['groups_per_step']}: {advice['tokens_per_second']:.0f} tokens/s, "
        f"staleness {advice['lag_mean']:.2f}",
        "the learner could train what " + ", or ".join(
            f"{number:.1f} actors like {kind}" for kind, number in advice["actors_to_fill_the_learner"].items()
        ) + f" generate; these generate {advice['actors_share_of_learner']:.0%} of that",
    ]  # fmt: skip
    return "\n".join(lines)


def draw(plan: Plan, found: Forecast, advice: dict[str, Any], path: Path) -> None:
    """Who works when, and what S and the number of actors would change."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ((when, use), (by_s, by_actors)) = pyplot.subplots(2, 2, figsize=(10, 6), layout="constrained")
    colors = {"train": "C0", "publish": "C1", "rest": "C4", "generate": "C2", "sync": "C1", "busy": "C3"}
    names = sorted(found.spans, key=lambda who: (who == "learner", who == "reward"))[-8:]
    end = max(until for spans in found.spans.values() for _, until, _ in spans)
    for row, who in enumerate(names):
        for start, until, state in found.spans[who]:
            if state in colors and until > end - 5 * found.step_s:
                when.barh(row, until - start, left=start, color=colors[state])
    when.set(xlim=(end - 5 * found.step_s, end), xlabel="seconds", title="the last steps: gaps are waits")
    when.set_yticks(range(len(names)), names)
    busy = {name: share for name, share in sorted(found.busy.items()) if name != "learner wait"}
    use.barh(list(busy), [100 * share for share in busy.values()])
    use.set(xlim=(0, 100), xlabel="% of time", title=f"step {found.step_s:.3g} s, staleness {found.lag_mean:.2f}")
    by = advice["by_staleness"]
    by_s.plot(list(by), [told["tokens_per_second"] for told in by.values()], "o-")
    by_s.plot([plan.staleness], [found.tokens_per_second], "k*", markersize=14)
    by_s.set(ylim=(0, None), xlabel="S", ylabel="tokens/s", title=f"recommended: S = {advice['staleness']}")
    counts = sorted({max(1, round(len(plan.engines) * share)) for share in (0.25, 0.5, 1, 1.5, 2, 3)})
    mixes = [[plan.engines[n * len(plan.engines) // count] for n in range(count)] for count in counts]
    by_actors.plot(counts, [forecast(plan, engines=mix, steps=_TRIAL_STEPS).tokens_per_second for mix in mixes], "o-")
    by_actors.plot([len(plan.engines)], [found.tokens_per_second], "k*", markersize=14)
    by_actors.axhline(advice["learner_tokens_s"], color="C0", linestyle=":", label="the learner's most")
    by_actors.set(ylim=(0, None), xlabel="actors in this mixture", ylabel="tokens/s")
    by_actors.legend()
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pool", type=Path, required=True, help="who does what, and rates; as configs/pools/example.toml"
    )
    parser.add_argument("--run", type=Path, help="a finished run, whose settings and rates are used")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, help="a picture; its ending says which kind")
    arguments, settings = parser.parse_known_args()
    with plain_errors(OSError):
        pool, run = read_pool(arguments.pool), read_run(arguments.run) if arguments.run else None
        plan = make_plan(pool, run, load(settings, run.config if run else None), arguments.pool)
        found, advice = forecast(plan), recommend(plan)
        if arguments.plot:
            draw(plan, found, advice, arguments.plot)
    told = {name: value for name, value in vars(found).items() if name != "spans"}
    print(json.dumps({"forecast": told, "recommended": advice}) if arguments.json else show(plan, found, advice))


if __name__ == "__main__":
    main()
