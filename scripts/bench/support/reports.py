"""Invented steps of a run, for the tests and benchmarks of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import wire
from common.config import Config, RouterConfig, load
from common.languages import POLICY_CHOOSES
from learner.groups import Group, StepResult
from learner.report.metrics import StepContext
from learner.weights.publisher import Published
from learner.work.actors import ActorState
from router import Context, Observation, Router
from scripts.bench.support.groups import LANGUAGES, random_rollout, work

MEANS = (
    "loss", "kl", "clip_share", "importance_weight", "importance_limited", "mismatch", "entropy", "outside_bounds",
    "effective_sample",
)  # fmt: skip
BY_LANGUAGE = ("entropy", "mismatch", "outside_bounds", "loss")
SCALES = {"mismatch": 0.05, "outside_bounds": 0.05}  # engines and learner agree, so that there is no alarm


def configuration(run_dir: Path, steps: int, *flags: str) -> Config:
    return load(["--run.dir", str(run_dir), "--learner.steps", str(steps), "--learner.groups_per_step", "4", *flags])


def learned(languages: Sequence[str], topics: int, regions: int) -> dict[str, Any]:
    """The log of a router that has found the second language to be best for everything."""
    router = Router(RouterConfig(interval=1), languages, 0, 10)
    for number in range(4 * topics * regions):
        about = "en", [f"topic {number % topics}"], [f"region {number % regions}"]
        draw = router.draw(*about)
        good = tuple(float(language == languages[1]) for language in draw.languages)
        router.observe([Observation(Context.of(*about), tuple(draw.languages), good, (True,) * len(good))])
    return router.log()


def random_step(
    rng: np.random.Generator, number: int, *, actors: int = 2, groups: int = 4, answers: int = 4,
    languages: Sequence[str] = LANGUAGES,
) -> dict[str, Any]:  # fmt: skip
    """Arguments of ``Report.step``; totals grow in proportion to ``number``."""
    batch = []
    for n in range(groups):
        rollouts = [random_rollout(rng, version=max(0, number - 1 - n % 3)) for _ in range(answers)]
        rollouts = [r.model_copy(update={"language": str(rng.choice(languages))}) for r in rollouts]
        asked = work(groups * number + n, [POLICY_CHOOSES, *(rollout.language for rollout in rollouts[1:])])
        question = asked.question.model_copy(update={"regions": ["France"]})
        asked = asked.model_copy(update={"question": question, "propensities": [1.0, *[0.5] * (answers - 1)]})
        rollouts = [r.model_copy(update={"score": r.score.model_copy(update={"terms": {
                        "similarity": 0.5, "exact": float(rng.random()),
                    }})}) for r in rollouts]  # fmt: skip
        batch.append(Group(work=asked, actor=f"l40s-{n % actors}", rollouts=rollouts))
    used = {rollout.language for group in batch for rollout in group.rollouts}
    result = StepResult(
        means={name: float(rng.random()) * SCALES.get(name, 1.0) for name in MEANS} | {"effective_sample": 0.9},
        by_language={name: {one: float(rng.random()) for one in used} for name in BY_LANGUAGE},
        by_lag={name: {lag: float(rng.random()) * scale for lag in range(3)} for name, scale in SCALES.items()},
        by_actor={"mismatch": {f"l40s-{n}": float(rng.random()) for n in range(actors)}},
        fill=0.9, grad_norm=1.0, lr=1e-3, gradient_noise=0.5,
    )  # fmt: skip
    seconds = {"generate": 0.5 * number, "wait_work": 0.3 * number, "wait_reward": 0.1 * number, "sync": 0.1 * number}
    gauges = {"usage": 0.4, "running": 3.0, "waiting": 0.0, "probe_error": 1e-5}
    peers = {
        f"l40s-{n}": ActorState(
            f"l40s-{n}",
            "peer",
            "life",
            wire.ActorProcess(),
            engine_ranks=1,
            transport="group",
            drain_s=0.0,
            settings={},
            slots=4,
            last_heard=0.0,
            seconds=seconds,
            gauges=gauges,
        )
        for n in range(actors)
    }
    spent = {
        "learner": {"wait": 0.1 * number, "train": 0.8 * number, "publish": 0.06 * number, "report": 0.04 * number}
    }
    spent |= {f"actor {name}": seconds for name in peers}
    spent["reward"] = {"busy": 0.2 * number, "wait": 0.8 * number}
    counts = {"leased": 3, "waiting": 1, "retried": 0, "orphaned": 0, "failed": 0, "refused": 0, "foreign": 0}
    context = StepContext(spent, counts, peers, Published(peers, 0.1, 0.05), 1.0)
    return {"number": number, "batch": batch, "result": result, "context": context}
