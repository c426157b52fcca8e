"""Why a model could not be had, and what to set where the environment keeps the process from the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from common.config import Config, load
from common.context import context_length
from common.hub import may_be_of_hub
from common.process import FatalError
from common.tokenizer import load_tokenizer
from learner.train.policy import Policy


def loaded_policy(config: Config) -> None:
    Policy(config.model.path, temperature=1.0, head_chunk=1)


def loaded_tokenizer(config: Config) -> None:
    load_tokenizer(config.model.path)


@pytest.mark.parametrize("loader", [context_length, loaded_tokenizer, loaded_policy])
def test_who_may_not_ask_the_hub_is_told_what_to_set(
    loader: Callable[[Config], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(path: str) -> str:
        with pytest.raises(FatalError) as error:
            loader(load(["--model.path", path]))
        return str(error.value)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = told("nobody/nothing")
    assert "'nobody/nothing'" in found and "set HF_HUB_OFFLINE=0 to ask it" in found and "internet" not in found
    for path in (str(tmp_path), str(tmp_path / "gone")):
        assert "HF_HUB_OFFLINE" not in told(path), "the hub cannot have it"
    assert "it is no directory here" in told(str(tmp_path / "gone"))


def test_a_name_is_one_of_the_hub_unless_it_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert may_be_of_hub("nobody/nothing") and may_be_of_hub("gpt2")
    assert not may_be_of_hub("/models/nothing") and not may_be_of_hub("runs/one/model") and not may_be_of_hub("")
    monkeypatch.chdir(tmp_path)
    Path("nobody/nothing").mkdir(parents=True)
    assert not may_be_of_hub("nobody/nothing")
