"""The ledger on disk: odd reasons are read back, and a file that does not fit the checkpoint is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.process import FatalError
from learner.work.ledger import Ledger, audit


def test_a_reason_with_any_characters_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.enter(0, 7, "failed", 3, "the engine said: \u2028 \x85 \x0b \n \r end")
    ledger.enter(1, 8, "trained", 3)
    ledger.sync()
    found = audit(path, 3, [])
    assert found.outcomes == {"failed": 1, "trained": 1} and (found.lost, found.duplicated) == (1, 0)


def test_a_ledger_that_lost_what_the_checkpoint_counts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.enter(0, 0, "trained", 1)
    size = ledger.sync()
    ledger.enter(1, 1, "trained", 2)
    ledger.sync()
    assert Ledger(path, size).sync() == size == path.stat().st_size
    path.unlink()
    with pytest.raises(FatalError, match=rf"ledger\.jsonl has 0 bytes and had {size}"):
        Ledger(path, size)
