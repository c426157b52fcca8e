"""Verified answers and penalties."""

from __future__ import annotations

import importlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import ConfigError, RewardConfig, load
from common.process import FatalError
from reward.calibration.formulas import Calibration
from reward.terms.math import MathVerifier
from reward.terms.quality import QualityTerms, quality
from reward.terms.registry import TERMS
from reward.terms.text import contains, exact, normalised, repetition
from reward.terms.tools import Tools
from tests.support.scoring import SENTENCES


def quality_terms(weights: dict[str, dict[str, float]]) -> QualityTerms:
    config = RewardConfig(terms=weights)
    calibrate = Calibration.load("raw", None, 1.0, 0.0, (-1.0, 1.0))
    return QualityTerms(weights, Tools(config, calibrate, Mock()))


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
    ],
)
def test_verified_answers(answer: str, accepted: str, is_in: bool, is_it: bool) -> None:
    assert contains(answer, ["absent", accepted]) == is_in
    assert exact(answer, ["absent", accepted]) == is_it


@settings(max_examples=30)
@given(st.text(max_size=60), st.text(max_size=20), st.text(max_size=60))
def test_terms_take_any_text(before: str, accepted: str, after: str) -> None:
    if normalised(accepted):
        assert contains(f"{before}\n{accepted}\n{after}", [accepted]) == 1
        assert exact(f" {accepted.lower()} ", [accepted.lower()]) == 1
    assert 0 <= repetition(before + after) <= 1
    assert repetition((before or "x") * 200) > 0.5


def test_natural_text_repeats_nothing() -> None:
    assert repetition(" ".join(SENTENCES.values())) == 0


def test_math_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, "math_verify", None)
    with pytest.raises(FatalError, match=r"\"math\" of reward\.terms needs math-verify.*pip install"):
        quality_terms({"Reasoning": {"math": 1.0}})


@pytest.fixture(scope="module")
def math() -> Iterator[MathVerifier]:
    pytest.importorskip("math_verify")
    verifier = MathVerifier()
    yield verifier
    verifier.close()


def test_math_is_verified(math: MathVerifier) -> None:
    assert math(r"Die Summe ist $\boxed{\frac{1}{2}}$.", ["0.5"]) == 1
    assert math(r"答案是 $\boxed{15}$", [r"\boxed{14}"]) == 0
    assert math("no number", ["14"]) == 0


def test_hostile_formulas_cost_their_own_answer_alone(math: MathVerifier, tmp_path: Path) -> None:
    victim = tmp_path / "executed"
    code = f"__import__('pathlib').Path({str(victim)!r}).touch()"
    for answer in (
        r"$\boxed{9^{9^{9^{9}}}}$",
        r"$\boxed{10^{10^{10}} - 10^{10^{10}} + 1}$",
        r"$\boxed{" + r"\frac{1}{" * 400 + "2" + "}" * 400 + "}$",
        "(" * 20_000 + "1" + ")" * 20_000,
        "9**9**9**9 + 1",
        "7" * 1_000_000,
        f"$\\boxed{{{code}}}$ {code}",
        "\ud800 $\\boxed{",
    ):
        assert math(answer, ["1", r"\boxed{9^{9^{9}}}"]) == 0
    assert math(r"$\boxed{\frac{2}{4}}$", ["0.5"]) == 1, "it goes on"
    assert not victim.exists()


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_a_worker_has_limits_and_dies_with_its_parent(math: MathVerifier) -> None:
    (worker,) = workers()
    limits = dict(re.split(r" {2,}", line, maxsplit=2)[:2] for line in
                  Path(f"/proc/{worker.pid}/limits").read_text().splitlines())  # fmt: skip
    assert limits["Max file size"] == limits["Max core file size"] == "0"
    assert 1 << 30 < int(limits["Max address space"]) < 1 << 34
    # An idle worker would notice by itself that its parent is gone; this one is busy.
    code = """
import time
from reward.terms.math import MathVerifier
if __name__ == "__main__":
    verifier = MathVerifier()
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


def test_a_worker_that_hangs_or_dies_is_replaced(math: MathVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    before = math.killed
    monkeypatch.setattr("reward.terms.math._DEADLINE_S", 0.5)
    (worker,) = workers()
    worker.suspend()
    assert math("$2$", ["2"]) == 0 and math.killed == before + 1, "it never takes the answer"
    monkeypatch.setattr("reward.terms.math._DEADLINE_S", 60)
    assert math("$2$", ["2"]) == 1 and math.killed == before + 1
    (worker,) = workers()
    worker.kill()
    math("$2$", ["2"])  # may meet the dead worker
    assert math("$2$", ["2"]) == 1 and math.killed <= before + 2


def test_an_answer_that_takes_too_long_is_killed_and_worth_nothing(
    math: MathVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = math.killed
    (worker,) = workers()
    monkeypatch.setattr("reward.terms.math._verify", signal.sigtimedwait)  # waits for 60 s
    monkeypatch.setattr("reward.terms.math._DEADLINE_S", 0.5)
    assert math([signal.SIGUSR1], 60) == 0 and math.killed == before + 1  # type: ignore[arg-type]
    assert not worker.is_running()
    monkeypatch.undo()
    assert math("$2$", ["2"]) == 1


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
