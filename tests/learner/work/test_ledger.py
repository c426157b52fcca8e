"""The ledger on disk: what is read back, what the audit finds, and a file that does not fit the checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.process import FatalError
from learner.work.ledger import Ledger, audit, read_routed
from tests.support.groups import work


def test_a_reason_with_any_characters_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.enter(0, 7, "failed", 3, "the engine said: \u2028 \x85 \x0b \n \r end")
    ledger.enter(1, 8, "trained", 3)
    ledger.flush()
    found = audit(path, 3, [])
    assert found.outcomes == {"failed": 1, "trained": 1} and (found.lost, found.duplicated) == (1, 0)


def test_a_ledger_that_lost_what_the_checkpoint_counts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.enter(0, 0, "trained", 1)
    size = ledger.flush()
    ledger.enter(1, 1, "trained", 2)
    ledger.flush()
    assert Ledger(path, size).flush() == size == path.stat().st_size
    path.unlink()
    with pytest.raises(FatalError, match=rf"ledger\.jsonl has 0 bytes and had {size}"):
        Ledger(path, size)


def test_audit_finds_what_is_lost_and_what_is_doubled(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.enter(0, 7, "trained", 1)
    size = ledger.flush()
    ledger.enter(1, 8, "trained", 2)
    ledger.flush()
    ledger = Ledger(tmp_path / "ledger.jsonl", size)  # resumes before step 2
    ledger.enter(1, 8, "zero_variance", 2)
    ledger.flush()
    found = audit(tmp_path / "ledger.jsonl", next_sequence=3, pending=[2])
    assert (found.lost, found.duplicated, found.outcomes) == (0, 0, {"trained": 1, "zero_variance": 1})
    ledger.enter(1, 8, "trained", 3)
    ledger.flush()
    found = audit(tmp_path / "ledger.jsonl", next_sequence=4, pending=[2])
    assert (found.lost, found.duplicated) == (1, 1)


def test_routed_tells_the_languages_of_late_steps(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    asked = work(0, ["de", "zh", "ja"]).model_copy(update={"propensities": [1.0, 0.4, 0.2]})
    ledger.enter(0, 7, "trained", 1, work=asked)
    ledger.enter(1, 8, "zero_variance", 2, work=asked)
    ledger.enter(2, 9, "failed", 2)
    ledger.flush()
    assert read_routed(tmp_path / "ledger.jsonl", after=1) == [(8, ["de", "zh", "ja"])]
