"""Which GPUs a process may use, with a driver and builds of torch that are not there."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch

import actor.__main__
from actor.engine.server import EngineProcess
from common import gpus
from common.config import load
from common.process import FatalError
from learner import launch
from learner.train import distributed
from scripts.ops.local_run import run_all


class Driver:
    """NVIDIA's driver with two GPUs, or as many as it is told to let this process use."""

    def __init__(self) -> None:
        self.count, self.code = 2, 0

    def cuInit(self, _: int) -> int:
        return self.code

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.count
        return 0


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    made = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: made)
    for variable in ("CUDA_VISIBLE_DEVICES", "LRPO_DEVICE"):
        monkeypatch.delenv(variable, raising=False)
    gpus.torch_has_cuda.cache_clear()
    yield made
    gpus.torch_has_cuda.cache_clear()


def install(version: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another build of torch, as far as its ``version.py`` tells."""
    (directory / "version.py").write_text(version)
    spec = ModuleSpec("torch", None, origin=str(directory / "__init__.py"))
    monkeypatch.setattr(gpus, "find_spec", lambda name: spec)


def test_a_build_of_torch_for_cpus_leaves_the_gpus_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus.torch_has_cuda() == (torch.version.cuda is not None)
    gpus.torch_has_cuda.cache_clear()
    install("cuda: Optional[str] = None\nhip: Optional[str] = None\n", tmp_path, monkeypatch)
    assert not gpus.has_cuda()


def test_a_build_for_cuda_uses_the_gpus_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", tmp_path, monkeypatch)
    assert gpus.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert gpus.visible_gpus() == ["5", "7"]
    monkeypatch.setenv("LRPO_DEVICE", "cpu")
    assert gpus.visible_gpus() == []


def test_without_torch_there_is_nothing_that_could_use_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "find_spec", lambda name: None)
    assert not gpus.has_cuda()


def test_an_old_driver_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(rank: int) -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040).\nPlease update it.")

    for name in ("NCCL_CUMEM_ENABLE", "NCCL_NVLS_ENABLE"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(distributed, "has_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", refuse)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(FatalError, match="cannot use GPU 1 of this machine: The NVIDIA driver") as error:
        distributed.set_up_distributed(1.0)
    assert "\n" not in str(error.value) and "LRPO_DEVICE=cpu" in str(error.value)


SMI = """#!/bin/sh
echo "GPU 0: NVIDIA H200 (UUID: GPU-11)"
echo "GPU 1: NVIDIA H200 (UUID: GPU-22)"
"""


@pytest.fixture
def gpu_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment for GPUs, on a host with two."""
    install("cuda: Optional[str] = '13.0'\n", tmp_path, monkeypatch)
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("LRPO_DEVICE", "gpu")


@pytest.mark.parametrize(
    ("named", "count", "code", "told"),
    [
        ("8", 0, 100, r"CUDA_VISIBLE_DEVICES = 8 ask for 1 GPU, and none of them can be used \(.* CUDA error 100\)"),
        ("1,2", 1, 0, r"CUDA_VISIBLE_DEVICES = 1,2 ask for 2 GPUs, and 1 of them can be used\. "),
        ("GPU-11,GPU-33", 1, 0, r"CUDA_VISIBLE_DEVICES = GPU-11,GPU-33 ask for 2 GPUs, and 1 of them"),
        ("MIG-44", 0, 100, "CUDA_VISIBLE_DEVICES = MIG-44 ask for 1 GPU, and none of them"),
        (None, 2, 999, r"CUDA_VISIBLE_DEVICES = not set ask for 1 GPU, and none of them .* CUDA error 999\)"),
    ],
)
@pytest.mark.usefixtures("gpu_host")
def test_a_gpu_that_is_missing_is_an_error_and_no_run_on_the_cpu(
    named: str | None, count: int, code: int, told: str, driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.count, driver.code = count, code
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    config = load(["--run.dir", str(tmp_path / "run"), "--run.rendezvous", str(tmp_path)])
    starts: list[Callable[[], object]] = [
        lambda: EngineProcess(config, "a", tmp_path / "log"),
        lambda: actor.__main__.run(config),
        lambda: launch.launch("learner", config.learner, []),
        lambda: distributed.set_up_distributed(1.0),
        lambda: run_all([], tmp_path),
    ]
    for start in starts:
        with pytest.raises(FatalError, match=rf"LRPO_DEVICE = gpu and {told}") as error:
            start()
        assert "NVIDIA H200 (UUID: GPU-11); GPU 1: NVIDIA H200" in str(error.value), "those that there are"
    monkeypatch.setenv("LRPO_DEVICE", "cpu")
    assert gpus.usable_gpus() == [], "the user has said so"


@pytest.mark.parametrize(
    ("named", "count", "usable"),
    [("1", 1, ["1"]), ("GPU-11,GPU-22", 2, ["GPU-11", "GPU-22"]), ("MIG-44", 1, ["MIG-44"]), (None, 2, ["0", "1"])],
)
@pytest.mark.usefixtures("gpu_host")
def test_gpus_that_are_there_are_used(
    named: str | None, count: int, usable: list[str], driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.count = count
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert gpus.usable_gpus() == usable


@pytest.mark.parametrize("named", ["", "-1", "NoDevFiles"])
@pytest.mark.usefixtures("gpu_host")
def test_a_process_that_is_given_no_gpu_needs_none(named: str, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.code = 100
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert not gpus.has_cuda()


def test_a_gpu_that_is_named_is_meant_without_lrpo_device_too(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.code = 100
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    install("cuda: Optional[str] = None\n", tmp_path, monkeypatch)
    assert not gpus.has_cuda(), "torch is a build for CPUs, as whoever installed it has chosen"
    gpus.torch_has_cuda.cache_clear()
    install("cuda: Optional[str] = '13.0'\n", tmp_path, monkeypatch)
    with pytest.raises(FatalError, match=r"LRPO_DEVICE = not set and CUDA_VISIBLE_DEVICES = 0 .*lists: nothing \("):
        gpus.has_cuda()
