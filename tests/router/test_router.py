"""Properties of the bandit: what it draws, what it says of it, and that it survives."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import config as configuration
from common.languages import POLICY_CHOOSES
from router import Context, Draw, Observation, Router
from router.drawing import best, spread, stratified

LANGUAGES = ["en", "de", "zh", "ja"]
TOPICS = ["Chat", "Reasoning", "Regional Knowledge"]
REGIONS = ["China", "Europe"]
CREDITS = ["posterior", "pooled", "reference"]
OWN = [*LANGUAGES, "ko"]  # of questions; one is no arm

names = st.lists(st.sampled_from(TOPICS), max_size=2, unique=True).map(tuple)
places = st.lists(st.sampled_from(REGIONS), max_size=2, unique=True).map(tuple)
contexts = st.builds(Context, st.sampled_from(OWN), names, places)
modes = st.sampled_from(["learned", "monolingual", "input_dominant", "english_dominant", "uniform"])


def router(languages: list[str] | None = None, seed: int = 0, steps: int = 100, **settings: Any) -> Router:
    return Router(configuration.RouterConfig(**settings), languages or LANGUAGES, seed, steps)


@st.composite
def policy_steps(draw: st.DrawFn) -> list[Observation]:
    """The rollouts of some questions."""
    result = []
    for context in draw(st.lists(contexts, min_size=1, max_size=6)):
        rollout = st.tuples(
            st.sampled_from([*LANGUAGES, context.language]), st.floats(0, 1, allow_subnormal=False), st.booleans()
        )
        asked = draw(st.lists(rollout, min_size=1, max_size=6))
        languages, rewards, compliant = zip(*asked, strict=True)
        rewards = tuple(reward * kept for reward, kept in zip(rewards, compliant, strict=True))
        result.append(Observation(context, languages, rewards, compliant))
    return result


def trained(credit: str = "posterior", seed: int = 0, **settings: Any) -> Router:
    """Clear preferences: English for chat, Chinese for reasoning and about China."""
    logits: dict[str, Any] = {} if credit == "posterior" else {"ema": 0.5, "interval": 1}
    logits |= {"prior": 1} if credit == "pooled" else {}
    result = router(credit=credit, seed=seed, **logits, **settings)
    random = np.random.default_rng(5)
    for _ in range(4):
        step = []
        for topic, regions, liked in (("Chat", (), "en"), ("Reasoning", ("China",), "zh")):
            rewards = tuple((0.2 + 0.6 * (one == liked) + 0.05 * random.standard_normal()) for one in LANGUAGES * 2)
            step.append(Observation(Context("ko", (topic,), regions), tuple(LANGUAGES * 2), rewards, (True,) * 8))
        result.observe(step)
    return result


# -- drawing -----------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    step=policy_steps(), context=contexts, reserved=st.integers(0, 8), credit=st.sampled_from(CREDITS),
    epsilon=st.floats(0, 1), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_propensities_are_those_of_the_distribution(
    step: list[Observation], context: Context, reserved: int, credit: str, epsilon: float, seed: int
) -> None:
    bandit = router(seed=seed, interval=1, own_language=reserved, credit=credit, exploration=epsilon)
    bandit.observe(step)
    weights = bandit.distribution(*context)
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    assert (weights >= bandit.exploration / len(LANGUAGES) - 1e-12).all()
    draw = bandit.draw(*context)
    assert len(draw.languages) == len(draw.propensities) == 8
    assert draw.languages[:reserved] == [context.language] * reserved and draw.propensities[:reserved] == [1] * reserved
    for language, propensity in zip(draw.languages[reserved:], draw.propensities[reserved:], strict=True):
        assert propensity == weights[LANGUAGES.index(language)] > 0
    assert draw.router_version == 1


@settings(max_examples=30)
@given(asked=st.lists(contexts, min_size=1, max_size=8), seed=st.integers(0, 99), credit=st.sampled_from(CREDITS))
def test_draws_by_group_depend_on_nothing_else_that_is_drawn(asked: list[Context], seed: int, credit: str) -> None:
    one, other = (trained(seed=seed, credit=credit) for _ in range(2))
    inorder = [one.draw(*context, group) for group, context in enumerate(asked)]
    other.draw(*asked[0], 0)  # asked again, in another order, with others between
    other.draw("de", ["Chat"], [])
    backwards = [other.draw(*asked[group], group) for group in reversed(range(len(asked)))]
    assert inorder == backwards[::-1]
    groups = range(400)
    first = {tuple(one.draw("de", ["Chat"], [], group).languages) for group in groups}
    assert len(first) > 1, "groups differ"


@settings(max_examples=30)
@given(asked=st.lists(contexts, max_size=12), mode=modes, seed=st.integers(0, 99))
def test_many_questions_at_once_are_the_same_as_one_by_one(asked: list[Context], mode: str, seed: int) -> None:
    one, other, third = (trained(seed=seed, mode=mode) for _ in range(3))
    draws = one.route(asked)
    assert draws == third.route(asked)
    apart = 0
    for draw, alone in zip(draws, [other.draw(*context) for context in asked], strict=True):
        assert draw.router_version == alone.router_version
        for (one_language, chance), (language, expected) in zip(drawn(draw), drawn(alone), strict=True):
            apart += one_language != language
            assert one_language != language or abs(chance - expected) <= 1e-6
    assert apart <= 1, "a draw may fall between two languages whose limits differ by rounding, but not two of them"


def drawn(draw: Draw) -> list[tuple[str, float]]:
    return list(zip(draw.languages, draw.propensities, strict=True))


@pytest.mark.parametrize("credit", CREDITS)
def test_draws_have_the_frequencies_of_their_propensities(credit: str) -> None:
    bandit = trained(credit, exploration=0.3)
    asked = [Context("ko", ("Reasoning",), ("China",))] * 4000
    draws = bandit.route(asked)
    drawn = [language for draw in draws for language in draw.languages[2:]]
    said = {one: p for draw in draws for one, p in zip(draw.languages[2:], draw.propensities[2:], strict=True)}
    expected = len(drawn) * np.array([said[language] for language in LANGUAGES])
    assert expected.sum() == pytest.approx(len(drawn)) and expected.max() > 1.5 * expected.min()
    counts = np.array([drawn.count(language) for language in LANGUAGES])
    assert ((counts - expected) ** 2 / expected).sum() < 16.27  # 0.999 quantile with 3 degrees of freedom


@pytest.mark.parametrize("credit", ["pooled", "reference"])
def test_logits_are_drawn_by_the_formula(credit: str) -> None:
    bandit = trained(credit, temperature=0.7, exploration=0.4)
    rows = bandit.state()["logits"]
    z = np.array(rows["topic:Chat"]) + rows["topic:Reasoning"] + np.array(rows["region:China"])
    z = z + rows.get("question:ko", 0.0)
    tau, epsilon = 0.7 * 0.999**4, 0.4 * 0.995**4
    p = np.exp(z / tau) / np.exp(z / tau).sum()
    expected = (1 - epsilon) * p + epsilon / 4
    np.testing.assert_allclose(bandit.distribution("ko", ["Chat", "Reasoning"], ["China"]), expected, rtol=1e-12)


@given(st.data())
@settings(max_examples=20)
def test_best_is_the_share_of_thompson_samples(data: st.DataObject) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    arms = int(random.integers(2, 16))
    mean, deviation = random.normal(0, 1, (1, arms)), random.uniform(0.2, 3, (1, arms))
    unsure = np.maximum(deviation, deviation.max() / 6)  # no arm counts as surer than that
    sampled = random.normal(mean, unsure, (20_000, arms)).argmax(1)
    share = np.bincount(sampled, minlength=arms) / len(sampled)
    np.testing.assert_allclose(best(mean, deviation**2)[0], share, atol=0.025)
    np.testing.assert_allclose(best(mean, deviation**2, nodes=400)[0], share, atol=0.02)


def test_temperature_scales_the_deviations() -> None:
    for tau in (1.0, 0.5):
        bandit = trained(temperature=tau, exploration=0.0, diversity=0.0)
        context = Context("ko", ("Chat",), ("China",))
        mean, variance = bandit._beliefs.worth([context], 1.0)
        expected = best(mean, tau**2 * variance, nodes=400)[0]
        np.testing.assert_allclose(bandit.distribution(*context), expected, atol=0.01)


@given(st.integers(0, 2**32), st.floats(0, 0.3))
@settings(max_examples=40)
def test_diversity_spends_its_budget_and_no_more(seed: int, budget: float) -> None:
    random = np.random.default_rng(seed)
    worth = random.normal(0.5, 0.1, (5, 7))
    chances = random.dirichlet(np.full(7, 0.3), 5)
    even = spread(chances, worth, budget)
    np.testing.assert_allclose(even.sum(1), 1)
    spent = ((chances - even) * worth).sum(1)
    uniform = (chances * worth).sum(1) - worth.mean(1)
    assert (spent <= budget + 1e-9).all()
    for row in range(5):
        if budget and uniform[row] <= budget:
            np.testing.assert_allclose(even[row], 1 / 7)
    raised = even >= chances - 1e-9
    assert all(raised[row, chances[row].argmin()] for row in range(5)), "the rarest language is not drawn less often"
    if budget == 0:
        np.testing.assert_array_equal(even, chances)


@given(st.integers(0, 2**32), st.integers(1, 8))
@settings(max_examples=30)
def test_a_question_has_each_language_as_often_as_its_probability_says(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    weights = random.dirichlet(np.full(6, 0.5), 20)
    arms = stratified(weights, np.full(20, size), 8, random).reshape(20, size)
    counts = np.array([np.bincount(row, minlength=6) for row in arms])
    assert (counts >= np.floor(size * weights - 1e-9)).all() and (counts <= np.ceil(size * weights + 1e-9)).all()


def test_each_draw_by_itself_has_the_probabilities_it_is_said_to_have() -> None:
    """Chi-square for each of the six places, and for pairs of places that they are not all the same language."""
    random, questions = np.random.default_rng(12), 6000
    weights = np.array([0.62, 0.2, 0.1, 0.05, 0.03])
    arms = stratified(np.repeat(weights[None], questions, 0), np.full(questions, 6), 8, random).reshape(questions, 6)
    for place in range(6):
        counts = np.bincount(arms[:, place], minlength=5)
        assert ((counts - questions * weights) ** 2 / (questions * weights)).sum() < 23.5  # 0.9999 quantile, 4 degrees
    assert (np.sort(arms, axis=1)[:, 0] != np.sort(arms, axis=1)[:, -1]).all()


def test_questions_of_different_sizes_are_drawn_together() -> None:
    random = np.random.default_rng(3)
    weights, sizes = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]), np.array([2, 0, 4])
    arms = stratified(weights, sizes, 4, random)
    assert arms[:2].tolist() == [0, 0] and sorted(arms[2:].tolist()) == [0, 0, 1, 1]


def test_an_arm_much_less_known_than_others_is_the_best_about_half_the_time() -> None:
    random = np.random.default_rng(1)
    for ratio in (5, 10, 27):
        deviation = np.r_[ratio, np.ones(14)][None]
        sampled = (random.normal(0, deviation, (40_000, 15)).argmax(1) == 0).mean()
        assert best(np.zeros((1, 15)), deviation**2)[0, 0] == pytest.approx(sampled, abs=0.09)


def test_regions_count_for_the_listed_topics_only() -> None:
    everywhere, listed = trained("pooled"), trained("pooled", region_topics=("Regional Knowledge",))
    assert (everywhere.distribution("de", "Chat", "China") != everywhere.distribution("de", "Chat", None)).any()
    assert (listed.distribution("de", "Chat", "China") == listed.distribution("de", "Chat", None)).all()
    both = ["Chat", "Regional Knowledge"]
    assert (listed.distribution("de", both, "China") == everywhere.distribution("de", both, "China")).all()


@pytest.mark.parametrize("credit", CREDITS)
def test_a_new_router_is_uniform_or_as_given(credit: str) -> None:
    fresh = router(credit=credit)
    np.testing.assert_allclose(fresh.distribution("de", ["unheard of"], ["nowhere"]), 0.25, atol=1e-6)
    assert fresh.log()["probs"] == {}
    given = router(credit=credit, initial={"region:China": {"zh": 0.05, "German": -0.05}})
    assert given.distribution("de", "Chat", "China").argmax() == 2
    assert given.distribution("de", "Chat", "China").argmin() == 1
    np.testing.assert_allclose(given.distribution("de", "Chat", "Europe"), 0.25, atol=1e-6)
    shared = router(credit=credit, initial={"shared:": {"zh": 0.05}})
    assert shared.distribution("de", "Chat", "China").argmax() == 2
    assert shared.distribution("en", ["unheard of"], ["nowhere"]).argmax() == 2
    own = router(credit=credit, initial={"question:German": {"zh": 0.05}})
    assert own.distribution("de", "Chat", "China").argmax() == 2
    np.testing.assert_allclose(own.distribution("en", "Chat", "China"), 0.25, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "rollouts", "fixed"),
    [
        ("learned", 8, ["de"] * 2),
        ("monolingual", 8, ["de"] * 8),  # the group of plain GRPO
        ("input_dominant", 8, ["de"] * 6 + ["en"] * 2),
        ("english_dominant", 8, ["de"] * 2 + ["en"] * 6),
        ("fixed", 8, ["de"] * 2 + ["zh"] * 6),
        ("uniform", 8, ["de"] * 2),
        ("input_dominant", 2, ["de", "en"]),
        ("english_dominant", 6, ["de"] * 2 + ["en"] * 4),
        ("policy", 8, [POLICY_CHOOSES] * 8),
        ("hybrid", 8, ["de"] * 2 + [POLICY_CHOOSES] * 4),
    ],
)
def test_modes(mode: str, rollouts: int, fixed: list[str]) -> None:
    bandit = router(mode=mode, rollouts=rollouts, fixed_language="zh" if mode == "fixed" else None)
    draw = bandit.draw("de", "Chat", None)
    assert draw.languages[: len(fixed)] == fixed and len(draw.languages) == rollouts
    assert draw.propensities == pytest.approx([1.0] * len(fixed) + [0.25] * (rollouts - len(fixed)))
    told = [language for language in fixed if language != POLICY_CHOOSES]
    assert bandit.drawn(["Chat"]) == rollouts - len(told) and bandit.drawn(["Chat", "Translation"]) == 0
    translation = bandit.draw("ko", ["Chat", "Translation"], [])
    assert translation.languages == ["ko"] * rollouts and translation.propensities == [1.0] * rollouts


@pytest.mark.parametrize(
    "mode", ["learned", "monolingual", "input_dominant", "english_dominant", "fixed", "uniform", "hybrid"]
)
@pytest.mark.parametrize("own", ["de", "ko"])  # an arm, and none
def test_answer_shares_are_the_frequencies_of_what_is_drawn_beyond_the_reserved(mode: str, own: str) -> None:
    for reserved, rollouts in ((2, 8), (0, 6), (1, 8)):
        fixed = "zh" if mode == "fixed" else None
        bandit = trained(mode=mode, rollouts=rollouts, own_language=reserved, fixed_language=fixed)
        told = bandit.answer_shares(own, "Chat", None)
        assert told is not None and sum(told.values()) == pytest.approx(1)
        found: Counter[str] = Counter()
        for draw in bandit.route([Context.of(own, "Chat", None)] * 2000):
            found.update(language for language in draw.languages[reserved:] if language != POLICY_CHOOSES)
        assert set(found) <= set(told)
        for language, share in told.items():
            assert found[language] / found.total() == pytest.approx(share, abs=0.03)


def test_answer_shares_where_nothing_is_drawn() -> None:
    assert router(mode="policy").answer_shares("de", "Chat", None) is None
    assert router(mode="hybrid", free_rollouts=8).answer_shares("de", "Chat", None) is None
    assert router(mode="policy").answer_shares("de", ["Chat", "Translation"], None) == {"de": 1.0}
    assert router(own_language=8).answer_shares("de", "Chat", None) == {"de": 1.0}, "all are reserved"


@settings(max_examples=15)
@given(step=policy_steps(), context=contexts)
def test_fixed_modes_learn_nothing(step: list[Observation], context: Context) -> None:
    bandit = router(mode="uniform", interval=1)
    bandit.observe(step)
    np.testing.assert_allclose(bandit.distribution(*context), 0.25)


def test_schedules_by_step() -> None:
    bandit = router(credit="pooled", temperature_decay=0.9, exploration_decay=0.5, exploration_min=0.01)
    for step in range(30):
        assert bandit.step == step
        assert bandit.temperature == max(0.3, 1.0 * 0.9**step)
        assert bandit.exploration == max(0.01, 0.2 * 0.5**step)
        bandit.observe([])
    assert bandit.version == 6


def test_schedules_by_fraction_of_the_training() -> None:
    bandit = router(steps=40, anneal=0.5, temperature=1.0, temperature_min=0.2, exploration=0.4)
    for step in range(41):
        done = min(1, step / 20)
        assert bandit.temperature == pytest.approx(1 - 0.8 * done)
        assert bandit.exploration == pytest.approx(0.4 * (1 - done))
        bandit.observe([])


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="answers in 'en': add it to run"):
        router(["de", "zh"], mode="english_dominant")
    with pytest.raises(ValueError, match="each once"):
        router(["de", "de"])
    with pytest.raises(ValueError, match=r"router.initial.'topic:Chat' names \['fr'\], but run.languages are en de"):
        router(initial={"topic:Chat": {"fr": 1.0}})
    with pytest.raises(ValueError, match="own_language = 9 exceeds rollouts = 8"):
        router(own_language=9)
    with pytest.raises(ValueError, match="less than or equal to 1"):
        router(exploration=1.5)
    with pytest.raises(ValueError, match=r"temperature_min = 0.3 exceeds temperature = 0.2"):
        router(temperature=0.2)
    with pytest.raises(ValueError, match=r"ema has no effect with credit = 'posterior'.*estimated"):
        router(ema=0.3)
    with pytest.raises(ValueError, match="diversity has no effect with credit = 'pooled'"):
        router(credit="pooled", diversity=0.1)
    with pytest.raises(ValueError, match=r"a row is topic:NAME, .* not 'topik:Chat'"):
        router(initial={"topik:Chat": {"zh": 1.0}})
    with pytest.raises(ValueError, match="'question:German' is the row 'question:de', which occurs twice"):
        router(initial={"question:de": {"zh": 1.0}, "question:German": {"zh": 1.0}})
    with pytest.raises(ValueError, match="unknown language 'Klingonese'"):
        router(initial={"question:Klingonese": {"zh": 1.0}})
    with pytest.raises(ValueError, match="'question:de' has no effect without question_language"):
        router(initial={"question:de": {"zh": 1.0}}, question_language=False)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (Observation(Context("de", (), ()), ("de", "zh"), (1.0, float("nan")), (True, True)), "reward nan .* 'zh'"),
        (Observation(Context("de", (), ()), ("de", "zh"), (1.0, float("inf")), (True, True)), "reward inf .* 'zh'"),
        (Observation(Context("de", (), ()), ("fr",), (1.0,), (True,)), "'fr' .* nor among en de zh ja"),
        (Observation(Context("de", (), ()), ("de", "de"), (1.0,), (True, True)), "as many rewards"),
    ],
)
def test_impossible_observations_are_refused_and_change_nothing(observation: Observation, message: str) -> None:
    bandit = trained()
    before = json.dumps(bandit.state())
    fine = Observation(Context("de", ("Chat",), ()), ("de", "zh"), (1.0, 0.0), (True, True))
    with pytest.raises(ValueError, match=message):
        bandit.observe([fine, observation])
    assert json.dumps(bandit.state()) == before


@pytest.mark.parametrize(
    ("context", "message"),
    [(("klingon", None, None), "unknown language 'klingon'"), (("de", 3, None), "topic = 3 must be a name"),
     (("de", None, ["Asia", None]), r"region = \['Asia', None\] must be a name"),
     (("de", "", None), "topic = '' has an empty name; where a question has no topic, give None"),
     (("de", "Chat", ["China", " "]), r"region = \['China', ' '\] has an empty name")],
)  # fmt: skip
def test_impossible_questions_are_refused_and_change_nothing(context: Any, message: str) -> None:
    bandit = trained()
    before = json.dumps(bandit.state())
    for method in (bandit.draw, bandit.distribution):
        with pytest.raises(ValueError, match=message):
            method(*context)
    assert json.dumps(bandit.state()) == before


# -- learning ----------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@pytest.mark.parametrize("credit", ["posterior", "pooled"])
@given(step=policy_steps(), shuffle=st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(credit: str, step: list[Observation], shuffle: Any) -> None:
    norm: dict[str, Any] = {"group_norm": "center"} if credit == "pooled" else {}
    one, other = (router(interval=2, credit=credit, **norm) for _ in range(2))
    half = len(step) // 2
    one.observe(step[:half])
    one.observe(step[half:])
    late = list(step)
    shuffle.shuffle(late)
    other.observe([])
    other.observe(late)
    for context in {one.context for one in step}:
        np.testing.assert_allclose(one.distribution(*context), other.distribution(*context), atol=1e-5)


@pytest.mark.parametrize("credit", CREDITS)
def test_it_finds_the_best_language_of_each_context(credit: str) -> None:
    liked = {("Chat", ()): "en", ("Reasoning", ()): "de", ("Regional Knowledge", ("China",)): "zh"}
    random = np.random.default_rng(2)
    bandit = router(credit=credit, temperature_decay=0.98, exploration_decay=0.97)
    asked = [Context("ja", (topic,), regions) for topic, regions in liked] * 4
    for _ in range(100):
        step = []
        for context, draw in zip(asked, bandit.route(asked), strict=True):
            easy = 0.3 * random.random()  # more varied than the languages are
            worth = [0.3 + easy + 0.1 * (one == liked[context.topics[0], context.regions]) for one in draw.languages]
            rewards = tuple(value + 0.05 * float(random.standard_normal()) for value in worth)
            step.append(Observation(context, tuple(draw.languages), rewards, (True,) * 8))
        bandit.observe(step)
    for context in asked[:3]:
        place = LANGUAGES.index(liked[context.topics[0], context.regions])
        assert bandit.distribution(*context)[place] > 0.6


# -- looking and surviving ---------------------------------------------------------------------------------------------


def test_with_signal_the_language_that_teaches_most_is_drawn() -> None:
    """German earns most, and English now 0 and now 1, so that its answers deviate most from the mean of their group."""
    random, found = np.random.default_rng(3), {}
    for value in ("reward", "signal"):
        bandit = router(["de", "en", "zh"], value=value)
        for _ in range(30):
            step = []
            for _ in range(8):
                draw = bandit.draw("", "Chat", None)
                rewards = tuple({"de": 0.7, "zh": 0.5}.get(one, float(random.integers(2))) for one in draw.languages)
                step.append(Observation(Context("", ("Chat",), ()), tuple(draw.languages), rewards, (True,) * 8))
            bandit.observe(step)
        found[value] = ["de", "en", "zh"][int(bandit.distribution("", "Chat", None).argmax())]
    assert found == {"reward": "de", "signal": "en"}


@given(step=policy_steps())
def test_the_signal_of_a_rollout_is_its_squared_deviation(step: list[Observation]) -> None:
    for one in step:
        valued = one.signal()
        assert valued.context == one.context and valued.languages == one.languages and all(valued.compliant)
        np.testing.assert_allclose(sum(valued.rewards), len(one.rewards) * np.var(one.rewards), atol=1e-12)


def test_the_log_extends_the_shape_of_the_reference() -> None:
    bandit = trained()
    line = json.loads(json.dumps(bandit.log()))
    assert set(line["probs"]) == {"topic:Chat", "topic:Reasoning", "region:China", "question:ko"}
    for kinds in line["probs"].values():
        assert set(kinds) == {"softmax", "effective"}
        for probabilities in kinds.values():
            assert list(probabilities) == LANGUAGES and sum(probabilities.values()) == pytest.approx(1)
    assert line["combined"]["Reasoning | China"] == pytest.approx(
        dict(zip(LANGUAGES, bandit.distribution("", "Reasoning", "China").tolist(), strict=True))
    )
    assert line["counts"]["topic:Chat"] == dict.fromkeys(LANGUAGES, 8.0)
    assert (line["temperature"], line["exploration"], line["version"]) == (bandit.temperature, bandit.exploration, 4)


@pytest.mark.parametrize("credit", ["pooled", "reference"])
def test_the_log_has_the_row_of_a_region_by_itself(credit: str) -> None:
    """softmax(B[g] / tau), also where regions count for some topics alone, as in the reference's log."""
    bandit = router(
        credit=credit, interval=1, region_topics=("Regional Knowledge",), initial={"region:China": {"zh": 1.0}}
    )
    about = Context("de", ("Regional Knowledge",), ("China",))
    for _ in range(4):
        bandit.observe([Observation(about, ("zh", "zh", "en", "de"), (0.9, 0.8, 0.1, 0.0), (True,) * 4)])
    row = np.array(bandit.state()["logits"]["region:China"]) / bandit.temperature
    wanted = np.exp(row) / np.exp(row).sum()
    assert wanted.max() - wanted.min() > 0.1
    line = bandit.log()
    assert list(line["probs"]["region:China"]["softmax"].values()) == pytest.approx(wanted.tolist())
    effective = (1 - bandit.exploration) * wanted + bandit.exploration / len(LANGUAGES)
    assert list(line["probs"]["region:China"]["effective"].values()) == pytest.approx(effective.tolist())


@pytest.mark.parametrize("credit", CREDITS)
@given(before=st.lists(policy_steps(), max_size=4), after=st.lists(policy_steps(), min_size=1, max_size=3))
@settings(max_examples=10)
def test_a_saved_router_goes_on_identically(
    credit: str, before: list[list[Observation]], after: list[list[Observation]]
) -> None:
    first = router(interval=3, credit=credit)
    for step in before:
        first.draw("de", ["Chat"], [])
        first.observe(step)
    second = router(interval=3, credit=credit, seed=99)
    second.load(json.loads(json.dumps(first.state())))
    for step in after:
        for topics in (["Chat"], ["Reasoning"]):
            assert first.draw("de", topics, ["China"]) == second.draw("de", topics, ["China"])
        first.observe(step)
        second.observe(step)
        assert json.dumps(first.state()) == json.dumps(second.state())
        assert first.log() == second.log()


def test_a_router_of_other_languages_or_another_format_is_refused() -> None:
    saved = router().state()
    for languages in (["en", "de"], LANGUAGES[::-1]):
        with pytest.raises(ValueError, match=r"saved router has languages .*'ja'.*this run .*set run.languages"):
            router(languages).load(saved)
    with pytest.raises(ValueError, match="format None"):
        router().load({"languages": LANGUAGES})


def test_rewards_that_never_differ_leave_all_languages_even() -> None:
    bandit = router(interval=1, exploration=0.0)
    same = Observation(Context("de", ("Chat",), ()), ("de", "zh", "en", "ja"), (1.0,) * 4, (True,) * 4)
    for _ in range(60):
        bandit.observe([same] * 4)
    np.testing.assert_allclose(bandit.distribution("de", "Chat", None), 0.25, atol=0.01)


def test_thousands_of_names_cost_memory_only_when_met() -> None:
    bandit = router(interval=1)
    assert len(json.dumps(bandit.state())) < 3000
    for first in range(0, 1000, 200):
        met = [Context("de", ("Chat",), (f"region {number}",)) for number in range(first, first + 200)]
        bandit.observe([Observation(one, ("de", "zh"), (1.0, 0.0), (True, True)) for one in met])
    assert len(bandit.state()["beliefs"]["contexts"]) == 1000
    assert bandit.distribution("de", "Chat", "region 7").argmax() == 1


def test_looking_creates_nothing() -> None:
    bandit = trained()
    before = json.dumps(bandit.state())
    for number in range(20):
        bandit.distribution("de", f"topic {number}", [f"region {number}", "China"])
    bandit.log()
    assert json.dumps(bandit.state()) == before


def test_logits_come_with_the_published_schedules() -> None:
    for credit in ("pooled", "reference"):
        config = configuration.RouterConfig(credit=credit)
        assert (config.exploration, config.exploration_decay, config.interval) == (0.2, 0.995, 5)
        assert (config.temperature, config.temperature_min, config.temperature_decay) == (1.0, 0.3, 0.999)
        assert configuration.RouterConfig(credit=credit, interval=1).interval == 1
        assert configuration.RouterConfig.model_validate(config.model_dump()) == config
    config = configuration.RouterConfig()
    assert configuration.RouterConfig.model_validate(config.model_dump()) == config


def test_old_evidence_fades_in_steps_without_rollouts() -> None:
    """As it does where these steps and the next rollouts are learned from at once, and after a resume."""

    def step(liked: str) -> list[Observation]:
        rewards = tuple(0.2 + 0.6 * (one == liked) for one in LANGUAGES * 2)
        return [Observation(Context("ko", ("Chat",), ()), tuple(LANGUAGES * 2), rewards, (True,) * 8)]

    each, at_once = router(interval=1), router(interval=1000)
    for bandit in (each, at_once):
        bandit.observe([])  # before which there is nothing that could fade
        bandit.update()
        bandit.observe(step("en"))
        bandit.update()
        for _ in range(30):
            bandit.observe([])
        assert bandit.version >= 2
    resumed = router(interval=1)
    resumed.load(json.loads(json.dumps(each.state())))
    for bandit in (each, resumed, at_once):
        bandit.observe(step("de"))
        bandit.update()
    told = [np.array(one.state()["beliefs"]["told"]) for one in (each, resumed, at_once)]
    np.testing.assert_allclose(told[0], told[2])
    np.testing.assert_allclose(told[1], told[2])
    router().load({key: value for key, value in each.state().items() if key != "idle"})  # of an earlier version


def test_the_rate_of_forgetting_follows_how_fast_rewards_move() -> None:
    random, steady, moving = np.random.default_rng(5), router(), router()
    for step in range(60):
        for bandit, liked in ((steady, "zh"), (moving, LANGUAGES[step // 6 % 4])):
            seen = [Context("ko", ("Chat",), ())] * 12
            rewards = [
                tuple(0.5 + 0.3 * (one == liked) + 0.05 * float(random.standard_normal()) for one in LANGUAGES * 2)
                for _ in seen
            ]
            bandit.observe([
                Observation(one, tuple(LANGUAGES * 2), reward, (True,) * 8)
                for one, reward in zip(seen, rewards, strict=True)
            ])  # fmt: skip
    assert steady._beliefs.rate == 0 and moving._beliefs.rate == 2
