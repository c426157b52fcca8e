"""Verified answers and penalties."""

from __future__ import annotations

import asyncio
import importlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import ConfigError, RewardConfig, load
from common.process import FatalError
from reward.calibration.formulas import Calibration
from reward.scored import UnscoredError
from reward.scorer import Scorer
from reward.terms import math as verifiers
from reward.terms.math import WORKERS, MathVerifier, read_gold
from reward.terms.quality import QualityTerms, quality
from reward.terms.registry import TERMS
from reward.terms.text import contains, exact, normalised, repetition
from reward.terms.tools import Tools
from reward.terms.verifying import VerifyingQueue
from scripts.bench.support.scoring import SENTENCES, request


def quality_terms(weights: dict[str, dict[str, float]]) -> QualityTerms:
    config = RewardConfig(terms=weights)
    calibrate = Calibration.load("raw", None, 1.0, 0.0, (-1.0, 1.0))
    return QualityTerms(weights, Tools(config, calibrate, Mock()))


@pytest.mark.parametrize(("flags", "low", "high"), [([], 0.8, 1.0), (["--reward.near_languages", "{}"], 0.0, 0.2)])
def test_shares_of_a_language_count_its_near_ones_as_the_gate_does(flags: list[str], low: float, high: float) -> None:
    """lid.176 takes this Malay sentence for Indonesian, which counts as Malay unless the configuration forbids it."""
    malay = "Semua manusia dilahirkan bebas dan samarata dari segi kemuliaan dan hak-hak."
    tools = Tools(load(flags).reward, Mock(), Mock())
    assert low <= tools.language_shares([malay], ["ms"])[0] <= high


@pytest.mark.parametrize(
    ("answer", "accepted", "is_in", "is_it"),
    [
        ("Es ist BERLIN.", "Berlin", True, False),
        ("Berliner", "Berlin", False, False),
        ("日本の首都は東京です", "東京", True, False),
        ("in 2014", "14", False, False),
        ("它是14。", "14", True, False),
        ("São  Paulo", "são paulo", True, True),
        ("ﬁn １２", "fin 12", True, True),
        ("일본의 수도는 도쿄입니다", "도쿄", True, False),
        ("यह दिल्ली है", "दिल्ली", True, False),
        ("anything", "?!", False, False),
        ("aba ab", "ab", True, False),
        ("3.5 metres", "3", False, False),
        ("1,000", "1", False, False),
        ("-5", "5", False, False),
        ("5", "-5", False, False),
        ("3.14", "14", False, False),
        ("1/2", "2", False, False),
        ("1,000", "1000", True, True),
        ("٤٢", "42", True, True),
        ("-5", "−5", True, True),
        ("İstanbul", "istanbul", True, True),
        ("ISTANBUL", "İstanbul", True, True),
        ("to\u200bk\u00adyo", "Tokyo", True, True),
        ("طـوكـيـو", "طوكيو", True, True),
    ],
)
def test_verified_answers(answer: str, accepted: str, is_in: bool, is_it: bool) -> None:
    assert contains(answer, ["absent", accepted]) == is_in
    assert exact(answer, ["absent", accepted]) == is_it


@pytest.mark.parametrize(
    ("one", "other", "language"),
    [
        ("x+1", "x-1", ""), ("x > 5", "x < 5", ""), ("x ≤ 5", "x ≥ 5", ""), ("x = 5", "x ≠ 5", ""), ("√2", "2", ""),
        ("±5", "5", ""), ("C++", "C", ""), ("C#", "C", ""), ("B+", "B", ""), ("-x", "x", ""), ("x^2", "x 2", ""),
        ("😀", "🙂", ""), ("5♠", "5♥", ""), ("🇩🇪", "🇫🇷", ""), ("?", "-", ""), ("6 ÷ 2", "6 × 2", ""),
        ("5.10.2024", "5.1.2024", "de"), ("10.1.2024", "10.10.2024", "de"), ("3.10.2", "3.1.2", "en"), ("½", "2", ""),
    ],
)  # fmt: skip
def test_different_expressions_and_dates_are_not_the_same(one: str, other: str, language: str) -> None:
    for answer, accepted in ((one, other), (other, one)):
        assert not exact(answer, [accepted], language) and exact(answer, [answer], language)


@pytest.mark.parametrize(
    ("answer", "accepted", "language"),
    [
        ("Guinea-Bissau", "Guinea Bissau", ""), ("Guinea Bissau", "Guinea-Bissau", ""), ("COVID-19", "covid 19", ""),
        ("x-1", "x − 1", ""), ("x+1", "x + 1", ""), ("−x", "-x", ""), ("**-x**", "-x", ""), ("= 42", "42", ""),
        ("≈ 42", "42", ""), ("+5", "5", ""), ("18+", "18", ""), ("25 °C", "25°C", ""), ("2 × 3", "2*3", ""),
        ("x <= 5", "x ≤ 5", ""), ("x == 5", "x = 5", ""), ("A -> B", "A → B", ""), ("C♯", "C#", ""), ("❤️", "❤", ""),
        ("→ Paris", "Paris", ""), ("✅ Paris", "Paris", ""), ("Paris 😀", "Paris", ""), ("| Paris |", "Paris", ""),
        ("> Paris", "Paris", ""), ("- Paris", "Paris", ""), ("+ Paris", "Paris", ""), ("iPhone®", "iPhone", ""),
        ("<b>Paris</b>", "b Paris b", ""), ("½", "1/2", ""), ("3½", "7/2", ""),
        ("5.1.2024", "05.01.2024", "de"), ("5,50 €", "5.5", "de"), ("ايران", "ایران", "fa"), ("كتاب", "کتاب", "fa"),
        ("على", "علی", "fa"),
    ],
)  # fmt: skip
def test_what_differs_by_spelling_alone_is_the_same(answer: str, accepted: str, language: str) -> None:
    assert exact(answer, [accepted], language) == contains(f"… {answer}\n", [accepted], language) == 1


def test_punctuation_alone_is_compared_as_it_is_written() -> None:
    assert exact(" ？\n", ["?"]) == contains("?", ["?"]) == exact("−", ["-"]) == 1
    assert exact("-", ["?"]) == contains("Is it?", ["?"]) == exact("Paris", ["?"]) == exact("?", ["Paris"]) == 0


@pytest.mark.parametrize(
    ("answer", "accepted", "language"),
    [
        ("ذهبت إلى المصرف", "مصر", "ar"), ("मैं दिल्ली में रहता हूँ", "दिल", "hi"), ("रामायण", "राम", "hi"),
        ("ישראל", "אל", "he"), ("רוסיהלנד", "רוסיה", "he"), ("ปีใหม่", "ป", "th"), ("مصالح", "صالح", "ar"),
        ("উপমা", "মা", "bn"), ("మాట", "మ", "te"), ("Моско́вский", "Моско", "ru"), ("C++ is good", "C", "en"),
        ("√2", "2", ""), ("It is -x", "x", ""), ("Python 3.10.2", "3.1", "en"), ("in 5.10.2024", "5.1", "de"),
    ],
)  # fmt: skip
def test_a_name_is_not_found_inside_another_word(answer: str, accepted: str, language: str) -> None:
    assert not contains(answer, [accepted], language)


@pytest.mark.parametrize(
    ("answer", "accepted", "language"),
    [
        ("عاصمة مصر", "مصر", "ar"), ("ومصر", "مصر", "ar"), ("في المصر", "مصر", "ar"), ("بمصر.", "مصر", "ar"),
        ("هو مصري", "مصر", "ar"), ("هي عادلة", "عادل", "ar"), ("وبالقاهرة", "القاهرة", "ar"),
        ("إلى باريس!", "باريس", "ar"),
        ("بباريس", "باريس", ""),
        ("תשובה: ירושלים", "ירושלים", "he"), ("בירושלים", "ירושלים", "he"), ("ושבתל אביב", "תל אביב", "he"),
        ("הישראלי", "ישראל", "he"),
        ("تهران‌است", "تهران", "fa"), ("کتاب‌هایی", "کتاب", "fa"), ("می‌روم", "روم", "fa"), ("تهرانه", "تهران", "fa"),
        ("لاہور میں", "لاہور", "ur"),
        ("दिल्ली में", "दिल्ली", "hi"), ("देशों में", "देश", "hi"), ("दिल्लीमध्ये", "दिल्ली", "mr"), ("भारतात", "भारत", "mr"),
        ("भारताची राजधानी", "भारत", "mr"), ("नेपालको राजधानी", "नेपाल", "ne"),
        ("ঢাকায়", "ঢাকা", "bn"), ("ভারতের রাজধানী", "ভারত", "bn"), ("ভারতেই", "ভারত", "bn"),
        ("અમદાવાદમાં", "અમદાવાદ", "gu"), ("ਦਿੱਲੀ ਵਿੱਚ", "ਦਿੱਲੀ", "pa"),
        ("హైదరాబాద్‌లో ఉంది", "హైదరాబాద్", "te"), ("ఢిల్లీకి", "ఢిల్లీ", "te"), ("சென்னையில்", "சென்னை", "ta"),
        ("சென்னையிலிருந்து", "சென்னை", "ta"), ("ഡൽഹിയിലാണ്", "ഡൽഹി", "ml"), ("ದೆಹಲಿಯಲ್ಲಿದೆ", "ದೆಹಲಿ", "kn"),
        ("ශ්‍රී ලංකාවේ අගනුවර", "ශ්‍රී ලංකාව", "si"), ("မြန်မာ့", "မြန်မာ", "my"),
        ("서울에서", "서울", "ko"), ("東京都です", "東京", "ja"), ("กรุงเทพฯคือ", "กรุงเทพ", "th"),
        ("在北京市", "北京", "zh"),
        ("Москва́ — столица", "Москва", "ru"), ("I use C++.", "C++", "en"), ("2+3=5", "5", ""),
        ("am 5.10.2024", "2024", "de"), ("am 05.10.2024", "5.10.2024", "de"), ("| Paris | 5 |", "Paris", "fr"),
    ],
)  # fmt: skip
def test_a_name_is_found_in_sentences(answer: str, accepted: str, language: str) -> None:
    assert contains(answer, [accepted], language) == 1


@settings(max_examples=30)
@given(st.text(max_size=60), st.text(max_size=20), st.text(max_size=60))
def test_terms_take_any_text(before: str, accepted: str, after: str) -> None:
    if normalised(accepted):
        assert contains(f"{before}\n{accepted}\n{after}", [accepted]) == 1
        assert exact(f" {accepted.lower()} ", [accepted.lower()]) == 1
    assert 0 <= repetition(before + after) <= 1
    assert repetition((before or "x") * 200) > 0.5


def test_a_term_that_reads_a_long_text_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is computed beside the event loop, in which all groups and judges are waited for."""
    going_on = threading.Event()
    monkeypatch.setattr("reward.terms.text.contains", lambda *_: float(going_on.wait(60)))

    async def both() -> Sequence[float | None]:
        contains = TERMS["contains"].load(Mock())
        values = asyncio.ensure_future(contains([Mock(text="1 " * 50_000, accepted=["2"], language="en")]))
        await asyncio.sleep(0.01)
        going_on.set()
        return await values

    assert asyncio.run(both()) == [1]


@pytest.mark.parametrize(
    "text", ["0 " * 50_000, "1,1.1 " * 16_000, "7" * 100_000, "0." + "3" * 90_000, "\ue000" * 100_000]
)
def test_digits_without_end_cost_no_term_more_than_other_texts(text: str) -> None:
    began = time.process_time()
    assert contains(text, ["42"], "en") == exact(text, ["42"], "en") == 0
    assert contains("1/2/2024", ["2024"]) == 1 and contains("1/2", ["2"]) == 0
    assert time.process_time() - began < 20, "in linear time it is about one second"


def test_natural_text_repeats_nothing() -> None:
    assert repetition(" ".join(SENTENCES.values())) == 0


def test_math_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, "math_verify", None)
    with pytest.raises(FatalError, match=r"\"math\" of reward\.terms needs math-verify.*pip install"):
        quality_terms({"Reasoning": {"math": 1.0}})


@pytest.fixture(scope="module")
def math() -> Iterator[MathVerifier]:
    pytest.importorskip("math_verify")
    verifier = MathVerifier(workers=1)
    yield verifier
    verifier.close()


GOLDS = [r"2\sqrt{3}", r"1-\sqrt{2}", r"3\pi", "5x-7", "x^2+1", "(1,2)", r"\frac{3}{4}", "42", "-3", "1,000"]


def test_golds_are_read_in_every_published_form(math: MathVerifier) -> None:
    rows = []
    for gold in GOLDS:
        for form in (gold, f"${gold}$", f"\\boxed{{{gold}}}"):
            rows += [(f"So it is $\\boxed{{{gold}}}$.", [form], "en"), (r"So it is $\boxed{2}$.", [form], "en")]
    found = math.verify(rows)
    assert found == [1, 0] * (len(rows) // 2), [row for row, value in zip(rows, found, strict=True) if "2}$" in row[0]]
    assert all(read_gold(gold) for gold in GOLDS)


def test_the_right_number_is_right_in_every_script(math: MathVerifier) -> None:
    said = [
        "答案是42。", "答案：42", "คำตอบคือ42", "４２", "٤٢", "४२", "৪২", r"\boxed{٤٢}", r"\boxed{42元}",
        "The answer is 42.", "정답은 42입니다.", "Die Antwort ist $42$.",
    ]  # fmt: skip
    assert math.verify([(text, ["42"], "") for text in said]) == [1] * len(said)
    assert math.verify([(text, ["43"], "") for text in said]) == [0] * len(said)
    assert math.verify([("1.234", ["1234"], "de"), (r"\boxed{1{,}234}", ["1234"], "en")]) == [1, 1]


def test_math_is_verified(math: MathVerifier) -> None:
    assert math(r"Die Summe ist $\boxed{\frac{1}{2}}$.", ["0.5"]) == 1
    assert math(r"答案是 $\boxed{15}$", [r"\boxed{14}"]) == 0
    assert math("no number", ["14"]) == 0


def test_hostile_formulas_cost_their_own_answer_alone(math: MathVerifier, tmp_path: Path) -> None:
    victim = tmp_path / "executed"
    code = f"__import__('pathlib').Path({str(victim)!r}).touch()"
    hostile = [
        r"$\boxed{9^{9^{9^{9}}}}$",
        r"$\boxed{10^{10^{10}} - 10^{10^{10}} + 1}$",
        r"$\boxed{" + r"\frac{1}{" * 400 + "2" + "}" * 400 + "}$",
        "(" * 20_000 + "1" + ")" * 20_000,
        "9**9**9**9 + 1",
        "7" * 1_000_000,
        f"$\\boxed{{{code}}}$ {code}",
        "\ud800 $\\boxed{",
    ]
    rows = [(text, ["4", r"\boxed{9^{9^{9}}}"], "en") for text in hostile] * 28
    began = time.monotonic()
    assert math.verify([*rows, (r"$\boxed{\frac{2}{4}}$", ["0.5"], "en")]) == [0] * len(rows) + [1]
    assert time.monotonic() - began < 60, "within the deadline of a request"
    assert math.counts["math_refused"] >= 28 * 5
    assert not victim.exists()


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_a_worker_has_limits_and_dies_with_its_parent(math: MathVerifier) -> None:
    assert math("$2$", ["2"]) == 1
    (worker,) = workers()
    limits = dict(re.split(r" {2,}", line, maxsplit=2)[:2] for line in
                  Path(f"/proc/{worker.pid}/limits").read_text().splitlines())  # fmt: skip
    assert limits["Max file size"] == limits["Max core file size"] == "0"
    assert 1 << 30 < int(limits["Max address space"]) < 1 << 34
    # An idle worker would notice by itself that its parent is gone; this one is busy.
    code = """
import time
from reward.terms.math import MathVerifier, read_gold
if __name__ == "__main__":
    verifier = MathVerifier(workers=1)
    busy = verifier._pool.schedule(time.sleep, (600,))
    while not busy.running():
        time.sleep(0.05)
    print("ready", flush=True)
    input()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
        orphans = psutil.Process(parent.pid).children()
        parent.kill()
    assert orphans and not psutil.wait_procs(orphans, timeout=60)[1]


def test_a_pool_that_hangs_or_dies_is_replaced(math: MathVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    assert math("$2$", ["2"]) == 1
    monkeypatch.setattr("reward.terms.math._BATCH_S", 1.0)
    (worker,) = workers()
    worker.suspend()
    before = math.counts["math_unverified"]
    assert math("$2$", ["2"]) is None and math.counts["math_unverified"] == before + 1, "it never takes the answer"
    worker.resume()  # it may hold the lock of pebble's pipe when it is killed
    worker.kill()
    monkeypatch.undo()
    assert math("$2$", ["2"]) == 1, "a pool that has finished nothing is replaced"
    (worker,) = workers()
    worker.kill()
    assert math("$2$", ["2"]) in (1, None), "it may meet the dead worker, which is not the answer's fault"
    assert math("$2$", ["2"]) == 1


def test_nobody_waits_for_a_pool_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifiers, "_END_S", 0.1)
    over, pool = threading.Event(), Mock()
    pool.join = lambda: over.wait(600)
    began = time.monotonic()
    verifiers._stop(pool)
    assert time.monotonic() - began < 300 and pool.stop.called
    over.set()


def test_an_answer_that_takes_too_long_is_killed_and_worth_nothing(
    math: MathVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert math("$2$", ["2"]) == 1
    before = math.counts["math_killed"]
    monkeypatch.setattr("reward.terms.math._schedule", lambda pool, check, text, rest: pool.schedule(
        signal.sigtimedwait, ([signal.SIGUSR1], 60), timeout=0.5))  # fmt: skip
    assert math.verify([("1", ["1"], ""), ("2", ["2"], "")]) == [0, 0]
    assert math.counts["math_killed"] == before + 2
    assert math.verify([("1", ["1"], ""), ("2", ["2"], "")]) == [0, 0]
    assert math.counts["math_killed"] == before + 2, (
        "it is remembered, so that its group costs nothing when it is scored again"
    )
    monkeypatch.undo()
    assert math("$2$", ["2"]) == 1


def test_a_worker_that_somebody_kills_costs_no_answer_its_worth(
    math: MathVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert math("$2$", ["2"]) == 1
    killed: list[int] = []

    def kill_the_first(pool: Any, check: Any, text: str, rest: Any) -> Any:
        if killed:
            return pool.schedule(check, (text, *rest), timeout=60)
        future = pool.schedule(signal.sigtimedwait, ([signal.SIGUSR1], 60), timeout=60)
        while not future.running():
            time.sleep(0.01)
        (worker,) = workers()
        killed.append(worker.pid)
        worker.kill()
        return future

    monkeypatch.setattr("reward.terms.math._schedule", kill_the_first)
    assert math("$3$", ["3"]) == 1 and killed


def test_an_answer_whose_turn_never_comes_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward.terms.verifying._PATIENCE_S", 0.2)
    release = threading.Event()
    busy = SimpleNamespace(counts=Counter(), verify=lambda answers: [float(release.wait(60))])

    async def ask() -> list[float | None]:
        queue = VerifyingQueue(busy)  # type: ignore[arg-type]
        try:
            return list(await asyncio.gather(*(queue.verify("$2$", ["2"]) for _ in range(WORKERS + 1))))
        finally:
            release.set()
            queue.close()

    assert asyncio.run(ask()) == [None] * (WORKERS + 1)
    assert busy.counts["math_unverified"] == WORKERS + 1


def test_a_group_of_which_too_much_was_not_verified_is_scored_again(monkeypatch: pytest.MonkeyPatch) -> None:
    values: list[float | None] = [1.0, None, None]
    monkeypatch.setattr(Tools, "start_verifier", lambda _: None)

    async def verify_all(_: Tools, answers: Sequence[Any]) -> list[float | None]:
        return values[: len(answers)]

    monkeypatch.setattr(Tools, "verify_all", verify_all)
    scorer = Scorer(RewardConfig(terms={"default": {"math": 1.0}}))
    right, missing = scorer.score([request(["$2$", "$2$"], ["en"] * 2)])[0]
    assert (right.reward, right.scored, missing.reward, missing.scored) == (1, True, 0, False)
    with pytest.raises(UnscoredError, match="2 of 3 answers could not be scored"):
        scorer.score([request(["$2$"] * 3, ["en"] * 3)])
    scorer.close()


def test_setting_the_clock_neither_ends_an_answer_nor_lets_it_go_on(
    math: MathVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    for jump_s, takes_s, limit_s in ((3600.0, 0.5, 600.0), (-3600.0, 600.0, 0.5)):
        future = math._pool.schedule(signal.sigtimedwait, ([signal.SIGUSR1], takes_s), timeout=limit_s)
        deadline = time.monotonic() + 120
        while not (future.running() or future.done()) and time.monotonic() < deadline:
            time.sleep(0.01)
        monkeypatch.setattr(time, "time", lambda jump_s=jump_s: now() + jump_s)
        assert isinstance(future.exception(120), TimeoutError) == (takes_s > limit_s)
        monkeypatch.undo()


def test_a_pool_that_does_not_start_is_tried_again_and_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("reward.terms.math._is_ready", lambda _: False)
    monkeypatch.setattr("reward.terms.math._BACK_OFF_S", 0.0)
    with pytest.raises(FatalError, match="did not start in 3 attempts"):
        MathVerifier(workers=1)
    assert sum("did not start" in record.message for record in caplog.records) == 3


def test_a_topic_needs_a_term_that_earns() -> None:
    for name, term in TERMS.items():
        if term.earns:
            RewardConfig(terms={"Chat": {name: 1.0}})
        else:
            with pytest.raises(ConfigError, match=r"terms\.Chat needs a term that earns: similarity, contains"):
                quality_terms({"Chat": {name: 1.0}})


def test_costs_are_taken_from_what_the_earning_terms_give() -> None:
    weights = {"similarity": 1.0, "exact": 3.0, "truncation": 0.25, "repetition": 0.5}
    values = {"similarity": 0.8, "exact": 1.0, "truncation": 1.0, "repetition": 0.5}
    assert quality(values, weights) == pytest.approx(0.95 - 0.25 - 0.25)
    assert quality(values | {"exact": 0.0, "similarity": 0.0}, weights) == 0, "never negative"


def test_terms_are_checked_when_a_process_starts() -> None:
    given = load(["--reward.terms.Reasoning / Logic.exact", "2", "--reward.terms.Reasoning / Logic.repetition", "0.5"])
    assert given.reward.terms == {"Reasoning / Logic": {"exact": 2.0, "repetition": 0.5}}
    quality_terms(given.reward.terms)
    with pytest.raises(ConfigError, match=r"reward\.terms\.default has an unknown term 'similarty'; did you mean"):
        quality_terms({"default": {"similarty": 1.0}})
    with pytest.raises(ConfigError, match="greater than 0"):
        load(["--reward.terms.default.similarity", "-1"])


def test_an_unbounded_quality_is_what_the_terms_add_up_to() -> None:
    weights = {"exact": 1.0, "truncation": 2.0}
    assert quality({"exact": 0.0, "truncation": 1.0}, weights, bounded=False) == -2
