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
from tests.support.train_once import configuration, record_steps, record_with_a_resume, run_ranks

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


def test_a_replay_goes_on_with_the_configuration_of_a_resume(tiny_policy: Path, tmp_path: Path) -> None:
    first = ["--learner.lr_schedule", "linear", "--learner.steps", "4", "--learner.minibatches", "2"]
    second = ["--learner.lr_schedule", "linear", "--learner.steps", "9", "--learner.kl", "0.2", "--learner.passes", "2"]
    record = tmp_path / "record"
    assert run_ranks(2, record_with_a_resume, record, tiny_policy, first, second, output=tmp_path / "log") == [0, 0], (
        tmp_path / "log"
    ).read_text()
    assert [*recording.later_configurations(record)] == [3]
    assert recording.read(record)[0].learner.steps == 4
    alike, written = record / "config-from-step-000002.json", record / "config.json"
    alike.write_text(written.read_text().replace('"evaluate_every": 0', '"evaluate_every": 3'))
    assert run_ranks(2, replay, record, output=tmp_path / "replayed") == [0, 0], (tmp_path / "replayed").read_text()
    lines = [line for line in (tmp_path / "replayed").read_text().splitlines() if "step" in line]
    assert lines[-1] == "4 steps, 0 of them differ", lines
    assert "from step 3 on with the configuration that the run resumed with" in lines
    assert not any(line.startswith("from step 2") for line in lines), "what it changes is not of the training"
    assert not [*record.glob("replay-*")]


def test_a_recording_keeps_each_configuration_with_its_first_step(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "run")
    config, _ = recording.read(tmp_path / "run")

    def resumed(step: int, **changed: object) -> list[int]:
        learner = config.learner.model_copy(update=changed)
        recording.begin(tmp_path / "run", config.model_copy(update={"learner": learner}), step)
        return [int(path.stem[-6:]) for path in sorted((tmp_path / "run").glob("config-from-step-*"))]

    assert resumed(2) == [], "the same"
    assert resumed(2, lr=1e-4) == [3] and recording.later_configurations(tmp_path / "run") == {}, "of no step yet"
    shutil.copy(recorded / "step-000003.msgpack", tmp_path / "run")
    assert recording.later_configurations(tmp_path / "run")[3].learner.lr == 1e-4
    assert resumed(3, lr=1e-4) == [3] and resumed(3, lr=1e-5) == [3, 4]
    assert resumed(2) == [], "the steps of the others are undone"
    assert recording.read(tmp_path / "run")[0] == config
    assert resumed(2, ranks=1) == [3]
    shutil.copy(recorded / "step-000003.msgpack", tmp_path / "run")
    done = processes.run(
        [sys.executable, "-m", "learner.replay", str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True,
        timeout=400,
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: the recorded run had 2 learner ranks until step 2 and 1 from step 3 on" in done.stderr


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
