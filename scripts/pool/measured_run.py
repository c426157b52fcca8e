"""The rates that a finished run measured: of its engines, its learner and its reward processes."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.config import ConfigError


@dataclass(frozen=True)
class MeasuredRun:
    """What a finished run measured; times are in seconds."""

    config: dict[str, Any]
    engines: dict[str, tuple[float, float]]  # by actor: token_s and group_s, as pool.simulation explains them
    answers: list[list[int]]  # tokens of each answer of each group
    train_token_s: float  # of a response token, all learner ranks together
    work: dict[str, float]  # by the keys of pool_file.Work
    step_s: float
    lag_mean: float


def read_run(directory: Path) -> MeasuredRun:
    """The rates of the run in a directory.

    Raises:
        ConfigError: there is no finished run, or its files lack the measurements.
    """
    try:
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (directory / "ledger.jsonl").read_bytes().splitlines()]
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
        return MeasuredRun(
            summary["config"], {name: _engine_rates(some) for name, some in by_actor.items()},
            [group["lengths"] for group in groups], learner["train"] * steps / sum(trained), work,
            spent["run"]["loop"], summary["staleness_mean"],
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"--run {directory}: no finished run: cannot read {error.filename}") from None
    except (ValueError, KeyError, ZeroDivisionError, TypeError, IndexError) as error:
        raise ConfigError(f"--run {directory}: its summary or ledger does not tell {error}: run it again") from None


def _engine_rates(groups: list[tuple[int, dict[str, float]]]) -> tuple[float, float]:
    """(token_s, group_s) by least squares of: seconds a decoding step = token_s + group_s · groups, none below 0.

    Where the number of groups hardly changed, nothing tells the two apart; then the whole time is taken to grow with
    the number of groups, as that of a saturated engine does.
    """
    steps, seconds, x = np.array([(n, t["generate_s"], t["groups"]) for n, t in groups], np.float64).T
    y, weights = seconds / steps, steps / steps.sum()
    x_mean, y_mean = float(weights @ x), float(weights @ y)
    variance = float(weights @ (x - x_mean) ** 2)
    if variance < (0.05 * x_mean) ** 2:
        return 0.0, y_mean / x_mean
    slope = min(max(float(weights @ ((x - x_mean) * (y - y_mean))) / variance, 0.0), y_mean / x_mean)
    return y_mean - slope * x_mean, slope
