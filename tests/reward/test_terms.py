"""Verified answers and penalties."""

from __future__ import annotations

import importlib
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import ConfigError, RewardConfig, load
from common.process import FatalError
from reward.scorer import Scorer
from reward.terms.math import MathVerifier
from reward.terms.text import contains, exact, normalised, repetition, split_thinking
from tests.support.scoring import SENTENCES


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


@given(st.text(max_size=60), st.text(max_size=20), st.text(max_size=60))
def test_terms_take_any_text(before: str, accepted: str, after: str) -> None:
    if normalised(accepted):
        assert contains(f"{before}\n{accepted}\n{after}", [accepted]) == 1
        assert exact(f" {accepted.lower()} ", [accepted.lower()]) == 1
    assert 0 <= repetition(before + after) <= 1
    assert repetition((before or "x") * 200) > 0.5
    thinking, answer = split_thinking(f"<think>{before}</think>{after}")
    if "think>" not in before + after:
        assert (thinking, answer) == (before.strip(), after.strip())
        assert split_thinking(f"<think>{before}") == (before.strip(), "")


def test_natural_text_repeats_nothing() -> None:
    assert repetition(" ".join(SENTENCES.values())) == 0


def test_math_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, "math_verify", None)
    with pytest.raises(FatalError, match=r"\"math\" of reward\.terms needs math-verify.*pip install"):
        Scorer(RewardConfig(terms={"Reasoning": {"math": 1.0}}))


def test_math_is_verified() -> None:
    pytest.importorskip("math_verify")
    math = MathVerifier()
    assert math(r"Die Summe ist $\boxed{\frac{1}{2}}$.", ["0.5"]) == 1
    assert math(r"答案是 $\boxed{15}$", [r"\boxed{14}"]) == 0
    assert math("no number", ["14"]) == 0
    math.close()


def test_hostile_formulas_cost_their_own_answer_alone(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    math = MathVerifier()
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
    math.close()


def test_a_verifier_that_hangs_or_dies_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    monkeypatch.setattr("reward.terms.math._DEADLINE_S", 0.5)
    math = MathVerifier()
    assert f"{1 << 30}" in Path(f"/proc/{math._process.pid}/limits").read_text()
    for number, kind in enumerate((signal.SIGSTOP, signal.SIGKILL), start=1):
        os.kill(math._process.pid, kind)
        assert math("$2$", ["2"]) == 0 and math.killed == number
    monkeypatch.setattr("reward.terms.math._DEADLINE_S", 60)
    assert math("$2$", ["2"]) == 1 and math.killed == 2
    math.close()


def test_terms_are_checked_when_they_are_read() -> None:
    given = load(["--reward.terms.Reasoning / Logic.math", "2", "--reward.terms.Reasoning / Logic.repetition", "0.5"])
    assert given.reward.terms == {"Reasoning / Logic": {"math": 2.0, "repetition": 0.5}}
    with pytest.raises(ConfigError, match=r"terms\.Chat needs a term that rewards"):
        load(["--reward.terms.Chat.truncation", "1"])
    with pytest.raises(ConfigError, match="similarty"):
        load(["--reward.terms.default.similarty", "1"])
