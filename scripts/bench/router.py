"""Routing and learning at scale, beside a plain loop over draws and rollouts.

    python -m scripts.bench.router [--json]

2,048 questions with eight answers each, and 100,000 scored rollouts, over 6 topics, 24 regions and 15 languages in the
shares of real data; a router that has learned. Times are the best of several, on one core.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from common import config as configuration
from router import Context, Observation, Router
from router.simulation.worlds import LANGUAGES, REGIONS, TOPICS, World, questions
from scripts.bench.table import Json, Row, run, timed
from scripts.ops.command_line import command

QUESTIONS, ROLLOUTS, K, K_ON = 2048, 100_000, 8, 2
_GOAL_MS = 20.0


def measure(_: Path) -> list[Row]:
    random = np.random.default_rng(0)
    router, observations = _trained(random)
    asked = _contexts(random, QUESTIONS)
    loop = Loop(router)

    def route() -> None:
        router.observe([])  # as after every policy step, nothing is known of this one's distributions
        router.route(asked)

    def learn() -> None:
        router.observe(observations)
        router.update()

    routing, learning = timed(lambda: loop.route(asked), 3), timed(lambda: loop.learn(observations), 3)
    alone = timed(router.update, 10, before=lambda: router.observe(observations))
    rows = []
    for name, ours, theirs, goal in (
        (f"route {QUESTIONS} questions x {K}", timed(route, 10), routing, _GOAL_MS),
        (f"observe and learn from {len(observations) * K} rollouts", timed(learn, 10), learning, None),
        ("learn alone", alone, learning, _GOAL_MS),
    ):
        spent, plain = 1000 * ours[0], 1000 * theirs[0]
        told, ok = (f"<= {goal:.0f} ms", spent <= goal) if goal else (None, None)
        rows.append(Row(name, spent, "ms", f"plain loop {plain:.0f} ms", plain / spent, told, ok))
    return rows


class Loop:
    """One draw and one rollout at a time, with dictionaries, as LRPO's public code goes about it."""

    def __init__(self, router: Router) -> None:
        self._temperature, self._exploration = router.temperature, router.exploration
        self._logits: dict[str, Any] = defaultdict(lambda: np.zeros(len(LANGUAGES), np.float32))
        self._arm = {language: arm for arm, language in enumerate(LANGUAGES)}

    def route(self, contexts: list[Context]) -> list[list[str]]:
        return [[context.language if n < K_ON else self._draw(context) for n in range(K)] for context in contexts]

    def _draw(self, context: Context) -> str:
        logits = np.zeros(len(LANGUAGES), np.float32)
        for name in (*context.topics, *context.regions):
            logits = logits + self._logits[name]
        if np.random.rand() < self._exploration:
            return LANGUAGES[int(np.random.choice(len(LANGUAGES)))]
        scaled = logits / self._temperature
        weights = np.exp(scaled - scaled.max())
        return LANGUAGES[int(np.random.choice(len(LANGUAGES), p=weights / weights.sum()))]

    def learn(self, observations: list[Observation]) -> None:
        buckets: dict[tuple[str, str | None, int], list[float]] = {}
        for context, languages, rewards, _ in observations:
            for language, reward in zip(languages, rewards, strict=True):
                for topic in context.topics:
                    for region in context.regions or (None,):
                        bucket = buckets.setdefault((topic, region, self._arm[language]), [0.0, 0.0])
                        bucket[0] += reward
                        bucket[1] += 1
        groups: dict[tuple[str, str | None], list[float]] = defaultdict(list)
        for (topic, region, _), (total, count) in buckets.items():
            groups[topic, region].append(total / count)
        for (topic, region, arm), (total, count) in buckets.items():
            means = groups[topic, region]
            value = (total / count - np.mean(means)) / (np.std(means) + 1e-6)
            for name in (topic, region):
                if name is not None:
                    self._logits[name][arm] += 0.1 * (value - self._logits[name][arm])


def _contexts(random: np.random.Generator, number: int) -> list[Context]:
    topic, region, own = questions(World(), random, number, random.integers(0, 15, 24))
    return [
        Context(LANGUAGES[o], (TOPICS[t],), (REGIONS[r],) if r >= 0 else ())
        for t, r, o in zip(topic.tolist(), region.tolist(), own.tolist(), strict=True)
    ]


def _trained(random: np.random.Generator) -> tuple[Router, list[Observation]]:
    router = Router(configuration.RouterConfig(interval=10**9), LANGUAGES, seed=0, steps=1000)
    observations = []
    for context in _contexts(random, ROLLOUTS // K):
        languages = (context.language,) * K_ON + tuple(random.choice(LANGUAGES, K - K_ON).tolist())
        compliant = tuple((random.random(K) < 0.9).tolist())
        rewards = tuple((random.random(K) * compliant).tolist())
        observations.append(Observation(context, languages, rewards, compliant))
    router.observe(observations)
    router.update()
    return router, observations


@command()
def main(*, as_json: Json = False) -> None:
    run(measure, as_json)


if __name__ == "__main__":
    main()
