"""Contextual-bandit worlds in which strategies are compared by regret: ``python -m router simulate --help``.

A world says what an answer in each language is worth for each kind of question. Six topics, 24 regions and 15 languages
come in the uneven shares of real data, and a region's questions come half in its home language. A rollout complies with
its world's probability and then has the quality of its cell, plus the question's difficulty and noise, within [0, 1].
Regret is what the expected reward of the best language exceeds that of the language asked for by, over all rollouts,
reserved ones included.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common import config as configuration
from common.languages import CODES
from router.observations import Array, Context, Integers, Observation
from router.router import Router

LANGUAGES = CODES[:15]
TOPICS = ("Regional Knowledge", "General Knowledge", "Chat / Conversational", "Reasoning / Logic", "Translation",
          "Safety / Ethics")  # fmt: skip
REGIONS = tuple(f"region {number}" for number in range(24))
_TOPIC_COUNTS = np.array([2637, 1013, 687, 280, 210, 59])  # of the published training set, as the next
_LANGUAGE_COUNTS = np.array([2197, 890, 643, 212, 182, 167, 111, 107, 107, 93, 50, 43, 42, 41, 60])
_REGION_COUNTS = 1 / np.arange(1, 25) ** 1.2
_TRANSLATION = TOPICS.index("Translation")
_DIFFICULTY, _NOISE = 0.2, 0.12  # standard deviations among questions, and among answers to one


@dataclass
class World:
    """Quality tables that add up; all drawn anew for each seed."""

    topic: Array = field(default_factory=lambda: np.zeros((6, 15)))
    region: Array = field(default_factory=lambda: np.zeros((24, 15)))
    later: Array | None = None  # what ``region`` has become when training ends
    own: Array = field(default_factory=lambda: np.zeros((15, 15)))  # [question's language, answer's]
    shared: Array = field(default_factory=lambda: np.zeros(15))
    compliance: Array = field(default_factory=lambda: np.full(15, 0.97))
    delay: int = 0  # rewards arrive up to this many steps late

    def expected(self, topic: Integers, region: Integers, own: Integers, done: float) -> tuple[Array, Array]:
        """Quality and compliance in each language, [P, L], when a share ``done`` of the training is over."""
        regions = self.region if self.later is None else (1 - done) * self.region + done * self.later
        quality = (
            0.6 + self.shared + self.topic[topic] + self.own[own] + np.where((region >= 0)[:, None], regions[region], 0)
        )
        learned = self.compliance if self.later is None else self.compliance + done * (1 - self.compliance)
        return quality, np.broadcast_to(learned, quality.shape)


def _regions(random: np.random.Generator) -> Array:
    """Two languages of each region know it well."""
    table = random.normal(0, 0.02, (24, 15))
    for row in table:
        row[random.choice(15, 2, replace=False)] += 0.15
    return table


def world(name: str, random: np.random.Generator) -> World:
    """Raises ValueError for a name that is not in WORLDS."""
    match name:
        case "equal":
            return World()
        case "one-language":
            return World(shared=np.linspace(-0.1, 0.1, 15)[random.permutation(15)])
        case "topic":
            return World(topic=random.normal(0, 0.08, (6, 15)))
        case "question-language":
            return World(own=random.normal(0, 0.08, (15, 15)))
        case "region":
            return World(topic=random.normal(0, 0.03, (6, 15)), region=_regions(random))
        case "compliance":
            return World(region=_regions(random), compliance=random.uniform(0.6, 1, 15))
        case "drift":
            return World(region=_regions(random), later=_regions(random), compliance=random.uniform(0.8, 1, 15))
        case "late":
            return World(topic=random.normal(0, 0.03, (6, 15)), region=_regions(random), delay=8)
        case "everything":
            return World(
                topic=random.normal(0, 0.03, (6, 15)), region=_regions(random), later=_regions(random),
                own=random.normal(0, 0.05, (15, 15)), shared=random.normal(0, 0.03, 15),
                compliance=random.uniform(0.8, 1, 15), delay=8,
            )  # fmt: skip
    raise ValueError(f"unknown world {name!r}; there are {' '.join(WORLDS)}")


CONTEXTUAL = ("region", "topic", "question-language", "compliance", "drift", "late", "everything")  # best depends on it
WORLDS = (*CONTEXTUAL, "one-language", "equal")


class Greedy(Router):
    """The posterior's most promising language for all draws but ε; ``bonus`` deviations of optimism make it UCB."""

    bonus = 0.0

    def _chances(self, contexts: Sequence[Context]) -> Array:
        mean, variance = self._beliefs.worth(contexts, self._config.compliance_weight)
        hope = mean + self.bonus * np.sqrt(variance) + 1e-12 * self._random.random(mean.shape)  # ties at random
        chosen: Array = np.eye(mean.shape[1])[hope.argmax(1)]
        return chosen


class Ucb(Greedy):
    bonus = 2.0


STRATEGIES: dict[str, tuple[type[Router], dict[str, Any]]] = {
    "posterior": (Router, {}),  # the defaults
    "no-own-row": (Router, {"question_language": False}),
    "greedy": (Greedy, {}),
    "ucb": (Ucb, {}),
    "pooled": (Router, {"credit": "pooled"}),
    "reference": (Router, {"credit": "reference"}),
    "sharp-pooled": (Router, {"credit": "pooled", "temperature": 0.2, "temperature_min": 0.2, "ema": 0.3}),
    "sharp-reference": (Router, {"credit": "reference", "temperature": 0.1, "temperature_min": 0.1}),
    "uniform": (Router, {"mode": "uniform"}),
    "monolingual": (Router, {"mode": "monolingual"}),
    "input_dominant": (Router, {"mode": "input_dominant"}),
    "english_dominant": (Router, {"mode": "english_dominant"}),
}
FIXED = ("uniform", "monolingual", "input_dominant", "english_dominant")


@dataclass(frozen=True)
class Outcome:
    regret: float  # mean over all rollouts, in rewards
    evenness: float  # entropy of the last distributions / log L; 1 is uniform


def play(name: str, strategy: str, seed: int, steps: int, batch: int) -> Outcome:
    """One run; the world and its questions depend on the seed alone."""
    random = np.random.default_rng(seed)
    place = world(name, random)
    kind, settings = STRATEGIES[strategy]
    router = kind(configuration.RouterConfig(**settings), LANGUAGES, seed, steps)
    home = random.integers(0, 15, 24)
    regrets: list[float] = []
    late: list[list[Observation]] = [[] for _ in range(steps + place.delay + 1)]
    for step in range(steps):
        topic, region, own = questions(random, batch, home)
        contexts = [
            Context(LANGUAGES[o], (TOPICS[t],), (REGIONS[r],) if r >= 0 else ())
            for t, r, o in zip(topic.tolist(), region.tolist(), own.tolist(), strict=True)
        ]
        draws = router.route(contexts)
        arms = np.array([[LANGUAGES.index(one) for one in draw.languages] for draw in draws])
        quality, compliance = place.expected(topic, region, own, step / steps)
        worth = quality * compliance
        routed = topic != _TRANSLATION
        regrets.append(float((worth.max(1, keepdims=True) - np.take_along_axis(worth, arms, 1))[routed].mean()))
        compliant = random.random(arms.shape) < np.take_along_axis(compliance, arms, 1)
        rewards = np.take_along_axis(quality, arms, 1) + random.normal(0, _DIFFICULTY, (batch, 1))
        rewards = np.clip(rewards + random.normal(0, _NOISE, arms.shape), 0, 1) * compliant
        arrival = step + random.integers(0, place.delay + 1, batch)
        for context, draw, reward, kept, when in zip(
            contexts, draws, rewards.tolist(), compliant.tolist(), arrival.tolist(), strict=True
        ):
            late[when].append(Observation(context, tuple(draw.languages), tuple(reward), tuple(kept)))
        router.observe(late[step])
    chances = np.array([router.distribution(*context) for context in contexts])
    entropy = -(chances * np.log(chances + 1e-300)).sum(1).mean() / np.log(chances.shape[1])
    return Outcome(float(np.mean(regrets)), float(entropy))


def questions(random: np.random.Generator, number: int, home: Integers) -> tuple[Integers, Integers, Integers]:
    """Topic, region (-1 for none) and language of each, as indices; ``home`` has the language of each region."""

    def pick(counts: Array) -> Integers:
        return random.choice(len(counts), number, p=counts / counts.sum()).astype(np.intp)

    topic, region, own = pick(_TOPIC_COUNTS), pick(_REGION_COUNTS), pick(_LANGUAGE_COUNTS)
    region = np.where((topic == 0) | (random.random(number) < 0.2), region, -1)
    return topic, region, np.where((region >= 0) & (random.random(number) < 0.5), home[region], own)


def compare(
    worlds: Sequence[str], strategies: Sequence[str], seeds: int, steps: int, batch: int
) -> dict[str, dict[str, list[Outcome]]]:
    """Outcomes by world and strategy, one for each seed; the same seeds for all, so that they pair."""
    return {
        name: {one: [play(name, one, seed, steps, batch) for seed in range(seeds)] for one in strategies}
        for name in worlds
    }


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half its 95% interval, by the bootstrap over seeds."""
    array = np.array(values)
    resampled = array[np.random.default_rng(0).integers(0, len(array), (2000, len(array)))].mean(1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(array.mean()), float(high - low) / 2


def rows(found: dict[str, dict[str, list[Outcome]]]) -> list[dict[str, Any]]:
    """Regret of each strategy in each world, beside the reference's where that was played.

    The goals are those of the default: at most 0.8 of the reference's regret in the region world, nowhere more, and
    less than the best fixed strategy's wherever the best language depends on the context; and near to even draws where
    all languages are equal.
    """
    result = []
    for name, outcomes in found.items():
        mean = {one: float(np.mean([o.regret for o in results])) for one, results in outcomes.items()}
        fixed = min((mean[one] for one in FIXED if one in mean), default=float("inf"))
        for one in outcomes:
            base = mean.get("reference")
            goal, ok = None, None
            if one == "posterior" and base is not None:
                goal = 0.8 if name == "region" else 1.0
                ok = mean[one] <= goal * base and (name not in CONTEXTUAL or mean[one] < fixed)
            ratio = mean[one] / base if base else None
            result.append(
                {"metric": f"regret/{name}/{one}", "value": mean[one], "unit": "reward a rollout",
                 "baseline": "reference", "ratio": ratio, "goal": goal and f"<= {goal}", "ok": ok}
            )  # fmt: skip
    if "posterior" in found.get("equal", {}):
        even = float(np.mean([o.evenness for o in found["equal"]["posterior"]]))
        result.append({"metric": "evenness/equal/posterior", "value": even, "unit": "entropy / log L",
                       "baseline": "uniform", "ratio": even, "goal": ">= 0.85", "ok": even >= 0.85})  # fmt: skip
    return result


def table(found: dict[str, dict[str, list[Outcome]]], began: float) -> str:
    """Regret x 100 with 95% intervals; evenness; difference to the reference, paired by seed."""
    lines = [f"{'world':18}{'strategy':18}{'regret x 100':>18}{'against reference':>22}{'evenness':>10}"]
    for name, outcomes in found.items():
        for one, results in outcomes.items():
            mean, half = interval([100 * o.regret for o in results])
            against = ""
            if "reference" in outcomes and one != "reference":
                pairs = zip(results, outcomes["reference"], strict=True)
                difference, width = interval([100 * (a.regret - b.regret) for a, b in pairs])
                against = f"{difference:+8.2f} ± {width:5.2f}"
            evenness = float(np.mean([o.evenness for o in results]))
            lines.append(f"{name:18}{one:18}{mean:10.2f} ± {half:5.2f}{against:>22}{evenness:10.2f}")
    seeds = len(next(iter(next(iter(found.values())).values())))
    return "\n".join([*lines, f"{seeds} seeds, {time.monotonic() - began:.0f} s"])
