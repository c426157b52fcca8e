"""Properties of the bandit, and one pooled update against a second implementation."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import config as configuration
from router import Observation, Router

LANGUAGES = ["en", "de", "zh", "ja"]
TOPICS = ["Chat", "Reasoning", "Regional Knowledge"]
REGIONS = ["China", "Europe"]

names = st.lists(st.sampled_from(TOPICS), max_size=2, unique=True).map(tuple)
places = st.lists(st.sampled_from(REGIONS), max_size=2, unique=True).map(tuple)


def router(languages: list[str] | None = None, seed: int = 0, **settings: Any) -> Router:
    return Router(configuration.Router(**settings), languages or LANGUAGES, seed)


@st.composite
def steps(draw: st.DrawFn) -> list[Observation]:
    """The rollouts of some questions; ``ko`` is a question's language that is no arm."""
    result = []
    for number in range(draw(st.integers(1, 6))):
        topics, regions = draw(names), draw(places)
        asked = draw(st.lists(st.sampled_from([*LANGUAGES, "ko"]), min_size=1, max_size=6))
        for language in asked:
            reward = draw(st.floats(0, 1, allow_subnormal=False))
            result.append(Observation(f"train-{number}", topics, regions, language, reward))
    return result


def logits(router: Router) -> dict[str, dict[str, list[float]]]:
    rows: dict[str, dict[str, list[float]]] = router.state()["rows"]
    return rows


def trained(**settings: Any) -> Router:
    """Clear preferences: English for chat, Chinese for reasoning and about China."""
    result = router(interval=1, ema=1.0, **settings)
    liked = {"Chat": "en", "Reasoning": "zh"}
    result.observe(
        [
            Observation(topic, (topic,), regions, language, float(language == liked[topic]))
            for topic, regions in (("Chat", ()), ("Reasoning", ("China",)))
            for language in LANGUAGES
        ]
    )
    return result


# -- drawing -----------------------------------------------------------------------------------------------------------


@given(step=steps(), topics=names, regions=places, own=st.sampled_from([*LANGUAGES, "ko"]), reserved=st.integers(0, 8))
def test_propensities_are_those_of_the_distribution(
    step: list[Observation], topics: tuple[str, ...], regions: tuple[str, ...], own: str, reserved: int
) -> None:
    bandit = router(interval=1, own_language=reserved)
    bandit.observe(step)
    weights = bandit.distribution(topics, regions)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert (weights >= bandit.exploration / len(LANGUAGES) - 1e-15).all()
    draw = bandit.draw(own, topics, regions)
    assert len(draw.languages) == len(draw.propensities) == 8
    assert draw.languages[:reserved] == [own] * reserved and draw.propensities[:reserved] == [1.0] * reserved
    for language, propensity in zip(draw.languages[reserved:], draw.propensities[reserved:], strict=True):
        assert propensity == weights[LANGUAGES.index(language)]
    assert draw.router_version == 1


def test_distribution_is_the_formula() -> None:
    bandit = trained(temperature=0.7, exploration=0.4)
    rows = logits(bandit)
    z = np.array(rows["topic"]["Chat"]) + rows["topic"]["Reasoning"] + np.array(rows["region"]["China"])
    tau, epsilon = 0.7 * 0.999, 0.4 * 0.995
    p = np.exp(z / tau) / np.exp(z / tau).sum()
    expected = (1 - epsilon) * p + epsilon / 4
    np.testing.assert_allclose(bandit.distribution(["Chat", "Reasoning"], ["China"]), expected, rtol=1e-12)


def test_draws_have_the_frequencies_of_the_distribution() -> None:
    bandit = trained()
    weights = bandit.distribution(["Reasoning"], ["China"])
    assert weights.max() > 0.5 > 0.01 < weights.min()
    drawn = [language for _ in range(4000) for language in bandit.draw("de", ["Reasoning"], ["China"]).languages[2:]]
    counts = np.array([drawn.count(language) for language in LANGUAGES])
    expected = weights * len(drawn)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 16.27  # 0.999 quantile with 3 degrees of freedom


def test_regions_count_for_the_listed_topics_only() -> None:
    everywhere, listed = trained(), trained(region_topics=("Regional Knowledge",))
    assert (everywhere.distribution(["Chat"], ["China"]) != everywhere.distribution(["Chat"], [])).any()
    assert (listed.distribution(["Chat"], ["China"]) == listed.distribution(["Chat"], [])).all()
    both = ["Chat", "Regional Knowledge"]
    assert (listed.distribution(both, ["China"]) == everywhere.distribution(both, ["China"])).all()


def test_a_new_router_is_uniform() -> None:
    np.testing.assert_allclose(router().distribution(["unheard of"], ["nowhere"]), 0.25)
    assert router().probabilities() == {}


@pytest.mark.parametrize(
    ("mode", "rollouts", "fixed"),
    [
        ("learned", 8, ["de"] * 2),
        ("monolingual", 8, ["de"] * 8),
        ("input_dominant", 8, ["de"] * 6 + ["en"] * 2),
        ("english_dominant", 8, ["de"] * 2 + ["en"] * 6),
        ("uniform", 8, ["de"] * 2),
        ("input_dominant", 2, ["de", "en"]),
        ("english_dominant", 6, ["de"] * 2 + ["en"] * 4),
    ],
)
def test_modes(mode: str, rollouts: int, fixed: list[str]) -> None:
    bandit = router(mode=mode, rollouts=rollouts)
    draw = bandit.draw("de", ["Chat"], [])
    assert draw.languages[: len(fixed)] == fixed and len(draw.languages) == rollouts
    assert draw.propensities == [1.0] * len(fixed) + [0.25] * (rollouts - len(fixed))
    translation = bandit.draw("ko", ["Translation"], [])
    assert translation.languages == ["ko"] * rollouts and translation.propensities == [1.0] * rollouts


def test_fixed_modes_learn_nothing() -> None:
    bandit = router(mode="uniform", interval=1)
    bandit.observe([Observation("a", ("Chat",), (), "de", 1.0), Observation("a", ("Chat",), (), "en", 0.0)])
    assert (bandit.step, bandit.version, bandit.probabilities()) == (1, 0, {})
    np.testing.assert_allclose(bandit.distribution(["Chat"], []), 0.25)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="add 'en' to run"):
        router(["de", "zh"], mode="english_dominant")
    with pytest.raises(ValueError, match="each once"):
        router(["de", "de"])


def test_schedules() -> None:
    bandit = router(temperature_decay=0.9, exploration_decay=0.5, exploration_min=0.01)
    for step in range(30):
        assert bandit.step == step
        assert bandit.temperature == max(0.3, 1.0 * 0.9**step)
        assert bandit.exploration == max(0.01, 0.2 * 0.5**step)
        bandit.observe([])
    assert bandit.version == 6


# -- learning ----------------------------------------------------------------------------------------------------------


def plain_update(
    seen: list[Observation], alpha: float, norm: str, centre: bool, rows: dict[str, dict[str, list[float]]]
) -> None:
    """The pooled update once more, straight from its definition."""
    contexts: dict[tuple[str | None, str | None], dict[str, list[float]]] = {}
    for one in seen:
        mates = [other.reward for other in seen if other.group == one.group]
        credit = one.reward - (sum(mates) / len(mates) if centre else 0)
        for topic in one.topics or (None,):
            for region in one.regions or (None,):
                if one.language in LANGUAGES:
                    contexts.setdefault((topic, region), {}).setdefault(one.language, []).append(credit)
    value = {}
    for context, by_language in contexts.items():
        means = {language: sum(credits) / len(credits) for language, credits in by_language.items()}
        middle = sum(means.values()) / len(means)
        spread = math.sqrt(sum((mean - middle) ** 2 for mean in means.values()) / len(means))
        for language, mean in means.items():
            normalised = {"none": mean, "center": mean - middle, "zscore": (mean - middle) / (spread + 1e-6)}
            value[context, language] = normalised[norm]
    for position, kind in enumerate(("topic", "region")):
        for name in {context[position] for context in contexts} - {None}:
            assert name is not None
            row = rows[kind].setdefault(name, [0.0] * len(LANGUAGES))
            for n, language in enumerate(LANGUAGES):
                mine = [c for c in contexts if c[position] == name and language in contexts[c]]
                if mine:
                    count = sum(len(contexts[c][language]) for c in mine)
                    target = sum(len(contexts[c][language]) * value[c, language] for c in mine) / count
                    row[n] = (1 - alpha) * row[n] + alpha * target


def assert_close(one: dict[str, dict[str, list[float]]], other: dict[str, dict[str, list[float]]], atol: float) -> None:
    for kind in ("topic", "region"):
        assert one[kind].keys() == other[kind].keys()
        for name, row in one[kind].items():
            np.testing.assert_allclose(row, other[kind][name], rtol=0, atol=atol)


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("norm", ["none", "center", "zscore"])
def test_pooled_update_equals_a_plain_one(norm: str, centre: bool) -> None:
    random = np.random.default_rng(1)
    bandit = router(interval=2, group_norm=norm, center_by_question=centre)
    expected: dict[str, dict[str, list[float]]] = {"topic": {}, "region": {}}
    for update in range(20):
        seen = []
        for number in range(12):
            topics = tuple(random.choice(TOPICS, random.integers(0, 3), replace=False).tolist())
            regions = tuple(random.choice(REGIONS, random.integers(0, 3), replace=False).tolist())
            for language in random.choice([*LANGUAGES, "ko"], 5).tolist():
                seen.append(Observation(f"{update}-{number}", topics, regions, language, float(random.random())))
        bandit.observe(seen[:25])
        bandit.observe(seen[25:])
        plain_update(seen, 0.1, norm, centre, expected)
        assert_close(logits(bandit), expected, 1e-12)
        assert bandit.version == update + 1


@given(step=steps(), shuffle=st.randoms(use_true_random=False))
def test_order_does_not_matter(step: list[Observation], shuffle: Any) -> None:
    one, other = router(interval=1), router(interval=1)
    one.observe(step)
    shuffled = list(step)
    shuffle.shuffle(shuffled)
    other.observe(shuffled)
    assert logits(one) == logits(other)


@pytest.mark.parametrize(("norm", "atol"), [("none", 1e-12), ("center", 1e-12), ("zscore", 1e-8)])
@given(step=steps(), difficulty=st.lists(st.floats(-5, 5), min_size=6, max_size=6))
def test_difficulty_is_not_quality(norm: str, atol: float, step: list[Observation], difficulty: list[float]) -> None:
    easy, hard = router(interval=1, group_norm=norm), router(interval=1, group_norm=norm)
    easy.observe(step)
    hard.observe(
        [
            Observation(o.group, o.topics, o.regions, o.language, o.reward + difficulty[int(o.group[len("train-") :])])
            for o in step
        ]
    )
    assert_close(logits(easy), logits(hard), atol)  # zscore may divide rounding errors by 1e-6


def test_absent_languages_keep_their_value() -> None:
    bandit = trained()
    before = logits(bandit)["topic"]["Chat"]
    bandit.observe([Observation("q", ("Chat",), (), "de", 1.0), Observation("q", ("Chat",), (), "ja", 0.0)])
    after = logits(bandit)["topic"]["Chat"]
    assert (after[0], after[2]) == (before[0], before[2])
    assert after[1] != before[1] and after[3] != before[3]


def test_it_finds_the_best_language() -> None:
    best = {("Chat", ()): "en", ("Reasoning", ()): "de", ("Regional Knowledge", ("China",)): "zh"}
    random = np.random.default_rng(2)
    bandit = router(temperature_decay=0.98, exploration_decay=0.97)
    for step in range(150):
        seen = []
        for number in range(12):
            topic, regions = list(best)[number % 3]
            easy = random.random()  # far more varied than the languages are
            for language in bandit.draw("ja", [topic], regions).languages:
                reward = easy + 0.1 * (language == best[topic, regions]) + 0.05 * float(random.standard_normal())
                seen.append(Observation(f"{step}-{number}", (topic,), regions, language, reward))
        bandit.observe(seen)
    assert bandit.top_by_topic() == {topic: language for (topic, _), language in best.items()}
    for (topic, regions), language in best.items():
        assert bandit.distribution([topic], regions)[LANGUAGES.index(language)] > 0.8


# -- looking and surviving ---------------------------------------------------------------------------------------------


def test_probabilities_have_the_shape_of_the_reference() -> None:
    found = trained().probabilities()
    assert set(found) == {"topic:Chat", "topic:Reasoning", "region:China"}
    for kinds in found.values():
        assert set(kinds) == {"softmax", "effective"}
        for probabilities in kinds.values():
            assert list(probabilities) == LANGUAGES and sum(probabilities.values()) == pytest.approx(1)
    chat = trained().distribution(["Chat"], []).tolist()
    assert list(found["topic:Chat"]["effective"].values()) == pytest.approx(chat)


@given(before=st.lists(steps(), max_size=4), after=st.lists(steps(), min_size=1, max_size=3))
def test_a_saved_router_goes_on_identically(before: list[list[Observation]], after: list[list[Observation]]) -> None:
    first = router(interval=3)
    for step in before:
        first.draw("de", ["Chat"], [])
        first.observe(step)
    saved = json.dumps(first.state())
    second = router(interval=3, seed=99)
    second.load(json.loads(saved))
    for step in after:
        for topics in (["Chat"], ["Reasoning"]):
            assert first.draw("de", topics, ["China"]) == second.draw("de", topics, ["China"])
        first.observe(step)
        second.observe(step)
        assert json.dumps(first.state()) == json.dumps(second.state())


def test_a_router_of_other_languages_is_refused() -> None:
    saved = router().state()
    for languages in (["en", "de"], LANGUAGES[::-1]):
        with pytest.raises(ValueError, match=r"saved router has languages .*'ja'.*this run .*set run.languages"):
            router(languages).load(saved)
