"""A recorded run is trained again without actors, and comes out the same to the last bit, or says where it differs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from common import wire
from common.process import FatalError
from learner import recording
from learner.replay import replay
from tests.support import processes
from tests.support.train_once import configuration, record_steps, run_ranks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recorded(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded")
    flags = ["--learner.ranks", "2", "--learner.microbatch_tokens", "90"]
    assert run_ranks(2, record_steps, path, tiny_policy, 3, *flags) == [0, 0]
    return path


def test_replay_is_exact_and_notices_a_change(recorded: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "learner.replay", str(recorded)]
    done = processes.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "3 steps, 0 of them differ"

    shutil.copytree(recorded, tmp_path / "changed")
    path = tmp_path / "changed" / "step-000002.msgpack"
    step = wire.unpack(path.read_bytes(), recording.Step)
    path.write_bytes(wire.encode(step.model_copy(update={"groups": step.groups[1:]})))
    assert run_ranks(2, replay, tmp_path / "changed", output=tmp_path / "log") == [0, 0]
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if "step" in line]
    assert "as recorded" in lines[0] and f"recorded {step.loss!r}" in lines[1]
    assert lines[-1] == "3 steps, 2 of them differ", "from the changed step on"


def test_a_record_with_a_gap_or_a_broken_file_is_refused(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(FatalError, match=f"{tmp_path} is no record"):
        recording.read(tmp_path)
    shutil.copytree(recorded, tmp_path / "cut")
    (tmp_path / "cut" / "step-000002.msgpack").write_bytes(b"\x81")
    with pytest.raises(FatalError, match=r"step-000002\.msgpack is damaged"):
        list(recording.read(tmp_path / "cut")[1])
    (tmp_path / "cut" / "step-000001.msgpack").unlink()
    with pytest.raises(FatalError, match="lacks step 1"):
        recording.read(tmp_path / "cut")


def test_a_resumed_run_forgets_the_steps_that_were_undone(recorded: Path, tmp_path: Path, tiny_policy: Path) -> None:
    shutil.copytree(recorded, tmp_path / "run")
    recording.begin(tmp_path / "run", configuration(tiny_policy), step=1)
    assert [step.number for step in recording.read(tmp_path / "run")[1]] == [1]
