"""One learner at a time in run.dir, and what another one left there is kept."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.config import load
from common.process import FatalError
from learner import launch, run_lock
from learner.former_run import set_aside_former_run
from learner.run_lock import LOCK_FILE, await_former, locked
from learner.supervision import CONNECTED_AGAIN

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


SAVE = "import sys, pathlib, time\nfrom learner.run_lock import locked\nwith locked(pathlib.Path(sys.argv[1])):\n"
SAVE += "    print('locked', flush=True)\n    sys.stdin.read()\n    time.sleep(2)\n"


def test_a_learner_that_is_connected_again_waits_for_the_one_that_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(CONNECTED_AGAIN, "1")
    caplog.set_level("INFO")
    command = [sys.executable, "-c", SAVE, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdin is not None and first.stdout is not None and first.stdout.readline() == b"locked\n"
        first.stdin.close()
        began = time.monotonic()
        await_former(tmp_path)
        assert time.monotonic() - began > 1, "it was still saving"
    assert f"waiting until the learner with process id {first.pid} on host {socket.gethostname()}" in caplog.text
    with locked(tmp_path):
        monkeypatch.delenv(CONNECTED_AGAIN)
        await_former(tmp_path)  # of a learner that nobody has cut off, which ``locked`` tells at once
        monkeypatch.setenv(CONNECTED_AGAIN, "1")
        monkeypatch.setattr(run_lock, "_FORMER_S", 1.0)
        with pytest.raises(
            FatalError, match=rf"in use by the learner with process id {os.getpid()} .*, after 1 s still"
        ):
            await_former(tmp_path)
        with pytest.raises(FatalError, match="after 1 s still"):  # before there are ranks, which wait for each other
            launch.run(load(["--run.dir", str(tmp_path)]))


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
