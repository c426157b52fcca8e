"""Compares strategies by their regret in contextual-bandit worlds: ``python -m router simulate --help``.

A rollout complies with its world's probability. It then has the quality of its cell, plus the difficulty of the
question and noise, within [0, 1]. The regret of a rollout is the difference between the expected reward of the best
language and that of the language asked for; it is averaged over all rollouts of routed questions, including fixed ones.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np

from common.intervals import half_width
from router.modes import TRANSLATION
from router.observations import Context, Observation
from router.simulation.strategies import BEST_FIXED, STRATEGIES, TEXTBOOK
from router.simulation.worlds import CONTEXTUAL, EQUAL, LANGUAGES, REGIONS, make_world, questions

_ARM = {language: arm for arm, language in enumerate(LANGUAGES)}
_RESERVED = 2 / 8  # the share of the answers in the question's own language, by default


@dataclass(frozen=True)
class Outcome:
    """What one run gave.

    Attributes:
        regret: the mean over all rollouts, in units of the reward.
        evenness: the mean entropy of the distributions of the last step, divided by log L; 1 is uniform.
    """

    regret: float
    evenness: float


def play(name: str, strategy: str, seed: int, steps: int, batch: int) -> Outcome:
    """Plays one strategy in one world. The world, its questions and how late they come depend on the seed alone.

    Args:
        name: the world.
        strategy: a name in ``STRATEGIES``.
        seed: of the world, its questions, the rewards, and the draws, each with random numbers of its own.
        steps: policy steps.
        batch: questions in each step.

    Raises:
        ValueError: no question of any step is routed.
    """
    # Rewards have a generator of their own, because a Beta draw takes more or fewer random numbers by its parameters,
    # and these depend on the languages that the strategy has chosen.
    of_world, of_questions, of_rewards = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(3))
    world = make_world(name, of_world)
    router = STRATEGIES[strategy](LANGUAGES, seed, steps)
    home = of_world.integers(0, 15, 24)
    regret, count = 0.0, 0  # sum over the routed questions of the mean over their rollouts; how many these are
    fixed = np.zeros(len(LANGUAGES))  # the sum for each language, had it had all draws
    late: list[list[Observation]] = [[] for _ in range(steps + world.delay + 1)]
    for step in range(steps):
        topic, region, own = questions(world, of_questions, batch, home)
        contexts = [
            Context(LANGUAGES[o], (world.topics[t],), (REGIONS[r],) if r >= 0 else ())
            for t, r, o in zip(topic.tolist(), region.tolist(), own.tolist(), strict=True)
        ]
        draws = router.route(contexts)
        arms = np.array([[_ARM[one] for one in draw.languages] for draw in draws])
        quality, compliance = world.expected(topic, region, own, step / steps)
        lost = (quality * compliance).max(1, keepdims=True) - quality * compliance
        routed = np.array([world.topics[t] != TRANSLATION for t in topic.tolist()])
        regret += float(np.take_along_axis(lost, arms, 1)[routed].mean(1).sum())
        count += int(routed.sum())
        fixed += (_RESERVED * np.take_along_axis(lost, own[:, None], 1) + (1 - _RESERVED) * lost)[routed].sum(0)
        compliant = of_rewards.random(arms.shape) < np.take_along_axis(compliance, arms, 1)
        rewards = world.rewards(of_rewards, topic, arms, quality) * compliant
        arrival = step + of_questions.integers(0, world.delay + 1, batch)
        for context, draw, reward, kept, when in zip(
            contexts, draws, rewards.tolist(), compliant.tolist(), arrival.tolist(), strict=True
        ):
            late[when].append(Observation(context, tuple(draw.languages), tuple(reward), tuple(kept)))
        router.observe(late[step])
    if not count:
        raise ValueError(
            f"in the world {name!r} with seed {seed} none of the questions is routed, {batch} in each of {steps} "
            "steps: give more --questions or --steps"
        )
    chances = np.array([router.distribution(*context) for context in contexts])
    entropy = -(chances * np.log(chances + 1e-300)).sum(1).mean() / np.log(chances.shape[1])
    return Outcome(float(fixed.min() if strategy == BEST_FIXED else regret) / count, float(entropy))


def compare(
    worlds: Sequence[str], strategies: Sequence[str], seeds: int, steps: int, batch: int, processes: int = 1
) -> dict[str, dict[str, list[Outcome]]]:
    """Plays every strategy in every world with the seeds 0, 1, ...; the seeds are the same for all, so outcomes pair.

    Args:
        worlds: names in ``WORLDS``.
        strategies: names in ``STRATEGIES``.
        seeds: how many runs each strategy has in each world.
        steps: policy steps of a run.
        batch: questions in each step.
        processes: how many run at the same time; 1 runs them here.

    Returns:
        By world and strategy the outcome of each seed.
    """
    runs = [(name, one, seed, steps, batch) for name in worlds for one in strategies for seed in range(seeds)]
    if processes > 1:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            played = list(pool.map(play, *zip(*runs, strict=True)))
    else:
        played = [play(*run) for run in runs]
    outcomes = iter(played)
    return {name: {one: [next(outcomes) for _ in range(seeds)] for one in strategies} for name in worlds}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of values, one a seed, and half the width of its 95% interval by Student's t; nan with one seed."""
    array = np.array(values)
    return float(array.mean()), half_width(array)


def rows(found: dict[str, dict[str, list[Outcome]]]) -> list[dict[str, Any]]:
    """The regret of each strategy in each world as rows of a benchmark.

    The baseline is the best of the textbook bandits that were played, without those the reference. The goals are those
    of the default strategy: at most 1.05 of the best textbook bandit's regret, and less than the reference's; where the
    best language depends on the context, also less than that of the strategies with a fixed share of English or of
    uniform draws. Where all languages are equal, draws must stay nearly even.
    """
    result = []
    for name, outcomes in found.items():
        mean = {one: float(np.mean([o.regret for o in results])) for one, results in outcomes.items()}
        textbook = min((one for one in TEXTBOOK if one in mean), key=mean.__getitem__, default="reference")
        base, goal = mean.get(textbook), 1.05 if textbook in TEXTBOOK else 1.0
        mixtures = [mean[one] for one in ("uniform", "input_dominant", "english_dominant") if one in mean]
        for one in outcomes:
            ratio = mean[one] / base if base else None
            judged = one == "posterior" and ratio is not None and name not in EQUAL
            ok = None
            if judged and ratio is not None:
                ok = ratio <= goal and mean[one] < mean.get("reference", float("inf"))
                ok = ok and (name not in CONTEXTUAL or mean[one] < min(mixtures, default=float("inf")))
            result.append(
                {"metric": f"regret/{name}/{one}", "value": mean[one], "unit": "reward a rollout",
                 "baseline": textbook, "ratio": ratio, "goal": f"<= {goal}" if judged else None, "ok": ok}
            )  # fmt: skip
        if name in EQUAL and "posterior" in outcomes:
            even = float(np.mean([o.evenness for o in outcomes["posterior"]]))
            result.append({"metric": f"evenness/{name}/posterior", "value": even, "unit": "entropy / log L",
                           "baseline": "uniform", "ratio": even, "goal": ">= 0.85", "ok": even >= 0.85})  # fmt: skip
    return result


def table(found: dict[str, dict[str, list[Outcome]]], began: float) -> str:
    """A table for the terminal: regret x 100 with 95% intervals, what is regretted beyond the default, and evenness.

    Intervals are Student's over the seeds. Differences to the default are paired by seed; where they are above 0 the
    default does better.

    Args:
        found: what :func:`compare` returned.
        began: when it was called, in seconds of the monotonic clock.
    """
    lines = [f"{'world':18}{'strategy':20}{'regret x 100':>18}{'beyond the default':>22}{'evenness':>10}"]
    for name, outcomes in found.items():
        for one, results in outcomes.items():
            mean, half = interval([100 * o.regret for o in results])
            against = ""
            if "posterior" in outcomes and one != "posterior":
                pairs = zip(results, outcomes["posterior"], strict=True)
                difference, width = interval([100 * (a.regret - b.regret) for a, b in pairs])
                against = f"{difference:+8.2f} ± {width:5.2f}"
            evenness = float(np.mean([o.evenness for o in results]))
            lines.append(f"{name:18}{one:20}{mean:10.2f} ± {half:5.2f}{against:>22}{evenness:10.2f}")
    seeds = len(next(iter(next(iter(found.values())).values())))
    return "\n".join([*lines, f"{seeds} seeds, {time.monotonic() - began:.0f} s"])
