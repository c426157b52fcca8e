"""Checkpoints before the first step, on a full disk, and cut off anywhere."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import resource
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common import wire
from common.process import FatalError
from learner import checkpoint
from learner.checkpoint import Checkpoint, Checkpoints
from learner.train.trainer import Trainer
from learner.work.ledger import Ledger
from tests.support.train_once import configuration, copied_weights, random_batch, run_ranks


def save_before_the_first_step(out: Path, model: Path) -> None:
    """Weights after the first step: of a run, of one that has saved before, and of one that resumed from there."""
    checkpoints, weights = Checkpoints(out.parent / "checkpoints", 1), []
    for saves, resumes in ((False, False), (True, False), (False, True)):
        trainer = Trainer(configuration(model))
        if saves:
            checkpoints.save(trainer.policy, trainer.optimizer, 0, {})
            checkpoints.wait()
        if resumes:
            latest = checkpoints.latest()
            assert latest is not None
            checkpoints.load(latest.path, trainer.policy, trainer.optimizer)
        assert not trainer.step(random_batch(1), 0).problem
        weights.append(copied_weights(trainer))
    torch.save(weights, out)


def test_a_checkpoint_before_the_first_step_does_not_change_it(tiny_policy: Path, tmp_path: Path) -> None:
    """Torch would count its making of the optimizer's state as a step; the next one is then 0.735 times as large."""
    assert run_ranks(1, save_before_the_first_step, tmp_path / "weights", tiny_policy) == [0]
    alone, saved, resumed = torch.load(tmp_path / "weights")
    for name, value in alone.items():
        assert torch.equal(value, saved[name]) and torch.equal(value, resumed[name]), name


def resume_from_another_model(out: Path, model: Path) -> None:
    """What is said where model.path has other weights than at the beginning; the model is rewritten meanwhile."""
    root, told = out.parent / "checkpoints", []

    def resume(*flags: str, save_as: int = 0) -> str:
        trainer, checkpoints = Trainer(configuration(model, *flags)), Checkpoints(root, 9)
        latest = checkpoints.latest()
        try:
            if latest is not None:
                checkpoints.load(latest.path, trainer.policy, trainer.optimizer, trainer.reference.copy)
        except FatalError as error:
            return str(error)
        if save_as:
            checkpoints.save(trainer.policy, trainer.optimizer, save_as, {})
            checkpoints.wait()
        return ""

    told.append(resume(save_as=1))
    told.append(resume())
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][3] += 0.1
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    told.append(resume())
    told.append(resume("--learner.kl", "0", save_as=2))
    told.append(resume())
    for path in root.glob("step-*/base.json"):
        path.unlink()
    for path in root.glob("step-*/manifest.json"):
        digests = json.loads(path.read_text())
        del digests["base.json"]
        path.write_text(json.dumps(digests))
    told.append(resume())
    out.write_text(json.dumps(told))


def test_the_model_that_the_penalty_is_to_cannot_be_exchanged(tiny_policy: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_policy, model)
    output = tmp_path / "log"
    assert run_ranks(1, resume_from_another_model, tmp_path / "told", model, output=output) == [0], output.read_text()
    begun, same, other, without_kl, with_kl_again, of_an_older_program = json.loads((tmp_path / "told").read_text())
    assert begun == same == without_kl == of_an_older_program == ""
    for message in (other, with_kl_again):
        assert re.fullmatch(r"cannot resume from .*: the model at model\.path is another one than .* run\.dir", message)


def cut_and_resume(out: Path, model: Path) -> None:
    """What is resumed, and what is said, with each file of the newest checkpoint cut at several places."""
    logging.basicConfig(filename=out.parent / "cut.log", force=True)
    root = out.parent / "checkpoints"
    trainer, checkpoints = Trainer(configuration(model)), Checkpoints(root, 2)
    ledger = Ledger(out.parent / "ledger.jsonl")
    for step in (1, 2):
        ledger.enter(step, 0, "trained", step)
        state = {"step": step, "ledger_size": ledger.flush()}
        checkpoints.save(trainer.policy, trainer.optimizer, step, state, random_batch(step, 1), depends_on=[out.parent])
        checkpoints.wait()
    whole, found = out.parent / "whole", []
    shutil.copytree(root, whole)
    for path in sorted((whole / "step-000002").iterdir()):
        size = path.stat().st_size
        for kept in (0, 1, size // 2, size - 1, size):
            shutil.rmtree(root)
            shutil.copytree(whole, root)
            with (root / "step-000002" / path.name).open("ab") as file:
                file.truncate(kept)
            latest = checkpoints.latest()
            assert latest is not None and latest.state["step"] == (2 if kept == size else 1), (path, kept)
            assert len(latest.read_queued()) == 2
            logged = (out.parent / "cut.log").read_text()
            assert kept == size or path.name in logged.splitlines()[-1], logged
            found.append((path.name, kept))
    out.write_text(json.dumps(found))


def test_wherever_a_file_is_cut_the_run_resumes_and_says_which(tiny_policy: Path, tmp_path: Path) -> None:
    assert run_ranks(1, cut_and_resume, tmp_path / "found", tiny_policy, output=tmp_path / "log") == [0], (
        tmp_path / "log"
    ).read_text()
    names = {name for name, _ in json.loads((tmp_path / "found").read_text())}
    assert {"run.json", "queued.msgpack", "manifest.json", ".metadata"} <= names and len(names) >= 5


def test_groups_that_another_version_wrote_are_named(tmp_path: Path) -> None:
    (tmp_path / "queued.msgpack").write_bytes(wire.encode([{"something": 1}]))
    with pytest.raises(
        FatalError, match=rf"cannot resume from {tmp_path}/queued\.msgpack: .*something.*another version"
    ):
        Checkpoint(tmp_path, {}).read_queued()


def test_a_ledger_is_resumed_or_said_to_be_short_wherever_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    sizes = []
    for sequence in range(3):
        ledger.enter(sequence, 0, "trained", sequence)
        sizes.append(ledger.flush())
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        if size < sizes[1]:
            with pytest.raises(FatalError, match=rf"ledger\.jsonl has {size} bytes and had {sizes[1]}"):
                Ledger(path, sizes[1])
            assert path.read_bytes() == whole[:size]
        else:
            assert Ledger(path, sizes[1]).flush() == sizes[1] and path.read_bytes() == whole[: sizes[1]]


def save_on_a_full_disk(out: Path, model: Path) -> None:
    """The limit of the size of a file stands for a full disk: writing beyond it fails."""
    trainer, checkpoints = Trainer(configuration(model)), Checkpoints(out.parent / "checkpoints", 2)
    checkpoints.save(trainer.policy, trainer.optimizer, 1, {"step": 1})
    checkpoints.wait()
    told = []
    for limit, state in ((100, {"much": "x" * 1000}), (20_000, {})):  # in the state; in the weights
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            with pytest.raises(FatalError) as error:
                checkpoints.save(trainer.policy, trainer.optimizer, 2, state)
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        told.append(str(error.value))
    latest = checkpoints.latest()
    assert latest is not None and latest.state["step"] == 1
    checkpoints.save(trainer.policy, trainer.optimizer, 2, {"step": 2})
    checkpoints.wait()
    out.write_text(json.dumps([*told, *sorted(path.name for path in (out.parent / "checkpoints").iterdir())]))


def test_a_full_disk_is_one_sentence_and_the_checkpoint_before_it_stays(tiny_policy: Path, tmp_path: Path) -> None:
    assert run_ranks(1, save_on_a_full_disk, tmp_path / "told", tiny_policy, output=tmp_path / "log") == [0], (
        tmp_path / "log"
    ).read_text()
    *told, first, second = json.loads((tmp_path / "told").read_text())
    assert (first, second) == ("step-000001", "step-000002")
    for message in told:
        assert message.startswith(f"cannot write the checkpoint {tmp_path}/checkpoints/step-000002: ")
        assert "File too large" in message and "\n" not in message and "kept (step-000001)" in message


def save_steps_that_train_nothing(out: Path, model: Path) -> None:
    """Which checkpoints there are after each, where the steps after the third train nothing, and the seventh does."""
    trainer, found = Trainer(configuration(model)), list[list[str]]()
    checkpoints = Checkpoints(out.parent / "checkpoints", 1)
    for step, sound in ((2, 2), (3, 3), (5, 3), (6, 3), (7, None), (8, 8)):
        checkpoints.save(trainer.policy, trainer.optimizer, step, {}, sound=sound)
        checkpoints.wait()
        found.append(sorted(path.name.removeprefix("step-00000") for path in (out.parent / "checkpoints").iterdir()))
    out.write_text(json.dumps(found))


def test_the_last_checkpoint_from_before_steps_that_train_nothing_is_kept(tiny_policy: Path, tmp_path: Path) -> None:
    assert run_ranks(1, save_steps_that_train_nothing, tmp_path / "found", tiny_policy) == [0]
    found = json.loads((tmp_path / "found").read_text())
    assert found == [["2"], ["3"], ["3", "5"], ["3", "6"], ["7"], ["8"]]


def save_beside_copies(out: Path, model: Path) -> None:
    """Whoever wants to keep a checkpoint copies it under another name, right beside the others."""
    root = out.parent / "checkpoints"
    trainer, checkpoints = Trainer(configuration(model)), Checkpoints(root, 1)
    for step in (1, 2, 3):
        checkpoints.save(trainer.policy, trainer.optimizer, step, {"step": step}, sound=step)
        checkpoints.wait()
        if step == 1:
            for copy in ("step-000001-best", "step-000009-best"):
                shutil.copytree(root / "step-000001", root / copy)
    latest = checkpoints.latest()
    assert latest is not None and latest.state["step"] == 3
    out.write_text(json.dumps(sorted(path.name for path in root.iterdir())))


def test_a_copy_beside_the_checkpoints_is_neither_counted_nor_removed(tiny_policy: Path, tmp_path: Path) -> None:
    assert run_ranks(1, save_beside_copies, tmp_path / "left", tiny_policy, output=tmp_path / "log") == [0], (
        tmp_path / "log"
    ).read_text()
    assert json.loads((tmp_path / "left").read_text()) == ["step-000001-best", "step-000003", "step-000009-best"]


def save_where_nothing_can_be_removed(out: Path, model: Path) -> None:
    """As on a network file system on which somebody has a file of the directory open."""
    logging.basicConfig(filename=out.parent / "removal.log", force=True)
    root = out.parent / "checkpoints"
    trainer, checkpoints = Trainer(configuration(model)), Checkpoints(root, 1)

    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)

    remove, shutil.rmtree = shutil.rmtree, refuse  # type: ignore[assignment]
    for step in (1, 2):
        checkpoints.save(trainer.policy, trainer.optimizer, step, {"step": step})
        checkpoints.wait()
    (root / "step-000003.partial").mkdir()
    latest = checkpoints.latest()
    assert latest is not None and latest.state["step"] == 2
    stayed = sorted(path.name for path in root.iterdir())
    with pytest.raises(FatalError, match="step-000003: Directory not empty"):
        checkpoints.save(trainer.policy, trainer.optimizer, 3, {})
    shutil.rmtree = remove
    checkpoints.save(trainer.policy, trainer.optimizer, 3, {})
    checkpoints.wait()
    out.write_text(json.dumps([stayed, sorted(path.name for path in root.iterdir())]))


def test_a_directory_that_cannot_be_removed_ends_no_run_and_is_removed_when_it_can_be(
    tiny_policy: Path, tmp_path: Path
) -> None:
    assert run_ranks(1, save_where_nothing_can_be_removed, tmp_path / "told", tiny_policy, output=tmp_path / "log") == [
        0
    ], (tmp_path / "log").read_text()
    stayed, left = json.loads((tmp_path / "told").read_text())
    assert stayed == ["step-000001", "step-000002", "step-000003.partial"] and left == ["step-000003"]
    logged = (tmp_path / "removal.log").read_text()
    for what in ("the old checkpoint", "the half-written checkpoint"):
        assert f"{what} {tmp_path}/checkpoints/step-00000" in logged and "stays: Directory not empty" in logged


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name_and_after_what_it_depends_on(
    tiny_policy: Path, tmp_path: Path
) -> None:
    assert run_ranks(1, order_of_syncs, tmp_path / "order", tiny_policy, output=tmp_path / "log") == [0], (
        tmp_path / "log"
    ).read_text()
    *before, last = json.loads((tmp_path / "order").read_text())
    partial = "checkpoints/step-000001.partial"
    assert last == "checkpoints", "the new name"
    assert before[:2] == ["ledger.jsonl", "."] and before[-1] == partial
    files = {"run.json", "queued.msgpack", "manifest.json", ".metadata"}
    assert {f"{partial}/{name}" for name in files} <= set(before[1:-1])


def order_of_syncs(out: Path, model: Path) -> None:
    order, sync = [], checkpoint.sync_to_disk

    def noted(path: Path) -> None:
        order.append(str(path.relative_to(out.parent)))
        sync(path)

    checkpoint.sync_to_disk = noted
    trainer, checkpoints = Trainer(configuration(model)), Checkpoints(out.parent / "checkpoints", 2)
    ledger = out.parent / "ledger.jsonl"
    ledger.write_text("line\n")
    checkpoints.save(trainer.policy, trainer.optimizer, 1, {}, depends_on=[ledger])
    checkpoints.wait()
    out.write_text(json.dumps(order))


def save_to_a_disk_that_hangs(out: Path, model: Path) -> None:
    mended, sync = threading.Event(), checkpoint.sync_to_disk

    def hang(path: Path) -> None:
        assert mended.wait(600)
        sync(path)

    checkpoint._DISK_S, checkpoint.sync_to_disk = 0.5, hang
    trainer, checkpoints = Trainer(configuration(model)), Checkpoints(out.parent / "checkpoints", 2)
    told = []
    for wait in (checkpoints.wait, lambda: checkpoints.save(trainer.policy, trainer.optimizer, 2, {})):
        checkpoints.save(trainer.policy, trainer.optimizer, 1, {})
        with pytest.raises(FatalError) as error:
            wait()
        told.append(str(error.value))
    mended.set()
    out.write_text(json.dumps(told))


def test_a_disk_that_hangs_is_not_waited_for_without_end(tiny_policy: Path, tmp_path: Path) -> None:
    assert run_ranks(1, save_to_a_disk_that_hangs, tmp_path / "told", tiny_policy, output=tmp_path / "log") == [0], (
        tmp_path / "log"
    ).read_text()
    late = rf"the checkpoint {tmp_path}/checkpoints/step-000001 of \d+ MB is still not on the disk"
    for message in json.loads((tmp_path / "told").read_text()):
        assert re.match(late, message)
