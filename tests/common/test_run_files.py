"""Directories of a run's processes: deleted at the end, or by the next process of the run where one was killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.config import load
from common.run_files import delete_left_behind, owned_directory, sync_of_run

HOLDER = """
import sys, time
from pathlib import Path
from common.run_files import owned_directory
with owned_directory(Path(sys.argv[1])) as directory:
    (directory / "adapter").write_text("weights")
    print(directory, flush=True)
    time.sleep(3600)
"""


def held_by_another_process(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(parent)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    run, other_run = (
        sync_of_run(load(["--run.dir", str(tmp_path / name), "--sync.directory", str(tmp_path / "files")])).directory
        for name in ("run", "other")
    )
    assert run != other_run and run.parent == other_run.parent == tmp_path / "files"
    (killed, left), (alive, kept), (of_other, foreign) = map(held_by_another_process, (run, run, other_run))
    users_own = run / "notes"
    users_own.mkdir()
    try:
        for process in (killed, of_other):
            process.kill()
            process.wait()
        assert left.exists() and (foreign / "adapter").exists(), "they could not delete it themselves"
        with owned_directory(run) as own:
            assert not left.exists()
            assert (kept / "adapter").exists() and users_own.exists() and (foreign / "adapter").exists()
            assert own.parent == run and own not in (left, kept)
        assert not own.exists() and kept.exists()
    finally:
        alive.kill()
        alive.wait()


@pytest.mark.parametrize(
    ("changed", "deleted"),
    [({}, True), ({"boot": "before"}, True), ({"host": "container"}, True), ({"host": "x", "boot": "y"}, False)],
    ids=["killed here", "before a reboot", "in a container", "on another host"],
)
def test_a_directory_of_another_host_is_left_alone_though_its_lock_looks_free(
    changed: dict[str, str], deleted: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On some file systems a lock is seen on its own host alone."""
    process, left = held_by_another_process(tmp_path)
    process.kill()
    process.wait()
    owner = json.loads((left / "owner.lock").read_text())
    assert owner["host"] and owner["boot"]
    (left / "owner.lock").write_text(json.dumps(owner | changed))
    for _ in range(2):
        delete_left_behind(tmp_path)
    assert left.exists() != deleted
    warnings = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert len(warnings) == (not deleted), "it is told once"
    if warnings:
        assert f"{left} was made by a process of this run on host x, and is not deleted" in warnings[0]
        assert "Delete it if no process of this run runs on x" in warnings[0]


def test_a_directory_of_an_earlier_version_stays_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = tmp_path / "0a1b2c3d"
    left.mkdir()
    (left / "owner.lock").write_text("")
    for _ in range(2):
        delete_left_behind(tmp_path)
    assert left.exists()
    (warning,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert str(left) in warning and "Delete it if" in warning


def test_the_directory_and_an_empty_one_above_it_go_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), owned_directory(tmp_path / "run") as own:
        (own / "weights").write_text("")
        raise ZeroDivisionError
    assert not (tmp_path / "run").exists() and tmp_path.exists()


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError), owned_directory(tmp_path / "file"):
        pass
