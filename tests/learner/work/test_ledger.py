"""The ledger on disk: what is read back, what the audit finds, and a file that does not fit the checkpoint."""

from __future__ import annotations

import tracemalloc
import uuid
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
    assert list(read_routed(tmp_path / "ledger.jsonl", after=1)) == [(8, ["de", "zh", "ja"])]


def test_the_audit_of_a_long_ledger_needs_a_bit_for_each_group(tmp_path: Path) -> None:
    path, groups = tmp_path / "ledger.jsonl", 8_000
    ledger = Ledger(path)
    for sequence in range(groups):
        if sequence != 77:
            ledger.enter(sequence, sequence, "trained", sequence // 8, "x" * 100, work(0, ["de", "zh"]))
    ledger.enter(groups - 1, 0, "failed", 1)
    ledger.flush()
    tracemalloc.start()
    found = audit(path, groups + 2, [groups])
    routed = sum(len(languages) for _, languages in read_routed(path, after=0))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.lost, found.duplicated) == (2, 1) and found.outcomes == {"trained": groups - 1, "failed": 1}
    assert routed == 2 * (groups - 8 - 1)
    assert most < path.stat().st_size / 20


@given(st.lists(st.integers(-2, 30), max_size=40), st.sets(st.integers(0, 19)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_audit_counts_as_sets_do(tmp_path: Path, sequences: list[int], pending: set[int]) -> None:
    path = tmp_path / f"{uuid.uuid4()}.jsonl"
    ledger = Ledger(path)
    for sequence in sequences:
        ledger.enter(sequence, 0, "trained", 1)
    ledger.flush()
    found = audit(path, 20, pending)
    assert found.lost == len(set(range(20)) - pending - set(sequences))
    assert found.duplicated == sum(count > 1 for count in Counter(sequences).values())


def test_the_lines_of_another_run_are_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text("of another run\n")
    with pytest.raises(FatalError, match="holds the lines of another run: move it away"):
        Ledger(path)
    assert path.read_text() == "of another run\n"


def test_a_line_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.enter(0, 0, "trained", 1)
    size = ledger.flush()
    with path.open("ab") as lines:
        lines.write(path.read_bytes()[: size // 2])
    with pytest.raises(FatalError, match=rf"line 2 of the ledger {path} cannot be read"):
        audit(path, 1, [])


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").symlink_to("/dev/full")
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.enter(0, 0, "trained", 1)
    with pytest.raises(FatalError, match=r"cannot write the ledger .*ledger\.jsonl: No space left on device"):
        ledger.flush()
