"""The checks for a GPU, with tiny sizes on the CPU: they run, and they find what is wrong."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.train import attention
from scripts.gpu_check import __main__ as gpu_check
from scripts.gpu_check import engines
from scripts.gpu_check.figures import Figure, Sizes
from scripts.gpu_check.numerics import check_attention

ENGINE = "engine with two ranks"


def test_all_checks_run_without_a_gpu_and_write_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "3")  # put back after the test
    monkeypatch.delitem(gpu_check.CHECKS, ENGINE)  # SGLang takes too long to start: see the next test
    gpu_check.main(["--tiny", "--in-one-process", "--out", str(tmp_path)])
    found = {one["check"]: one for one in json.loads((tmp_path / "gpu_check.json").read_text())["checks"]}
    assert list(found) == list(gpu_check.CHECKS)
    assert {one["state"] for one in found.values()} == {"ok"}, found
    judged = {name: sum(figure["ok"] is True for figure in one["figures"]) for name, one in found.items()}
    assert min(judged.values()) > 0, "each check can fail"
    table = (tmp_path / "gpu_check.md").read_text()
    assert table.startswith("| check | figure |") and "head width 16, window 8: d key" in table


@pytest.mark.slow
def test_an_engine_with_two_ranks_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real SGLang, real leader: the weights of both updates reach both ranks, and the old ones are recognised."""
    for name in ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "NCCL_CUMEM_ENABLE", "NCCL_NVLS_ENABLE"):
        monkeypatch.setenv(name, "0")  # put back after the test
    outcome = gpu_check.run_check(ENGINE, Sizes.small(tmp_path))
    assert outcome.state == "ok", outcome
    judged = [figure.name for figure in outcome.figures if figure.ok]
    assert len(judged) == 8 and "update 2: log-probabilities before it" in judged
    assert "SGLANG_CPU_OMP_THREADS_BIND" not in os.environ


def test_an_engine_with_two_ranks_is_left_out_where_there_is_no_sglang_or_one_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "device_of_checks", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    alone = gpu_check.run_check(ENGINE, Sizes(tiny=False, scratch=tmp_path))
    assert (alone.state, alone.told) == ("skipped", "it needs two GPUs")
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    without = gpu_check.run_check(ENGINE, Sizes(tiny=False, scratch=tmp_path))
    assert (without.state, without.told) == ("skipped", "the package sglang is not installed")


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = attention.packed_attention

    def without_window(*arguments: Any, sliding_window: int | None, **named: Any) -> Any:
        return right(*arguments, **named)

    monkeypatch.setattr(attention, "packed_attention", without_window)
    wrong = [figure.name for figure in check_attention(Sizes.small(tmp_path)) if not figure.ok]
    assert wrong and all("no window" not in name for name in wrong)


def test_what_is_not_installed_is_skipped_and_what_fails_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(sizes: Sizes) -> list[Figure]:
        raise ModuleNotFoundError("No module named 'sglang'", name="sglang")

    def broken(sizes: Sizes) -> list[Figure]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def wrong(sizes: Sizes) -> list[Figure]:
        return [Figure("sum", 2.0, "", ok=False, goal="3")]

    outcomes = []
    for function in (missing, broken, wrong):
        monkeypatch.setattr("scripts.gpu_check.numerics.check_head", function)
        outcomes.append(gpu_check.run_check("head", Sizes.small(tmp_path)))
    assert [one.state for one in outcomes] == ["skipped", "failed", "wrong"]
    assert "sglang is not installed" in outcomes[0].told and "CUDA out of memory" in outcomes[1].told
    assert "WRONG, should be 3" in gpu_check.table(outcomes)


def test_a_check_that_hangs_or_dies_is_ended_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "sleep")  # with arguments that it refuses
    died = gpu_check.run_apart("head", tmp_path, True, 60)
    assert died.state == "failed" and "its process ended with code 1" in died.told
    endless = tmp_path / "endless"
    endless.write_text("#!/bin/sh\nexec sleep 100\n")
    endless.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(endless))
    assert gpu_check.run_apart("head", tmp_path, True, 0.5).told == "it did not end within 0 s"
