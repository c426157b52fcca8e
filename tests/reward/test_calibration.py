"""Calibration: its formulas, its files, drift, and the script that measures it."""

from __future__ import annotations

import json
import logging
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import common.languages
from common.config import ConfigError
from common.languages import declare
from reward.calibration.drift import Drift
from reward.calibration.files import KINDS, Level, PairStatistics, Quantiles, pair_of, quantile_path
from reward.calibration.formulas import Calibration
from scripts.bench.support.scoring import LANGUAGES
from scripts.data import calibration_modes, similarity_samples
from scripts.data.calibration_modes import auc, judge
from scripts.data.parallel_texts import Texts
from scripts.data.similarity_samples import pair_statistics, quantiles, sample_pairs
from tests.support.chat import serving

pairs = st.builds(pair_of, st.sampled_from(LANGUAGES), st.sampled_from(LANGUAGES))
levels = st.builds(Level, st.integers(1, 500), st.floats(-1, 1), st.floats(0, 1))
tables = st.dictionaries(pairs, levels, min_size=1)
cosines = st.floats(-1, 1)
languages = st.sampled_from([*LANGUAGES, "wuu", ""])


@settings(max_examples=50)
@given(st.sampled_from(["raw", "mean", "zscore"]), tables, cosines, languages, languages, st.floats(0, 2), cosines)
def test_calibration_is_the_formula(
    mode: Any, table: dict[tuple[str, str], Level], similarity: float, a: str, b: str, weight: float, shrink: float
) -> None:
    shrink = abs(shrink) * 50
    counts, means, stds = (np.array([getattr(level, key) for level in table.values()]) for key in Level.__annotations__)
    mu, sigma = np.average(means, weights=counts), np.sqrt(np.average(stds**2, weights=counts))
    expected = similarity
    for pair, level in table.items():
        if set(pair) == {a, b}:
            w = weight * level.count / (level.count + shrink)
            if mode == "mean":
                expected = similarity - w * (level.mean - mu)
            elif mode == "zscore" and sigma > 0:
                spread = max(sigma / 2, sigma + w * (level.std - sigma))
                expected = mu + sigma * (similarity - (mu + w * (level.mean - mu))) / spread
            elif mode == "zscore":
                expected = similarity - w * (level.mean - mu)
    calibration = Calibration(mode, PairStatistics(table), None, weight, shrink, (-0.25, 0.9))
    quality = np.clip((np.clip(expected, -1, 1) + 0.25) / 1.15, 0, 1)
    assert calibration(similarity, a, b) == pytest.approx(quality, abs=1e-6)
    assert calibration(similarity, a, b) == calibration(similarity, b, a)
    assert calibration.knows(a, b) == (mode == "raw" or pair_of(a, b) in table)


def random_quantiles(seed: int, knots: int = 12) -> Quantiles:
    generator = np.random.default_rng(seed)
    shares = np.sort(generator.random(knots))
    shares[[0, -1]] = 0, 1
    chosen = [("de", "en"), ("en", "en"), ("en", "ja")]
    made = {pair: {"all": np.sort(generator.uniform(-0.5, 0.95, knots))} for pair in chosen}
    return Quantiles(shares, made, {pair: float(generator.uniform(0.5, 1)) for pair in chosen})


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.sampled_from([("de", "en"), ("en", "en"), ("ja", "en")]), cosines, cosines)
def test_quantile_is_the_inverse_of_its_table(seed: int, pair: tuple[str, str], one: float, other: float) -> None:
    known = random_quantiles(seed)
    calibration = Calibration("quantile", PairStatistics({}), known)
    low, high = sorted([one, other])
    assert calibration(low, *pair) <= calibration(high, *pair), "monotone"
    table, anchor = known.tables[pair_of(*pair)]["all"], known.anchors[pair_of(*pair)]
    place = min(1.0, one / anchor)
    expected = 1.0 if place > table[-1] else 0.0
    for left in range(len(table) - 1):
        if table[left] <= place <= table[left + 1]:
            share = (place - table[left]) / (table[left + 1] - table[left])
            expected = known.shares[left] + share * (known.shares[left + 1] - known.shares[left])
    assert calibration(one, *pair) == pytest.approx(expected, abs=1e-6)
    assert calibration(table[0] * anchor - 0.01, *pair) == 0
    assert calibration(1.0, *pair) == 1, "s / U is at least 1 > 0.95, above the table"
    assert calibration.knows(*pair) and not calibration.knows("de", "ja")
    everyone = [calibration(one, *each) for each in known.tables]
    assert calibration(one, "de", "ja") == pytest.approx(np.median(everyone)), "a pair without a table"


# --- files --------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
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
    calibration = Calibration.load("mean", path, 1, 0, (-1, 1))
    assert calibration(0.9, "en", "en") == pytest.approx(0.95), "English with itself is not in it: left raw"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("Chinese,Japanese,30,0.9", "4 fields"),
        ("Chinese,,30,0.9,0.1", "unknown language ''"),
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
    with pytest.raises(ConfigError, match=r"other\.quantiles\.json.*scripts\.data\.calibrate"):
        Calibration.load("quantile", tmp_path / "other.csv", 1, 0, (-1, 1))


def test_quantiles_survive_their_file_and_malformed_ones_name_the_pair(tmp_path: Path) -> None:
    path = quantile_path(tmp_path / "pairs.csv")
    known = random_quantiles(3)
    known.write(path)
    back = Quantiles.read(path)
    assert (list(back.tables), back.anchors) == (list(known.tables), known.anchors)
    for pair, table in known.tables.items():
        np.testing.assert_allclose(back.tables[pair]["all"], table["all"], atol=1e-6)
    good = json.loads(path.read_text())
    for key, value in {
        "all": [1, 0, 2],
        "lang_a": "",
        "anchor": 0,
        "hard": [0.1] * 11 + [float("nan")],
    }.items():
        bad = {**good, "pairs": [*good["pairs"][:-1], {**good["pairs"][-1], key: value}]}
        path.write_text(json.dumps(bad))
        with pytest.raises(ConfigError, match=r"pairs\.quantiles\.json, pair (English)?, Japanese: "):
            Quantiles.read(path)


def test_pairs_that_a_declaring_run_measured_are_left_out_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of a variety, which without the declaration would be pairs of the language that it is one of."""
    path, level, shares = tmp_path / "pairs.csv", Level(30, 0.9, 0.1), np.array([0.0, 1.0])
    others = [("ary", "en"), ("ary", "zu"), ("en", "zu")]
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(common.languages, "_declared", common.languages._declared)
        declare({"zu": "isiZulu", "ary": "Moroccan Arabic"})
        pairs = [("ar", "en"), *others]
        PairStatistics(dict.fromkeys(pairs, level)).write(path)
        tables = {pair: {"all": np.array([0.0, 0.5])} for pair in pairs}
        Quantiles(shares, tables, {}).write(quantile_path(path))
        assert set(PairStatistics.read(path).levels) == set(Quantiles.read(quantile_path(path)).tables) == set(pairs)
    common.languages.code_of.cache_clear()
    assert "isiZulu" in path.read_text() and not caplog.records
    for mode in ("quantile", "mean"):
        calibration = Calibration.load(mode, path, 1, 0, (-1, 1))
        assert calibration.knows("ar", "en") and not calibration.knows("en", "zu")
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: the pairs with Moroccan Arabic, isiZulu are left out, as this run does not know such a language: "
        "correct it where it is misspelt, or declare it with run.other_languages where the run has it"
    ]


@pytest.mark.parametrize("name", ["Japanesse", "Germann"])
def test_a_misspelt_language_of_the_run_is_no_other_one(name: str, tmp_path: Path) -> None:
    path, near = tmp_path / "pairs.csv", {"Japanesse": "japanese", "Germann": "german"}[name]
    problem = f"line 3: unknown language '{name}'; did you mean '{near}'.* declare it with run.other_languages"
    path.write_text(f"lang_a,lang_b,count,mean,std\nEnglish,French,9,0.8,0.1\nEnglish,{name},9,0.8,0.1\n")
    with pytest.raises(ConfigError, match=problem):
        PairStatistics.read(path)
    rows = [{"lang_a": "English", "lang_b": other, "all": [0, 0.5]} for other in ("French", name)]
    path.write_text(json.dumps({"shares": [0, 1], "pairs": rows}))
    with pytest.raises(ConfigError, match=f"pair English, {name}: .*did you mean"):
        Quantiles.read(path)


@pytest.mark.parametrize("mode", ["mean", "zscore", "quantile"])
def test_a_calibration_without_a_pair_of_known_languages_is_refused(mode: Any, tmp_path: Path) -> None:
    """By its quantiles a similarity would be nan, and by its means raw."""
    path = tmp_path / "pairs.csv"
    path.write_text("lang_a,lang_b,count,mean,std\nEnglish,isiZulu,9,0.8,0.1\n")
    rows = [{"lang_a": "English", "lang_b": "isiZulu", "all": [0, 0.5]}]
    quantile_path(path).write_text(json.dumps({"shares": [0, 1], "pairs": rows}))
    with pytest.raises(ConfigError, match="no pair of languages that this run knows, as all are with isiZulu"):
        Calibration.load(mode, path, 1, 0, (-1, 1))


# --- drift --------------------------------------------------------------------------------------------------------


def normal_quantiles(means: dict[str, float]) -> Quantiles:
    generator, shares = np.random.default_rng(0), np.linspace(0, 1, 41)
    drawn = {kind: generator.normal(mean, 0.08, 5000) for kind, mean in means.items()}
    drawn["all"] = np.concatenate(list(drawn.values()))
    return Quantiles(shares, {("de", "en"): {kind: np.quantile(v, shares) for kind, v in drawn.items()}}, {})


@pytest.mark.parametrize("right", [0.0, 0.3, 1.0])
def test_no_share_of_right_answers_is_drift_but_a_shift_is(right: float, caplog: pytest.LogCaptureFixture) -> None:
    offline = normal_quantiles({"equivalent": 0.7, "mismatched": 0.2, "hard": 0.5})
    generator, drift = np.random.default_rng(1), Drift(offline, warn_above=0.3)
    with caplog.at_level(logging.WARNING):
        for is_right in generator.random(600) < right:
            found = drift.observe(generator.normal(0.7 if is_right else 0.2, 0.08), "en", "de")
        assert 0 < found < 0.12 and not caplog.records
        for _ in range(600):
            found = drift.observe(generator.normal(0.9, 0.02), "en", "de")
    assert found > 0.8 and drift.by_pair == {("de", "en"): found}
    assert len(caplog.records) == 1 and "de and en" in caplog.text
    assert drift.observe(0.5, "en", "ja") == 0, "nothing to compare with"


def test_tables_of_the_published_form_are_compared_as_they_calibrate(caplog: pytest.LogCaptureFixture) -> None:
    """They hold s / U. Texts like those that were measured have not drifted."""
    plain = normal_quantiles({"equivalent": 0.7, "mismatched": 0.2, "hard": 0.5})
    anchor, pair = 0.8, ("de", "en")
    divided = {kind: np.minimum(1, values / anchor) for kind, values in plain.tables[pair].items()}
    generator, drift = np.random.default_rng(1), Drift(Quantiles(plain.shares, {pair: divided}, {pair: anchor}), 0.2)
    for _ in range(600):
        found = drift.observe(generator.normal(0.7, 0.08), "en", "de")
    assert 0 < found < 0.12 and not caplog.records


# --- script -------------------------------------------------------------------------------------------------------


def _unit(generator: np.random.Generator, rows: int) -> Any:
    vectors = generator.normal(size=(rows, 5)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@settings(max_examples=15)
@given(
    st.dictionaries(st.sampled_from(LANGUAGES), st.permutations(range(6)), min_size=1, max_size=4), st.integers(1, 6)
)
def test_sampled_pairs_are_what_they_say(orders: dict[str, list[int]], kept: int) -> None:
    generator = np.random.default_rng(0)
    ids = {language: np.array(order[:kept]) for language, order in orders.items()}
    texts = {code: Texts(rows, rows // 2, [""] * kept, _unit(generator, kept)) for code, rows in ids.items()}
    samples = sample_pairs(texts)
    for a, b in combinations_with_replacement(sorted(ids), 2):
        cosines = {
            (i, j): float(texts[a].vectors[row].astype(float) @ texts[b].vectors[column].astype(float))
            for row, i in enumerate(ids[a])
            for column, j in enumerate(ids[b])
        }
        same = [cosine for (i, j), cosine in cosines.items() if i == j]
        assert ((a, b) in samples) == bool(same)
        if not same:
            continue
        found = samples[a, b].similarities
        np.testing.assert_allclose(sorted(found["equivalent"]), sorted(same), atol=1e-6)
        level = pair_statistics(samples).levels[a, b]
        assert level.count == len(same) and level.mean == pytest.approx(np.mean(same), abs=1e-6)
        assert level.std == pytest.approx(np.std(same, ddof=1) if len(same) > 1 else 0, abs=1e-6)
        wrong = [cosine for (i, j), cosine in cosines.items() if i // 2 != j // 2]  # fewer than are drawn: all
        np.testing.assert_allclose(sorted(found["mismatched"]), sorted(wrong * (1 if a == b else 2)), atol=1e-6)
        hard = []
        for side in (0, 1)[: 1 if a == b else 2]:
            for i in ids[(a, b)[side]]:
                hard += sorted(c for key, c in cosines.items() if key[side] == i != key[1 - side])[-2:]
        np.testing.assert_allclose(sorted(found["hard"]), sorted(hard), atol=1e-6)
        assert_quantiles_of_the_mixture(quantiles(samples).tables[a, b]["all"], found)


def assert_quantiles_of_the_mixture(table: Any, found: Mapping[str, Any]) -> None:
    """The knots of the table are quantiles of a mixture in which the kinds weigh 1 : 10 : 2, whatever their numbers."""
    parts = {"equivalent": 1, "mismatched": 10, "hard": 2}
    parts = {kind: share for kind, share in parts.items() if len(found[kind])}
    total = sum(parts.values())
    largest = max(share / total / len(found[kind]) for kind, share in parts.items())

    def mass(holds: Callable[[Any], Any]) -> float:
        return sum(float(share / total * holds(found[kind]).mean()) for kind, share in parts.items())

    for share, knot in zip(np.linspace(0, 1, 41), table, strict=True):
        below, up_to = mass(partial(np.greater, knot - 1e-9)), mass(partial(np.greater_equal, knot + 1e-9))
        assert below - largest <= share <= up_to + largest  # linear between values, so within one of them
    every = np.concatenate([found[kind] for kind in parts])
    assert (table[0], table[-1]) == (every.min(), every.max())


def texts_of(languages: Mapping[str, int], generator: np.random.Generator) -> dict[str, Texts]:
    """Texts of one article each: of an id they are alike in all languages, and all others are equally far from it.

    Args:
        languages: how many of the ids, from 0 on, each has texts of.
    """
    meanings = np.linalg.qr(generator.normal(size=(64, 64)))[0]
    made = {}
    for code, count in languages.items():
        vectors = meanings[:count] + 0.02 * generator.normal(size=(count, 64))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        made[code] = Texts(np.arange(count), np.arange(count), [""] * count, vectors.astype(np.float32))
    return made


def test_an_equally_wrong_answer_is_worth_as_much_in_every_language(rng: np.random.Generator) -> None:
    """Between languages there are twice as many wrong text pairs, and more where one lacks texts of the other."""
    samples = sample_pairs(texts_of({"de": 30, "en": 30, "ja": 10}, rng))
    counts = {pair: tuple(len(sample.similarities[kind]) for kind in KINDS) for pair, sample in samples.items()}
    assert counts["de", "de"] == (30, 300, 60) and counts["de", "en"] == (30, 600, 120)
    assert counts["de", "ja"] == (10, 390, 80)  # of ten texts only nine are wrong
    tables = quantiles(samples)
    calibration = Calibration("quantile", PairStatistics({}), tables)
    for pair, sample in samples.items():
        assert_quantiles_of_the_mixture(tables.tables[pair]["all"], sample.similarities)
        top = max(sample.similarities[kind].max() for kind in ("mismatched", "hard"))
        assert top < 0.5 < 0.9 < sample.similarities["equivalent"].min()
        # The best wrong one of 12 parts in 13, which is between two of the knots, 1/40 apart.
        assert calibration(float(top), *pair) == pytest.approx(12 / 13, abs=1 / 40), pair
    wrong = [calibration(0.3, *pair) for pair in samples]
    assert np.ptp(wrong) < 0.03, "an equally wrong answer; pooled as they come it is 0.07"


def test_the_quantiles_of_equal_proportions_are_numpys(rng: np.random.Generator) -> None:
    samples = sample_pairs(texts_of({"de": 30}, rng))
    every = np.concatenate([samples["de", "de"].similarities[kind] for kind in KINDS])
    found = quantiles(samples).tables["de", "de"]["all"]
    np.testing.assert_allclose(found, np.quantile(every, np.linspace(0, 1, 41)), rtol=1e-12)


def test_a_wrong_answer_that_earns_more_in_some_languages_is_seen(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = sample_pairs(texts_of({"de": 40, "en": 40, "ja": 40}, rng))
    assert judge(samples, samples)["quantile"].wrong_spread[0] < 0.01
    monkeypatch.setattr(similarity_samples, "_PROPORTIONS", {"equivalent": 1, "mismatched": 20, "hard": 4})
    halves = {pair: quantiles({pair: sample}).tables[pair] for pair, sample in samples.items() if pair[0] != pair[1]}
    monkeypatch.undo()
    tables = Quantiles(np.linspace(0, 1, 41), {**quantiles(samples).tables, **halves}, {})
    monkeypatch.setattr(calibration_modes, "quantiles", lambda _: tables)
    assert judge(samples, samples)["quantile"].wrong_spread[0] > 0.012, "twice as many wrong pairs between languages"


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.booleans()), min_size=2))
def test_auc_is_that_of_scikit_learn(rows: list[tuple[int, int, bool]]) -> None:
    values, weights, good = (np.array(column) for column in zip(*rows, strict=True))
    found = auc(values[good], values[~good], weights[good], weights[~good])
    if weights[good].sum() and weights[~good].sum():
        assert found == pytest.approx(roc_auc_score(good, values, sample_weight=weights))
    else:
        assert np.isnan(found)


def offset_texts(seed: int) -> dict[str, Texts]:
    """Parallel vectors: a meaning, noise, and a direction that some languages share with others more than with all."""
    generator = np.random.default_rng(seed)
    meanings, made = generator.normal(size=(100, 24)), {}
    for number, code in enumerate(LANGUAGES[:5]):
        vectors = meanings + generator.normal(size=(100, 24)) * 0.7
        vectors[:, 0] = 1.2 * number
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        made[code] = Texts(np.arange(100), np.arange(100), [""] * 100, vectors.astype(np.float32))
    return made


def test_calibration_takes_the_spread_away_and_keeps_the_order() -> None:
    results = judge(sample_pairs(offset_texts(1)), sample_pairs(offset_texts(2)))
    assert set(results) == {"raw", "mean", "quantile", "zscore"}
    for mode in ("mean", "zscore"):
        assert results[mode].spread[0] < 0.25 * results["raw"].spread[0]
        assert results[mode].auc[0] > results["raw"].auc[0] - 0.002
    for result in results.values():
        for value, low, high in (result.spread, result.auc, result.wrong_spread):
            assert low < high and low - 0.02 < value < high + 0.02


TEXTS = {
    "de": ["Der Himmel ist heute blau.", "Ich trinke gern heißen Kaffee.", "Der Zug fährt um acht Uhr ab."],
    "en": ["The sky is blue today.", "I like to drink hot coffee.", "The train leaves at eight."],
    "ja": ["今日は空が青いです。", "熱いコーヒーを飲むのが好きです。", "電車は八時に出発します。"],
}


Calibrate: TypeAlias = Callable[..., str]


@pytest.fixture
def calibrate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Calibrate:
    """Runs the script in this process, because importing everything in another one takes long; gives what it prints."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["calibrate", *arguments])
        try:
            runpy.run_module("scripts.data.calibrate", run_name="__main__")
        except SystemExit as end:
            assert not end.code, capsys.readouterr().err
        return capsys.readouterr().out

    return run


def test_calibrate_script(calibrate: Calibrate, tmp_path: Path) -> None:
    rows = [
        {"fact": f"fact {index}", "language": language, "answer": text}
        for language, sentences in TEXTS.items()
        for index, text in enumerate(sentences)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "texts.parquet")
    out = tmp_path / "pairs.csv"
    columns = ("--columns", "fact,fact,language,answer")
    printed = calibrate("--parallel", str(tmp_path / "texts.parquet"), *columns, "--out", str(out))
    statistics = PairStatistics.read(out)
    every = set(combinations_with_replacement(["de", "en", "ja"], 2))
    assert set(statistics.levels) == set(Quantiles.read(quantile_path(out)).tables) == every
    found = json.loads((tmp_path / "pairs.json").read_text())
    assert (found["retained pairs"], found["embedder dtype"]) == (6, "float32")
    assert found["equivalent"] == pytest.approx(statistics.mean, abs=0.02)  # but for what the clip takes away
    assert found["mismatched"] < found["equivalent"] - 0.3
    assert "too little data" in printed and "de-ja" in printed
    html = out.with_suffix(".html").read_text()
    assert "German–Japanese" in html and html.count("<svg") == 1 + len(every)


@pytest.fixture
def endpoint() -> Iterator[str]:
    """Translates our sentences; what it is asked for in Japanese it answers in English."""

    def answer(request: dict[str, Any]) -> str:
        prompt = request["messages"][0]["content"]
        code = "de" if "German" in prompt else "en"
        return next(t for key, t in zip(TEXTS["en"], TEXTS[code], strict=True) if key in prompt)

    with serving(answer) as url:
        yield url


def test_references_are_translated_and_checked(calibrate: Calibrate, endpoint: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": f"{n}?", "reward_model": {"ground_truth": text}, "extra_info": {"language": "english"}}
        for n, text in enumerate(TEXTS["en"])
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    out = tmp_path / "pairs.csv"
    source = ("--references", str(tmp_path / "train.parquet"), "--translate", endpoint, "--languages", "German,ja")
    printed = calibrate(*source, "--out", str(out))
    assert "6 of 9 texts are in their language" in printed
    assert set(PairStatistics.read(out).levels) == {("de", "de"), ("de", "en"), ("en", "en")}
    kept = pq.read_table(tmp_path / "pairs.parallel.parquet").to_pylist()
    assert {(row["id"], row["language"], row["text"]) for row in kept} == {
        (index, code, text) for code in ("de", "en") for index, text in enumerate(TEXTS[code])
    }


def test_references_may_have_columns_of_their_own(calibrate: Calibrate, endpoint: str, tmp_path: Path) -> None:
    rows = [{"q": f"{n}?", "a": text} for n, text in enumerate(TEXTS["en"])] + [{"q": "none?", "a": ""}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "pairs.csv"
    source = ("--references", str(tmp_path / "train.jsonl"), "--translate", endpoint, "--languages", "German")
    printed = calibrate(*source, "--columns", "question=q,answer=a", "--language", "en", "--out", str(out))
    assert "train.jsonl, row 3, a: it is empty" in printed and "6 of 6 texts are in their language" in printed
    assert json.loads((tmp_path / "pairs.parallel.problems.jsonl").read_text())["row"] == 3
