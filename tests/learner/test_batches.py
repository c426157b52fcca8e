"""How long a step's groups are waited for."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from common.process import FatalError
from common.stopwatch import Stopwatch
from learner.loop import batches
from learner.loop.batches import Batches


def waiting(take: Any, timeout_s: float) -> Any:
    server = SimpleNamespace(take=take, counts=dict, members=dict)
    return Batches(server, Mock(), timeout_s, Stopwatch(), Mock()).next_batch()  # type: ignore[arg-type]


def test_time_in_which_the_learner_stood_still_is_not_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_TURN_S", 0.1)
    turns = [3.0, 0.1, 0.1]  # as if the process were stopped in the first

    def take(timeout_s: float) -> list[str] | None:
        time.sleep(turns.pop(0))
        return ["a group"] if not turns else None

    assert waiting(take, timeout_s=1.0) == ["a group"]


def test_a_step_without_groups_ends_the_run_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_TURN_S", 0.1)
    with pytest.raises(FatalError, match=r"no full batch within learner\.batch_timeout_s = 1 s"):
        waiting(time.sleep, timeout_s=1.0)
