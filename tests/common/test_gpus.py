"""Which GPUs a process may use, with a driver and builds of torch that are not there."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch

from common import gpus
from common.process import FatalError
from learner.train import distributed


class Driver:
    """NVIDIA's driver with two GPUs."""

    def cuInit(self, _: int) -> int:
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 2
        return 0


@pytest.fixture(autouse=True)
def _driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    for variable in ("CUDA_VISIBLE_DEVICES", "LRPO_DEVICE"):
        monkeypatch.delenv(variable, raising=False)
    gpus.torch_has_cuda.cache_clear()
    yield
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
