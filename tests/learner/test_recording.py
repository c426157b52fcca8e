"""A step that cannot be written ends the run with an error that names the file."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from common.config import load
from common.process import FatalError
from learner import recording
from learner.groups import Group, StepResult
from learner.recording import Recorder
from tests.support.groups import random_rollout, seeded_generator, work


@contextmanager
def files_of_at_most(bytes_: int) -> Iterator[None]:
    """No file can grow further, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def a_step(problem: str = "") -> tuple[list[Group], StepResult]:
    generator = seeded_generator()
    group = Group(work=work(0, ["en", "de"]), actor="a", rollouts=[random_rollout(generator) for _ in range(2)])
    return [group], StepResult(means={"loss": 1.0}, by_language={}, fill=1.0, grad_norm=1.0, lr=0.0, problem=problem)


def test_a_step_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    skipped, every_step = tmp_path / "run" / "skipped", tmp_path / "record"
    for recorder, problem, path in [
        (Recorder(every_step, skipped), "", every_step / "step-000007.msgpack"),
        (Recorder(None, skipped), "the loss is nan", skipped / "step-000007.msgpack"),
    ]:
        with files_of_at_most(100), pytest.raises(FatalError, match=f"cannot record step 7 in {path}: File too large"):
            recorder.record(7, *a_step(problem))
        assert not any(path.parent.iterdir()), "what was written of it would only take up room"
        recorder.record(7, *a_step(problem))
        assert [found.name for found in path.parent.iterdir()] == ["step-000007.msgpack"]


def test_what_was_skipped_of_steps_that_a_resume_undoes_is_removed(tmp_path: Path) -> None:
    skipped = tmp_path / "skipped"
    recording.undo(skipped, 3)
    assert not skipped.exists()
    for number in (2, 3, 4):
        recording.write(skipped, number, *a_step("the loss is nan"))
    shutil.copy(skipped / "step-000004.msgpack", skipped / "step-000004-odd.msgpack")
    recording.undo(skipped, 3)
    left = ["step-000002.msgpack", "step-000003.msgpack", "step-000004-odd.msgpack"]
    assert sorted(path.name for path in skipped.iterdir()) == left, "the copy is somebody's own"


def test_what_was_skipped_of_a_step_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    groups, result = a_step("not finite: loss")
    for steps, left_out in ((16, 1), (4, 4)):
        Recorder(None, tmp_path).record(7, groups, replace(result, optimizer_steps=steps, left_out=left_out))
    first, second = caplog.messages
    assert first.startswith("in step 7, 1 of 16 optimizer steps are skipped, not finite: loss; its groups are in ")
    assert second.startswith("step 7 is skipped, not finite: loss; its groups are in ")


def test_no_more_than_so_many_skipped_steps_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    most = recording._SKIPPED_KEPT
    for number in range(1, most + 3):
        Recorder(None, tmp_path).record(number, *a_step("not finite: loss"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{n:06d}.msgpack" for n in range(1, most + 1)]
    assert len(caplog.messages) == most + 2, "each is told"
    assert caplog.messages[-1].endswith(f"no more than {most} such steps are kept in {tmp_path}")


@pytest.mark.parametrize(
    "spoil",
    [lambda path: path.write_text("a file"), lambda path: (path / "config.json").mkdir(parents=True)],
    ids=["it is a file", "the configuration is a directory"],
)
def test_a_directory_that_cannot_be_written_is_named(spoil: Callable[[Path], object], tmp_path: Path) -> None:
    spoil(tmp_path / "record")
    with pytest.raises(FatalError, match=f"cannot write to learner.record = {tmp_path / 'record'}: .*"):
        recording.begin(tmp_path / "record", load([]), step=1)


@pytest.mark.parametrize(
    "spoil",
    [lambda path: path.write_bytes(b"\xff"), lambda path: (path.unlink(), path.mkdir())],
    ids=["no UTF-8", "a directory"],
)
def test_a_record_that_cannot_be_read_is_named(spoil: Callable[[Path], object], tmp_path: Path) -> None:
    recording.begin(tmp_path, load([]), step=0)
    recording.write(tmp_path, 1, *a_step())
    spoil(tmp_path / "step-000001.msgpack")
    with pytest.raises(FatalError, match=r"step-000001\.msgpack is damaged"):
        list(recording.read(tmp_path)[1])
    spoil(tmp_path / "config.json")
    with pytest.raises(FatalError, match=f"{tmp_path} is no record of a run"):
        recording.read(tmp_path)
