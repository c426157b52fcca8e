"""The reasoning part of the offline world: number words, thoughts, corpus, rewards and figures."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import RewardConfig, load
from common.languages import code_of
from common.wire import ScoreRequest
from learner.data.problems import Problems
from learner.data.rows import Rules, read_question_rows
from reward.gate import ComplianceGate
from reward.scorer import Scorer
from scripts.world import demo
from scripts.world.reasoning import build, warm_start
from scripts.world.reasoning.demo import CONFIGS, REWARDS, table
from scripts.world.reasoning.measure import Question, Written, figures, judge, questions
from scripts.world.reasoning.number_words import number_word
from scripts.world.reasoning.stories import LANGUAGES, LARGEST, SMALLEST, STORIES, Sum, every_sum

# Numbers below twenty and the tens as grammars list them, and below how they are joined: without a look at CLDR.
_UNITS = {
    "ar": "صفر|واحد|اثنان|ثلاثة|أربعة|خمسة|ستة|سبعة|ثمانية|تسعة|عشرة|أحد عشر|اثنا عشر|ثلاثة عشر|أربعة عشر|خمسة عشر|"
    "ستة عشر|سبعة عشر|ثمانية عشر|تسعة عشر",
    "de": "null|eins|zwei|drei|vier|fünf|sechs|sieben|acht|neun|zehn|elf|zwölf|dreizehn|vierzehn|fünfzehn|sechzehn|"
    "siebzehn|achtzehn|neunzehn",
    "en": "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|"
    "seventeen|eighteen|nineteen",
    "es": "cero|uno|dos|tres|cuatro|cinco|seis|siete|ocho|nueve|diez|once|doce|trece|catorce|quince|dieciséis|"
    "diecisiete|dieciocho|diecinueve|veinte|veintiuno|veintidós|veintitrés|veinticuatro|veinticinco|veintiséis|"
    "veintisiete|veintiocho|veintinueve",
    "fr": "zéro|un|deux|trois|quatre|cinq|six|sept|huit|neuf|dix|onze|douze|treize|quatorze|quinze|seize|dix-sept|"
    "dix-huit|dix-neuf",
    "it": "zero|uno|due|tre|quattro|cinque|sei|sette|otto|nove|dieci|undici|dodici|tredici|quattordici|quindici|"
    "sedici|diciassette|diciotto|diciannove",
    "ja": "〇|一|二|三|四|五|六|七|八|九|十|十一|十二|十三|十四|十五|十六|十七|十八|十九",
    "ru": "ноль|один|два|три|четыре|пять|шесть|семь|восемь|девять|десять|одиннадцать|двенадцать|тринадцать|"
    "четырнадцать|пятнадцать|шестнадцать|семнадцать|восемнадцать|девятнадцать",
    "tr": "sıfır|bir|iki|üç|dört|beş|altı|yedi|sekiz|dokuz|on|on bir|on iki|on üç|on dört|on beş|on altı|on yedi|"
    "on sekiz|on dokuz",
    "zh": "〇|一|二|三|四|五|六|七|八|九|十|十一|十二|十三|十四|十五|十六|十七|十八|十九",
}
_TENS = {
    "ar": "عشرون|ثلاثون|أربعون|خمسون|ستون|سبعون|ثمانون|تسعون",
    "de": "zwanzig|dreißig|vierzig|fünfzig|sechzig|siebzig|achtzig|neunzig",
    "en": "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety",
    "es": "veinte|treinta|cuarenta|cincuenta|sesenta|setenta|ochenta|noventa",
    "fr": "vingt|trente|quarante|cinquante|soixante|soixante|quatre-vingt|quatre-vingt",
    "it": "venti|trenta|quaranta|cinquanta|sessanta|settanta|ottanta|novanta",
    "ja": "二十|三十|四十|五十|六十|七十|八十|九十",
    "ru": "двадцать|тридцать|сорок|пятьдесят|шестьдесят|семьдесят|восемьдесят|девяносто",
    "tr": "yirmi|otuz|kırk|elli|altmış|yetmiş|seksen|doksan",
    "zh": "二十|三十|四十|五十|六十|七十|八十|九十",
}
_GATE = ComplianceGate(RewardConfig())

sums = st.sampled_from(every_sum())
languages = st.sampled_from(LANGUAGES)


def spelled(number: int, language: str) -> str:
    """The number in words, by the grammar of each language."""
    units = _UNITS[language].split("|")
    if number < len(units):
        return units[number]
    ten, unit = number // 10, number % 10
    tens = _TENS[language].split("|")[ten - 2]
    if language == "fr":
        if ten in (7, 9):
            return f"{tens}-et-onze" if number == 71 else f"{tens}-{units[unit + 10]}"
        if unit == 1 and ten < 8:
            return f"{tens}-et-un"
        return f"{tens}-{units[unit]}" if unit else tens + "s" * (ten == 8)
    if not unit:
        return tens
    match language:
        case "ar":
            return f"{units[unit]} و{tens}"
        case "de":
            return f"{units[unit].removesuffix('s') if unit == 1 else units[unit]}und{tens}"
        case "en":
            return f"{tens}-{units[unit]}"
        case "es":
            return f"{tens} y {units[unit]}"
        case "it":
            return (tens[:-1] if unit in (1, 8) else tens) + ("tré" if unit == 3 else units[unit])
        case "ja" | "zh":
            return tens + units[unit]
    return f"{tens} {units[unit]}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_are_spelled_as_grammars_say(language: str) -> None:
    assert [number_word(number, language) for number in range(100)] == [spelled(n, language) for n in range(100)]
    for wrong in (-1, 100):
        with pytest.raises(ValueError, match="from 0 to 99"):
            number_word(wrong, language)


def read_numbers(text: str, language: str, smallest: int = 0) -> list[int]:
    """The numbers that stand in a text in words."""
    words = {spelled(number, language): number for number in range(smallest, 30)}
    if language == "zh":
        words["两"] = 2
    either = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
    edge = "" if language in ("ja", "zh") else r"\b"
    return [words[found] for found in re.findall(f"{edge}(?:{either}){edge}", text.lower())]


@given(sums, languages)
def test_a_question_tells_its_numbers_in_order(one: Sum, language: str) -> None:
    found = read_numbers(one.question(language), language, SMALLEST)
    assert found == [one.first, one.second, one.third]
    assert all(SMALLEST <= number <= LARGEST for number in found)


@given(sums, languages, st.integers(-2, 2), st.integers(-2, 2))
def test_a_thought_goes_from_step_to_step(one: Sum, language: str, slip: int, second_slip: int) -> None:
    first, second = max(slip, one.third - one.total), max(second_slip, -(one.result + min(slip, 0)))
    if one.result + first + second < 0:
        first = second = 0
    thought, result = one.thought(language, first, second)
    a, b, s, s_again, c, r, answer = read_numbers(thought, language)
    assert (a, b, c) == (one.first, one.second, one.third)
    assert s == s_again == a + b + first
    assert r == answer == result == s - c + second
    assert (result == one.first + one.second - one.third) == (first + second == 0)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_gate_tells_thoughts_in_every_language(language: str, rng: np.random.Generator) -> None:
    chosen = [every_sum()[n] for n in rng.choice(len(every_sum()), 150, replace=False)]
    own = [one.thought(language)[0] for one in chosen]
    assert np.mean([found.matches for found in _GATE.judge(own, [language] * len(own))]) >= 0.95
    if language != "en":
        english = [one.thought("en")[0] for one in chosen]
        assert not any(found.matches for found in _GATE.judge(own, ["en"] * len(own)))
        assert not any(found.matches for found in _GATE.judge(english, [language] * len(own)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, module_seed: int) -> Path:
    out = tmp_path_factory.mktemp("reasoning")
    build.main(["--out", str(out), "--examples", "4000", "--seed", str(module_seed)])
    return out


def rows_of(world: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(world / f"{name}.parquet").to_pylist()
    return rows


def test_the_seed_decides_the_world(world: Path, module_seed: int, tmp_path: Path) -> None:
    for name, seed in (("same", module_seed), ("other", module_seed + 1)):
        build.main(["--out", str(tmp_path / name), "--examples", "4000", "--seed", str(seed)])
        for table_name in ("train", "heldout", "warm_start"):
            first, second = (root / f"{table_name}.parquet" for root in (world, tmp_path / name))
            assert (first.read_bytes() == second.read_bytes()) == (name == "same")


def test_english_thoughts_are_more_and_better(world: Path) -> None:
    rows, corpus = rows_of(world, "warm_start"), build.Corpus()
    others = [row for row in rows if row["language"] != "en"]
    assert len(others) / len(rows) == pytest.approx(1 - corpus.english_questions, abs=0.04)
    assert {row["thinking"] for row in rows if row["language"] == "en"} == {"en"}
    assert all(row["thinking"] in (row["language"], "en") for row in others)
    in_english = [row["thinking"] == "en" for row in others]
    assert np.mean(in_english) == pytest.approx(corpus.english_thoughts, abs=0.04)
    right = {
        english: np.mean([row["right"] for row in rows if (row["thinking"] == "en") == english])
        for english in (True, False)
    }
    assert right[True] == pytest.approx((1 - corpus.english_slip) ** 2, abs=0.03)
    assert right[False] == pytest.approx((1 - corpus.slip) ** 2, abs=0.06)
    thoughts = {language: sum(row["thinking"] == language for row in rows) for language in LANGUAGES}
    assert thoughts["en"] > 3 * max(count for language, count in thoughts.items() if language != "en") > 0


def test_worked_examples_are_right_where_they_say_so(world: Path) -> None:
    for row in rows_of(world, "warm_start"):
        a, b, c = read_numbers(row["question"], row["language"], SMALLEST)
        steps = read_numbers(row["thought"], row["thinking"])
        assert steps[-1] == int(row["answer"]) and steps[:2] == [a, b] and steps[4] == c
        assert row["right"] == (steps[2] == a + b and steps[5] == a + b - c)


def test_no_question_of_training_is_taught_or_held_out(world: Path) -> None:
    told: dict[str, set[tuple[int, ...]]] = {}
    for name in ("train", "heldout", "warm_start"):
        rows = rows_of(world, name)
        spoken = [row["language"] if "language" in row else code_of(row["extra_info"]["language"]) for row in rows]
        told[name] = {(*read_numbers(row["question"], one, SMALLEST),) for row, one in zip(rows, spoken, strict=True)}
    assert not told["warm_start"] & (told["train"] | told["heldout"])
    assert not {row["question"] for row in rows_of(world, "train")} & {
        row["question"] for row in rows_of(world, "heldout")
    }


def test_the_learner_reads_every_question(world: Path) -> None:
    problems = Problems()
    found = list(read_question_rows(str(world / "train.parquet"), Rules(), problems))
    assert len(found) == 32 * len(LANGUAGES) and not problems.counts
    assert {row.language for row in found} == set(LANGUAGES)


def test_too_many_sums_are_refused(tmp_path: Path) -> None:
    every = len(every_sum())
    told = rf"^error: {every} trained and 16 held-out sums leave none of {every} to teach$"
    with pytest.raises(SystemExit, match=told):
        build.main(["--out", str(tmp_path), "--train-sums", str(every)])


def test_each_reward_pays_for_what_it_says(rng: np.random.Generator) -> None:
    one = every_sum()[rng.integers(len(every_sum()))]
    language = str(rng.choice([code for code in LANGUAGES if code != "en"]))
    wrong = one.thought(language, 1)
    answers = [
        warm_start.written(one.thought(language)[0], str(one.result)),
        warm_start.written(one.thought("en")[0], str(one.result)),
        warm_start.written(wrong[0], str(wrong[1])),
        one.thought(language)[0],  # a thought that never ended in an answer
    ]
    request = ScoreRequest(
        id=0,
        row=0,
        reference=str(one.result),
        reference_language=language,
        answers=answers,
        languages=[language] * len(answers),
        truncated=[False] * len(answers),
        topics=[build.TOPIC],
        accepted=[str(one.result)],
        deadline_s=120.0,
    )
    expected = {"naive": [1, 1, 0, 0], "slc": [1, 0.9, 0.1, 0], "strict": [1, 0, 0, 0]}
    assert set(expected) == set(REWARDS)
    for name, flags in REWARDS.items():
        config = load([*map(str, CONFIGS), *flags])
        scorer = Scorer(config.reward, config.run.languages)
        try:
            scores = scorer.score([request])[0]
        finally:
            scorer.close()
        assert [score.reward for score in scores] == pytest.approx(expected[name]), name


def test_figures_count_languages_and_right_answers() -> None:
    one, german = Sum("apples", 3, 4, 2), "de"
    asked = [Question(one.question(german), german, ["5"]), Question(one.question("ja"), "ja", ["5"])]
    answers = [
        warm_start.written(one.thought("de")[0], "5"),
        warm_start.written(one.thought("en")[0], "5"),
        warm_start.written(one.thought("ja", 1)[0], "6"),
        "<think>" + one.thought("en")[0],  # never ended: neither a thought nor an answer
    ]
    judged = judge(asked, [Written(text, len(text)) for text in answers], _GATE)
    assert [(found.sample.consistent, found.english, found.sample.right) for found in judged] == [
        (True, False, True),
        (False, True, True),
        (True, False, False),
        (False, True, False),
    ]
    found = figures(judged)
    assert (found.answers, found.consistency, found.accuracy, found.both, found.english) == (4, 0.5, 0.5, 0.25, 0.5)
    assert (found.own_accuracy, found.english_accuracy) == (0.5, 0.5)
    assert "0.500  0.500   0.250    0.500" in table({"before": found})


def test_every_story_is_told_in_every_language() -> None:
    assert all(set(told) == set(LANGUAGES) for told in STORIES.values())


def test_the_warm_start_writes_a_policy_once(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoTokenizer

    out = tmp_path / "policy"
    tiny = ["--steps", "2", "--batch", "2", "--hidden", "32", "--layers", "1", "--heads", "1", "--head-dim", "32"]
    arguments = ["--world", str(world), "--out", str(out), *tiny]
    warm_start.main(arguments)
    warm_start.main(arguments)
    assert capsys.readouterr().out.endswith("policy: reused\n")
    tokenizer = AutoTokenizer.from_pretrained(out)
    for row in random.sample(rows_of(world, "warm_start"), 50):
        text = warm_start.written(row["thought"], row["answer"])
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text and len(ids) < 64
    assert len(questions(world / "heldout.parquet")) == 16 * len(LANGUAGES)


def test_an_unknown_reward_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        demo.main(["--world", "reasoning", "--arms", "naive,strickt", "--cache", str(tmp_path)])
    assert "there is no 'strickt'; there are naive, slc, strict" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_arm_of_other_settings_is_not_shown_as_the_present_one(tmp_path: Path) -> None:
    words = ["--world", "reasoning", "--arms", "slc", "--cache", str(tmp_path / "cache"), "--run-dir", str(tmp_path)]
    finished = tmp_path / "slc"
    finished.mkdir()
    (finished / "summary.json").write_text("{}")
    config = load([*map(str, CONFIGS), "--run.seed", "0", *REWARDS["slc"]])
    (finished / "config.json").write_text(config.model_dump_json())
    with pytest.raises(SystemExit, match=r"slc holds a finished run of other settings[^$]*learner\.steps: \d+ -> 7"):
        demo.main([*words, "--steps", "7"])
    assert not (tmp_path / "cache").exists(), "before the world is made"
