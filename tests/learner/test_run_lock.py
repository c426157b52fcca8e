"""One learner at a time in run.dir, and what another one left there is kept."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from common.process import FatalError
from learner.former_run import set_aside_former_run
from learner.run_lock import LOCK_FILE, locked

HOLD = "import sys, pathlib, time\nfrom learner.run_lock import locked\nwith locked(pathlib.Path(sys.argv[1])):\n"
HOLD += "    print('locked', flush=True)\n    time.sleep(600)\n"


def test_a_second_learner_is_refused_with_host_and_process_until_the_first_is_gone(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None and first.stdout.readline() == b"locked\n"
        with pytest.raises(FatalError) as refused, locked(directory):
            pass
        first.send_signal(signal.SIGKILL)
    assert str(refused.value).startswith(f"run.dir = {directory} is in use by the learner with process id {first.pid} ")
    assert f"on host {socket.gethostname()}" in str(refused.value)
    for _ in range(2):
        with locked(directory):  # the lock of a dead process holds nobody up
            assert f'"pid": {os.getpid()}' in (directory / LOCK_FILE).read_text()


def test_the_owner_is_unknown_until_it_has_written_its_name(tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / LOCK_FILE).write_text("")
        with pytest.raises(FatalError, match="is in use by another learner: wait until"), locked(tmp_path):
            pass


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(FatalError, match=rf"cannot write to run\.dir = {tmp_path}/file/run: "),
        locked(tmp_path / "file" / "run"),
    ):
        pass


def test_what_an_earlier_run_left_is_moved_and_not_cut(tmp_path: Path) -> None:
    set_aside_former_run(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "ledger.jsonl").write_text("")
    (tmp_path / "logs").mkdir()
    set_aside_former_run(tmp_path)
    assert not list(tmp_path.glob("before-*")), "a run that trained nothing left nothing"
    for number in (1, 2):
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "ledger.jsonl").write_text(f"{number}\n")
        for directory in ("tensorboard/0", "model", "adapter"):
            (tmp_path / directory).mkdir(parents=True)
        set_aside_former_run(tmp_path)
        kept = tmp_path / f"before-{number}"
        assert (kept / "ledger.jsonl").read_text() == f"{number}\n" and (kept / "tensorboard" / "0").is_dir()
        assert (kept / "model").is_dir() and (kept / "adapter").is_dir()
        assert sorted(path.name for path in tmp_path.iterdir() if path.name[:6] != "before") == ["logs"]
