"""The two tables of logits and the beliefs, each against a second implementation straight from its definition."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from common import config as configuration
from router import Context, Observation, Router
from router.posterior import COMPLIANCE, QUALITY

LANGUAGES = ["en", "de", "zh", "ja"]
TOPICS = ["Chat", "Reasoning", "Regional Knowledge"]
REGIONS = ["China", "Europe", "Asia"]

Rows = dict[str, dict[str, float]]


def router(**settings: Any) -> Router:
    return Router(configuration.RouterConfig(**{"interval": 1} | settings), LANGUAGES, seed=0, steps=100)


def some(random: np.random.Generator, questions: int, most: int) -> list[Observation]:
    """Questions with up to ``most`` topics and regions each, two of five rollouts in the question's language."""
    result = []
    for _ in range(questions):
        topics = tuple(random.choice(TOPICS, random.integers(0, most + 1), replace=False).tolist())
        regions = tuple(random.choice(REGIONS, random.integers(0, most + 1), replace=False).tolist())
        own = str(random.choice([*LANGUAGES, "ko"]))
        languages = (own, own, *random.choice(LANGUAGES, 3).tolist())
        compliant = tuple((random.random(5) < 0.8).tolist())
        rewards = tuple((random.random(5) * compliant).tolist())
        result.append(Observation(Context(own, topics, regions), languages, rewards, compliant))
    return result


def normalised(value: float, among: list[float], norm: str) -> float:
    middle = sum(among) / len(among)
    spread = math.sqrt(sum((one - middle) ** 2 for one in among) / len(among))
    return {"none": value, "center": value - middle, "zscore": (value - middle) / (spread + 1e-6)}[norm]


# -- as the public code does it ----------------------------------------------------------------------------------------


class Published:
    """The update rule as spec'd by the public code: buckets, then one EMA after another."""

    def __init__(self, norm: str, region_topics: tuple[str, ...]) -> None:
        self.norm, self.region_topics = norm, region_topics
        self.rows: Rows = defaultdict(lambda: dict.fromkeys(LANGUAGES, 0.0))

    def update(self, seen: list[Observation]) -> None:
        order: list[tuple[str, str | None, str]] = []
        rewards: dict[tuple[str, str | None, str], list[float]] = defaultdict(list)
        for context, languages, values, _ in seen:
            for language, value in zip(languages, values, strict=True):
                if language not in LANGUAGES:
                    continue
                for topic in context.topics:
                    for region in context.regions or (None,):
                        key = (topic, region, language)
                        if key not in order:
                            order.append(key)
                        rewards[key].append(value)
        for topic, region, language in order:
            means = {key: sum(values) / len(values) for key, values in rewards.items()}
            among = [means[key] for key in order if key[:2] == (topic, region)]
            value = normalised(means[topic, region, language], among, self.norm)
            arms = [self.rows[f"topic:{topic}"]]
            if region and (not self.region_topics or topic in self.region_topics):
                arms.append(self.rows[f"region:{region}"])
            for arm in arms:
                arm[language] = 0.9 * arm[language] + 0.1 * value


def test_z_scores_take_the_size_of_a_difference_away(rng: np.random.Generator) -> None:
    """So languages that differ by a hundredth, and equal ones that noise tells apart, are driven apart as far."""

    def distance_from_even(norm: str, quality: dict[str, float], noise: float = 0.0) -> float:
        one = router(credit="reference", group_norm=norm)
        for _ in range(12):  # updates, as in 64 steps with one every five
            drawn = tuple(rng.permutation(LANGUAGES * 64).tolist())
            rewards = tuple(quality[language] + noise * rng.normal() for language in drawn)
            one.observe([Observation(Context("en", ("Chat",), ()), drawn, rewards, (True,) * len(drawn))])
        chances = one._chances([Context("en", ("Chat",), ())])[0]
        return float(np.abs(chances - 1 / len(LANGUAGES)).sum() / 2)

    small = dict(zip(LANGUAGES, (0.60, 0.601, 0.602, 0.604), strict=True))
    large = dict(zip(LANGUAGES, (0.50, 0.60, 0.70, 0.90), strict=True))
    assert distance_from_even("zscore", small) == pytest.approx(distance_from_even("zscore", large), abs=0.01)
    assert distance_from_even("zscore", small) > 0.15
    assert distance_from_even("center", small) < 0.001 < distance_from_even("center", large) / 20
    equal = [distance_from_even("zscore", dict.fromkeys(LANGUAGES, 0.6), noise=1e-3) for _ in range(20)]
    assert np.mean(equal) > 0.02


@pytest.mark.parametrize("region_topics", [(), ("Regional Knowledge",)])
@pytest.mark.parametrize("norm", ["none", "center", "zscore"])
def test_reference_credit_is_that_of_the_public_code(
    norm: str, region_topics: tuple[str, ...], rng: np.random.Generator
) -> None:
    bandit = router(credit="reference", group_norm=norm, region_topics=region_topics)
    expected = Published(norm, region_topics)
    for _ in range(15):
        seen = some(rng, 12, most=2)
        bandit.observe(seen)
        expected.update(seen)
        logits = bandit.state()["logits"]
        assert logits.keys() == expected.rows.keys()
        for name, row in expected.rows.items():
            np.testing.assert_allclose(logits[name], list(row.values()), rtol=0, atol=1e-9)


def test_a_topic_with_many_regions_moves_once_for_each_in_the_reference_and_once_when_pooled() -> None:
    seen = [
        Observation(Context("ko", ("Chat",), (f"region {n}",)), ("de", "zh") * 50, (0.9, 0.1) * 50, (True,) * 100)
        for n in range(24)
    ]
    moved = {}
    for credit, more in (("reference", {}), ("pooled", {"prior": 1e-9})):
        bandit = router(credit=credit, **more)
        bandit.observe(seen)
        moved[credit] = bandit.state()["logits"]["topic:Chat"][1]
    assert moved["reference"] == pytest.approx(1 - 0.9**24, abs=1e-4)  # effective rate 0.92 of a z-score of 1
    assert moved["pooled"] == pytest.approx(0.1, abs=1e-4)


# -- pooled ------------------------------------------------------------------------------------------------------------


def plain_pooled(
    seen: list[Observation], rows: Rows, norm: str, kept_share: float, weight: float, prior: float
) -> None:
    cells: dict[Context, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(lambda: [[], [], []]))
    for context, languages, rewards, compliant in seen:
        arms = [n for n, language in enumerate(languages) if language in LANGUAGES]
        kept = [n for n in arms if compliant[n]]
        for n in arms:
            # a question all in one language compares none
            cell = cells[context][languages[n]]
            if len({languages[m] for m in arms}) > 1:
                cell[0].append(1.0)
                cell[2].append(compliant[n] - sum(compliant[m] for m in arms) / len(arms))
            if compliant[n] and len({languages[m] for m in kept}) > 1:
                cell[1].append(rewards[n] - sum(rewards[m] for m in kept) / len(kept))
    credit = {
        (context, language): kept_share * sum(q) / max(len(q), 1) + weight * sum(c) / max(len(c), 1)
        for context, by_language in cells.items()
        for language, (_, q, c) in by_language.items()
    }
    buckets: dict[tuple[str, ...], set[Context]] = defaultdict(set)
    for context in cells:
        for topic in context.topics or (None,):
            for region in context.regions or (None,):
                names = [f"topic:{topic}"] * bool(topic) + [f"region:{region}"] * bool(region)
                buckets[tuple(names) if names else ("-",)].add(context)
        buckets[f"question:{context.language}",].add(context)
    targets: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    for bucket, members in buckets.items():
        value, number = {}, {}
        for language in LANGUAGES:
            counts = {one: len(cells[one][language][0]) for one in members if language in cells[one]}
            if sum(counts.values()):
                number[language] = sum(counts.values())
                total = sum(n * credit[one, language] for one, n in counts.items())
                value[language] = total / number[language]
        for language in value:
            for name in bucket:
                targets[name, language].append(
                    (normalised(value[language], list(value.values()), norm), number[language])
                )
    for (name, language), found in targets.items():
        n = sum(number for _, number in found)
        target = sum(number * value for value, number in found) / n
        rows[name][language] += 0.1 * n / (n + prior) * (target - rows[name][language])


@pytest.mark.parametrize("norm", ["none", "center", "zscore"])
def test_pooled_credit_is_as_defined(norm: str, rng: np.random.Generator) -> None:
    bandit = router(credit="pooled", group_norm=norm, compliance_weight=0.7, prior=5)
    rows: Rows = defaultdict(lambda: dict.fromkeys(LANGUAGES, 0.0))
    for _ in range(15):
        seen = some(rng, 12, most=2)
        total, compliant, every = bandit.state()["seen"]
        bandit.observe(seen)
        plain_pooled(seen, rows, norm, compliant / every, 0.7 * total / compliant, 5)
        logits = bandit.state()["logits"]
        for name, row in rows.items():
            if name != "-":
                np.testing.assert_allclose(logits[name], list(row.values()), rtol=0, atol=1e-7)


# -- beliefs -----------------------------------------------------------------------------------------------------------


def explicit(bandit: Router, table: int, arm: int) -> tuple[dict[str, int], Any, Any, Any]:
    """The terms of one arm by name with their joint posterior, as plain Bayesian regression on named terms."""
    beliefs = bandit._beliefs
    fit = beliefs._fit(table, beliefs.rate, covariance=True)
    contexts = list(beliefs._contexts)

    def terms(context: Context) -> dict[str, tuple[float, int]]:
        found = {"shared": (1.0, 0)} | ({f"question:{context.language}": (1.0, 3)} if beliefs._own_language else {})
        found |= {f"topic:{name}": (1 / len(context.topics), 1) for name in context.topics}
        found |= {f"region:{name}": (1 / len(context.regions), 2) for name in context.regions}
        if context.topics and context.regions:
            found[f"pair:{context.topics}{context.regions}"] = (1.0, 4)
        return found

    index: dict[str, int] = {}
    prior: list[float] = []
    centre: list[float] = []
    for context in contexts:
        for name, (_, kind) in terms(context).items():
            if name not in index:
                index[name] = len(index)
                prior.append(fit.prior.variance_A_V[arm, kind])
                own = arm < len(LANGUAGES) and name == f"question:{LANGUAGES[arm]}"
                centre.append(fit.prior.own_mean[0] * own + 0.5 * (name == "shared" and arm == len(LANGUAGES)))
    x = np.zeros((len(contexts), len(index)))
    for row, context in enumerate(contexts):
        for name, (weight, _) in terms(context).items():
            x[row, index[name]] = weight
    noise = beliefs._noise.answers[table]
    precision = beliefs._information_S_T_C_A[beliefs.rate, table, :, arm] / noise
    weighted_value = beliefs._weighted_value_S_T_C_A[beliefs.rate, table, :, arm] / noise
    covariance = np.linalg.inv(x.T @ (precision[:, None] * x) + np.diag(1 / np.array(prior)))
    mean = covariance @ (x.T @ weighted_value + np.array(centre) / prior)
    return index, x, mean, covariance


@pytest.mark.parametrize("own", [True, False])
def test_the_posterior_is_that_of_regression_on_all_terms(own: bool, rng: np.random.Generator) -> None:
    bandit = router(question_language=own)
    for _ in range(4):
        bandit.observe(some(rng, 12, most=2))
    beliefs = bandit._beliefs
    for table in (QUALITY, COMPLIANCE):
        fit = beliefs._fit(table, beliefs.rate, covariance=True)
        found, variance = fit.predict(fit.layout.features(list(beliefs._contexts)), own_language=own)
        assert variance is not None
        for arm in range(len(LANGUAGES) + 1):
            index, x, mean, covariance = explicit(bandit, table, arm)
            np.testing.assert_allclose(found[:, arm], x @ mean, atol=1e-6)
            np.testing.assert_allclose(variance[:, arm], ((x @ covariance) * x).sum(1), rtol=1e-4, atol=5e-9)
            if arm < len(LANGUAGES):
                assert fit.mean_A_J[arm, 0] == pytest.approx(mean[index["shared"]], abs=1e-6)


def test_beliefs_are_as_sure_as_they_are_right(rng: np.random.Generator) -> None:
    """Rewards drawn from the model itself: the errors of differences between languages, in standard deviations."""
    random, off = rng, []
    for _ in range(6):
        bandit = router(own_language=0)
        topic, region = random.normal(0, 0.06, (3, 4)), random.normal(0, 0.06, (3, 4))
        for _ in range(12):
            step = []
            for _ in range(24):
                t, r = int(random.integers(0, 3)), int(random.integers(0, 3))
                arms = random.integers(0, 4, 6)
                values = 0.5 + 0.1 * random.normal() + topic[t, arms] + region[r, arms] + random.normal(0, 0.1, 6)
                languages = tuple(LANGUAGES[arm] for arm in arms.tolist())
                context = Context("", (TOPICS[t],), (REGIONS[r],))
                step.append(Observation(context, languages, tuple(values.tolist()), (True,) * 6))
            bandit.observe(step)
        asked = [Context("", (TOPICS[t],), (REGIONS[r],)) for t in range(3) for r in range(3)]
        mean, variance = bandit._beliefs.worth(asked, 0.0)
        true = (topic[:, None] + region[None]).reshape(9, 4)
        error = (mean - mean[:, :1]) - (true - true[:, :1])
        off.append((error / np.sqrt(variance + variance[:, :1]))[:, 1:])
    assert 0.6 < np.std(off) < 1.4


def gap(bandit: Router, topic: str, region: str | None) -> float:
    """How much more Chinese is thought to be worth than German."""
    context = Context("ko", (topic,), (region,) if region else ())
    mean, _ = bandit._beliefs.worth([context], 1.0)
    return float(mean[0, 2] - mean[0, 1])


def rollouts(
    random: np.random.Generator, topic: str, region: str | None, worth: dict[str, float], languages: tuple[str, ...]
) -> Observation:
    noise = random.normal(0, 0.1, len(languages)) + 0.3 * random.random()  # answers to one question share its ease
    rewards = tuple(worth[one] + float(extra) for one, extra in zip(languages, noise, strict=True))
    return Observation(Context("ko", (topic,), (region,) if region else ()), languages, rewards, (True,) * len(rewards))


def test_an_unknown_region_starts_from_its_topic_and_departs_with_evidence() -> None:
    random, bandit = np.random.default_rng(3), router()
    pair = ("de", "zh") * 4
    for _ in range(20):
        known = [rollouts(random, "Chat", "China", {"de": 0.3, "zh": 0.5}, pair) for _ in range(10)]
        bandit.observe(known)
    assert gap(bandit, "Chat", "Asia") == pytest.approx(gap(bandit, "Chat", None)) and gap(bandit, "Chat", "Asia") > 0.1
    one = [rollouts(random, "Chat", "Asia", {"de": 0.6, "zh": 0.3}, ("de", "zh"))]
    bandit.observe(one)
    assert gap(bandit, "Chat", "Asia") > -0.1  # where two rollouts say -0.3
    for _ in range(20):
        known = [rollouts(random, "Chat", "China", {"de": 0.3, "zh": 0.5}, pair) for _ in range(10)]
        bandit.observe([*known, rollouts(random, "Chat", "Asia", {"de": 0.6, "zh": 0.3}, pair)])
    assert gap(bandit, "Chat", "Asia") == pytest.approx(-0.3, abs=0.15)
    assert gap(bandit, "Chat", "China") == pytest.approx(0.2, abs=0.05)


def test_languages_drawn_for_easy_questions_get_no_credit_for_it() -> None:
    random, bandit = np.random.default_rng(4), router()
    for _ in range(30):
        easy = [rollouts(random, "Chat", "China", {"de": 0.9, "zh": 0.9}, ("zh",) * 7 + ("de",)) for _ in range(4)]
        hard = [rollouts(random, "Chat", "Europe", {"de": 0.1, "zh": 0.1}, ("de",) * 7 + ("zh",)) for _ in range(4)]
        bandit.observe([*easy, *hard])
    assert abs(gap(bandit, "Chat", None)) < 0.03


@pytest.mark.parametrize("credit", ["posterior", "pooled"])
def test_worth_is_the_expected_reward_to_first_order(credit: str) -> None:
    """German answers are better, 0.7 to 0.4, and kept in 0.3 of cases to 0.6: worth 0.21 and 0.24."""
    random, bandit = (
        np.random.default_rng(8),
        router(credit=credit, **({} if credit == "posterior" else {"ema": 0.05, "prior": 4})),
    )
    for _ in range(60):
        step = []
        for _ in range(12):
            plain = rollouts(random, "Chat", None, {"de": 0.55, "zh": 0.25}, ("de", "zh") * 4)
            kept = tuple(bool(random.random() < (0.3 if one == "de" else 0.6)) for one in plain.languages)
            rewards = tuple(reward * held for reward, held in zip(plain.rewards, kept, strict=True))
            step.append(plain._replace(rewards=rewards, compliant=kept))
        bandit.observe(step)
    chances = bandit.distribution("ko", "Chat", None)
    assert chances[2] > chances[1]


def test_questions_all_in_one_language_change_nothing() -> None:
    random = np.random.default_rng(2)
    seen = some(random, 10, most=1)
    alone = [
        Observation(Context("zh", ("Translation",), ("China",)), ("zh",) * 8, tuple(random.random(8)), (True,) * 8)
        for _ in range(30)
    ]
    one, other = router(credit="pooled", group_norm="center"), router(credit="pooled", group_norm="center")
    one.observe(seen)
    other.observe([*seen, *alone])
    rows = other.state()["logits"]
    for name, row in one.state()["logits"].items():
        np.testing.assert_allclose(rows[name], row, atol=1e-12)


def test_a_lost_language_is_worth_its_weight() -> None:
    """German is better by 0.1 when it is German, which it is half the time."""
    random = np.random.default_rng(6)
    liked = {}
    for weight in (0.0, 1.0):
        bandit = router(compliance_weight=weight)
        for _ in range(40):
            step = []
            for _ in range(6):
                plain = rollouts(random, "Chat", None, {"de": 0.6, "zh": 0.5}, ("de", "zh") * 4)
                kept = tuple(one == "zh" or bool(random.random() < 0.5) for one in plain.languages)
                rewards = tuple(reward * held for reward, held in zip(plain.rewards, kept, strict=True))
                step.append(plain._replace(rewards=rewards, compliant=kept))
            bandit.observe(step)
        liked[weight] = LANGUAGES[int(bandit.distribution("ko", "Chat", None).argmax())]
    assert liked == {0.0: "de", 1.0: "zh"}
