"""What happens to the other ranks when one fails: the rule in the docstring of learner.ranks."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from learner.ranks import Command, Ranks
from tests.support.train_once import run_ranks

_SOON_S = 100  # of a default timeout of 400 s


def a_follower_raises() -> None:
    """Rank 0 waits for the others in a collective of the action in which rank 1 raises."""

    def act(_: Command) -> None:
        if dist.get_rank() == 1:
            raise ValueError("broken on rank 1")
        dist.all_reduce(torch.zeros(1))

    ranks, began = Ranks({"act": act}), time.monotonic()
    if dist.get_rank():
        ranks.follow()
    with pytest.raises(RuntimeError):
        ranks.run("act")
    raise SystemExit(3 if time.monotonic() - began < _SOON_S else 4)


def rank_0_raises_outside_an_action() -> None:
    ranks = Ranks({})
    if dist.get_rank():
        ranks.follow()
        raise SystemExit(0)
    try:
        raise ValueError("broken on rank 0")
    finally:
        ranks.run("stop")


def rank_0_dies() -> None:
    if dist.get_rank() == 0:
        os._exit(9)
    began = time.monotonic()
    with pytest.raises(RuntimeError):
        Ranks({}).follow()
    raise SystemExit(3 if time.monotonic() - began < _SOON_S else 4)


def all_ranks_act() -> None:
    sums = []

    def add(command: Command) -> int:
        total = torch.tensor([command.number + dist.get_rank()])
        dist.all_reduce(total)
        sums.append(int(total))
        return int(total)

    ranks = Ranks({"add": add})
    if dist.get_rank():
        ranks.follow()
    else:
        assert [ranks.run("add", number) for number in (1, 2)] == [3, 5]
        assert ranks.run("wait") is None
        ranks.run("stop")
    assert sums == [3, 5]


def test_every_rank_runs_what_rank_0_runs() -> None:
    assert run_ranks(2, all_ranks_act) == [0, 0]


@pytest.mark.parametrize(
    ("body", "exits", "complaint"),
    [
        (a_follower_raises, [3, 1], "broken on rank 1"),
        (rank_0_raises_outside_an_action, [1, 0], "broken on rank 0"),
        (rank_0_dies, [9, 3], ""),
    ],
)
def test_no_rank_waits_for_one_that_failed(body: object, exits: list[int], complaint: str, tmp_path: Path) -> None:
    assert callable(body)
    assert run_ranks(2, body, output=tmp_path / "log") == exits, (tmp_path / "log").read_text()
    assert complaint in (tmp_path / "log").read_text()
