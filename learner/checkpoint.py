"""Checkpoints, written while training goes on, whole or not at all.

What is in one is said by :class:`Checkpoints`; what the run's state in ``run.json`` holds, by ``learner.state``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from torch.distributed.checkpoint.state_dict_saver import async_save

from common import wire
from common.process import FatalError
from learner.groups import Group
from learner.ranks import broadcast
from learner.train.lora import check_same_adapters, is_reference, saved_parameters
from learner.train.model_digest import check_same_model
from learner.train.optimizer import as_plain_tensors, check_same_state, describe_state, initialise
from learner.train.policy import Policy
from learner.train.reference import ReferenceState
from learner.weights.deadlines import SHARE_OF_COLLECTIVE

log = logging.getLogger("learner.checkpoint")

STATE_FILE = "run.json"
_ADAPTERS_FILE = "adapters.json"  # only where adapters are trained: which they are
_OPTIMIZER_FILE = "optimizer.json"  # only where its state is not in float32: in which form it is
_BASE_FILE = "base.json"  # only where the reference policy is the model that the run began with: its digest
_REFERENCE = "anchor"  # begins the names of the reference policy's tensors
_REFERENCE_FILE = "anchor.json"  # for which stage of the run the reference was last set
_QUEUED_FILE, _MANIFEST_FILE = "queued.msgpack", "manifest.json"
_NAME = re.compile("step-[0-9]+")  # of a whole checkpoint
_PARTIAL, _DAMAGED = ".partial", ".damaged"  # suffixes of directories that are no checkpoints
_DISK_S, _DISK_MB_PER_S = 600.0, 20.0  # a file system that stalls, and the slowest that is put up with
_FINISH_S = 5.0  # what a run that has failed gives the checkpoint that is being written


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, without the weights.

    Args:
        path: its directory.
        state: what rank 0 gave to be kept; JSON.
    """

    path: Path
    state: dict[str, Any]

    @property
    def has_reference_adapters(self) -> bool:
        """Whether it has adapters of the reference policy, for which those of the policy have to be made."""
        return any(map(is_reference, _tensors(self.path)))

    def read_queued(self) -> list[Group]:
        """The groups that were finished and had not been trained; read after the version in ``state`` was looked at.

        Raises:
            FatalError: another version of the program wrote them.
        """
        file = self.path / _QUEUED_FILE
        try:
            return wire.unpack(file.read_bytes(), list[Group])
        except wire.WireError as error:
            raise FatalError(
                f"cannot resume from {file}: {error}. It is as it was written, by another version of the program: "
                "finish the run with that one, or begin anew in another run.dir"
            ) from None


class Checkpoints:
    """The directories ``step-000010`` under ``root``: sharded model and optimizer, ``queued.msgpack``, ``run.json``.

    Where adapters are trained they take the place of the model, and ``adapters.json`` says which they are. Where the
    state of the optimizer is in 8 bits, ``optimizer.json`` says so. ``anchor.json`` says of which stage of the run the
    reference policy is. Where there is a KL penalty and all weights are trained, ``base.json`` has the digest of the
    model that the run began with.

    One is written under another name and renamed when it is complete, with the SHA-256 of every file. Before that, all
    its files and those that it depends on are on the disk, so that it is whole after a power cut if it is there at all.
    On reading, one that does not agree with its digests is named in the log and set aside, and the one before it is
    used.

    All ranks make this object together.

    Args:
        root: the directory.
        kept: how many of the newest to keep, besides the last one from before steps that trained nothing.
        collective_s: how long the ranks wait for one another in a collective; infinite where there is one rank.
    """

    def __init__(self, root: Path, kept: int, collective_s: float = math.inf) -> None:
        self._root, self._kept, self._collective_s = root, kept, collective_s
        # A group of its own: on the default group a save that runs beside the training deadlocks.
        timeout = timedelta(seconds=collective_s) if math.isfinite(collective_s) else None
        self._group = dist.new_group(backend="gloo", timeout=timeout)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._path, self._bytes, self._due = root, 0, 0.0  # of the one that is being written; due by time.monotonic()

    def save(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        step: int,
        state: Mapping[str, Any],
        queued: Sequence[Group] = (),
        reference: Policy | None = None,
        depends_on: Sequence[Path] = (),
        reference_stage: int | None = None,
        sound: int | None = None,
    ) -> None:
        """Begins to write a checkpoint; all ranks call it together.

        Blocks until the one before it is written and the tensors of this one are copied.

        Args:
            step: how many steps were trained.
            state: JSON; what rank 0 gives is kept.
            queued: as ``state``.
            reference: the policy that the KL is taken to, where it is no longer the one the run began with.
            reference_stage: the stage for which the reference was last set, from 0; None where nobody knows.
            depends_on: files without which the state means nothing, as they are now; they reach the disk before it.
            sound: the last step before those in a row that trained nothing, as rank 0 gives it: of the checkpoints
                until there the newest is kept in any case; None: this step.

        Raises:
            FatalError: the checkpoint before it could not be written, or this one cannot.
        """
        self.wait()
        partial = self._root / f"step-{step:06d}{_PARTIAL}"
        if dist.get_rank() == 0:
            try:
                if partial.exists():
                    shutil.rmtree(partial)
                partial.mkdir(parents=True)
                (partial / STATE_FILE).write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
                (partial / _QUEUED_FILE).write_bytes(wire.encode(list(queued)))
                adapters = None if policy.adapters is None else policy.adapters.description()
                stage = None if reference_stage is None else {"stage": reference_stage}
                base = None if policy.base is None else {"base": policy.base}
                for name, described in (
                    (_ADAPTERS_FILE, adapters),
                    (_OPTIMIZER_FILE, describe_state(optimizer)),
                    (_REFERENCE_FILE, stage),
                    (_BASE_FILE, base),
                ):
                    if described is not None:
                        (partial / name).write_text(json.dumps(described), encoding="utf-8")
            except OSError as error:
                self._fail(partial, error)
        dist.barrier(group=self._group)
        initialise(optimizer)
        model, optim = get_state_dict(policy, optimizer)
        model = saved_parameters(model, policy.adapters)
        plain, parts = as_plain_tensors(optim)
        tensors: dict[str, Any] = {"model": model, "optim": plain, "optim_parts": parts}
        if reference is not None:
            tensors[_REFERENCE] = get_model_state_dict(reference)
        self._path, self._bytes = partial.with_suffix(""), _bytes_of(tensors)
        self._due = time.monotonic() + _deadline_s(self._bytes, self._collective_s)
        written = async_save(tensors, checkpoint_id=partial, process_group=self._group)
        assert isinstance(written, Future)
        self._writing = self._thread.submit(self._complete_when_written, written, partial, list(depends_on), sound)

    def poll(self) -> None:
        """Does not block. Raises the FatalError of a checkpoint that could not be written; call it once a step."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Blocks until the checkpoint that is being written is whole.

        Raises:
            FatalError: it could not be written, or was not within the deadline of ``learner/weights/deadlines.py``.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        wait_for([writing], max(0.0, self._due - time.monotonic()))
        if not writing.done():
            raise FatalError(
                f"the checkpoint {self._path} of {self._bytes / 1e6:.0f} MB is still not on the disk after "
                f"{_deadline_s(self._bytes, self._collective_s):.0f} s: does the file system there hang? "
                "Mend it and give the same command again"
            )
        writing.result()

    def finish(self) -> None:
        """Gives the checkpoint that is being written a few seconds more, before a run that has failed ends."""
        if self._writing is not None:
            wait_for([self._writing], _FINISH_S)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint; None where there is none at all. All ranks call it together.

        Raises:
            FatalError: there are checkpoints, and none is whole.
        """
        name = broadcast(str(self._newest_whole() or "").encode() if dist.get_rank() == 0 else b"").decode()
        if not name:
            return None
        path = Path(name)
        return Checkpoint(path, json.loads((path / STATE_FILE).read_text(encoding="utf-8")))

    def load(
        self, path: Path, policy: Policy, optimizer: torch.optim.Optimizer, reference: Policy | None = None
    ) -> ReferenceState:
        """Fills model and optimizer, and the reference if the checkpoint has one; all ranks, however many, call it.

        Returns:
            ``moved``: the checkpoint has a reference policy of its own, and the one given, or the adapters of the
            reference, were filled with it.
            ``stage``: as it was saved; None where it was not.

        Raises:
            FatalError: the checkpoint is damaged, of another model, of other adapters, or of another form of optimizer;
                or the reference policy is the model that the run began with, and another one was loaded.
            ValueError: it has adapters of the reference policy, and those of ``policy`` were made without.
        """
        check_same_adapters(_read_description(path / _ADAPTERS_FILE), policy.adapters, str(path))
        check_same_state(_read_description(path / _OPTIMIZER_FILE), optimizer, str(path))
        saved = _tensors(path)
        if policy.adapters is not None and not policy.adapters.reference_moves and any(map(is_reference, saved)):
            raise ValueError(f"{path} has adapters of the reference policy, and these were made without")
        has_reference = reference is not None and any(name.startswith(f"{_REFERENCE}.") for name in saved)
        base = (_read_description(path / _BASE_FILE) or {}).get("base")
        if not has_reference:
            check_same_model(base, policy.base, str(path))
        policy.base = base or policy.base  # also where the KL is off and nothing depends on it for now
        initialise(optimizer)
        model, optim = get_state_dict(policy, optimizer)
        # Adapters of the reference are not there where the run did not move it until now.
        model = {
            name: value
            for name, value in saved_parameters(model, policy.adapters).items()
            if not is_reference(name) or f"model.{name}" in saved
        }
        plain, parts = as_plain_tensors(optim)
        tensors: dict[str, Any] = {"model": model, "optim": plain, "optim_parts": parts}
        if reference is not None and has_reference:
            tensors[_REFERENCE] = get_model_state_dict(reference)
        try:
            load_sharded(tensors, checkpoint_id=path)
        except CheckpointException as error:
            causes = sorted({str(cause) for cause, _ in error.failures.values()})
            raise FatalError(
                f"cannot resume from {path}: {'; '.join(causes)}. Is model.path still the model the run began with?"
            ) from None
        options = StateDictOptions(strict=policy.adapters is None)  # what is frozen is not in the checkpoint
        set_state_dict(policy, optimizer, model_state_dict=model, optim_state_dict=optim, options=options)
        if reference is not None and has_reference:
            set_model_state_dict(reference, tensors[_REFERENCE])
        described = _read_description(path / _REFERENCE_FILE)
        has_reference |= any(map(is_reference, model))
        return ReferenceState(moved=has_reference, stage=None if described is None else described["stage"])

    def _complete_when_written(
        self, written: Future[Any], partial: Path, depends_on: list[Path], sound: int | None
    ) -> None:
        """On the checkpoint thread: digests and the rename, each on the disk in turn; then the oldest are removed."""
        try:
            written.result()
            if dist.get_rank() == 0:  # its part ends last: it writes the metadata when all ranks have finished
                digests = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
                (partial / _MANIFEST_FILE).write_text(json.dumps(digests), encoding="utf-8")
                # The directory of the run has the names of what the checkpoint depends on, and of the root.
                for path in (*depends_on, self._root.parent, *sorted(partial.iterdir()), partial):
                    sync_to_disk(path)
                partial.rename(partial.with_suffix(""))
                sync_to_disk(self._root)
        except (OSError, CheckpointException) as error:
            self._fail(partial, error)
        if dist.get_rank() == 0:
            for old in self._superfluous(sound):
                _remove(old, "the old checkpoint")

    def _fail(self, partial: Path, error: OSError | CheckpointException) -> NoReturn:
        """Says why a checkpoint cannot be written, and removes what there is of it, since the disk may be full."""
        causes = [error] if isinstance(error, OSError) else [cause for cause, _ in error.failures.values()]
        shutil.rmtree(partial, ignore_errors=True)
        there = next(path for path in (self._root, *self._root.absolute().parents) if path.exists())
        free_mb = shutil.disk_usage(there).free // 2**20
        reasons = sorted({_as_reason(cause) for cause in causes})
        before = self._complete()
        kept = f"the one before it is kept ({before[-1].name})" if before else "there is none before it"
        raise FatalError(
            f"cannot write the checkpoint {partial.with_suffix('')}: {'; '.join(reasons)} (now {free_mb} MiB are free "
            f"there); {kept}. Make room and give the same command again"
        ) from None

    def _newest_whole(self) -> Path | None:
        """On rank 0. Removes what is half-written and sets aside what is damaged."""
        for partial in self._root.glob(f"step-*{_PARTIAL}"):
            log.warning("checkpoint %s is half-written: it is removed", partial)
            _remove(partial, "the half-written checkpoint")
        for path in reversed(self._complete()):
            damage = _damage(path)
            if not damage:
                return path
            aside = path.with_suffix(_DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            try:
                path.rename(aside)
            except OSError as error:
                raise FatalError(
                    f"cannot set the damaged checkpoint {path} aside as {aside.name}: {error.strerror}. It is damaged: "
                    f"{damage}. Move it elsewhere and give the same command again"
                ) from None
            log.error("checkpoint %s is damaged: %s. It is set aside, and the one before it is used", path, damage)
        damaged = [str(path) for path in self._root.glob(f"step-*{_DAMAGED}")]
        if damaged:
            raise FatalError(f"no whole checkpoint, only {', '.join(damaged)}: delete {self._root} to begin anew")
        return None

    def _superfluous(self, sound: int | None) -> list[Path]:
        """Those that are not to be kept, oldest first; ``sound`` as in :meth:`save`."""
        complete = self._complete()
        spared = [] if sound is None else [path for path in complete if _step_of(path) <= sound][-1:]
        return [path for path in complete[: -self._kept] if path not in spared]

    def _complete(self) -> list[Path]:
        """Oldest first. What has a further word in its name, as ``step-000500-best``, is somebody's own copy."""
        return sorted((path for path in self._root.glob("step-*") if _NAME.fullmatch(path.name)), key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _remove(directory: Path, what: str) -> None:
    """Removes a directory that nobody needs. Where that fails, as on a network file system with a file open, it stays.

    What is not removed is no reason to end a run; the log names it.
    """
    try:
        shutil.rmtree(directory)
    except OSError as error:
        log.warning("%s %s cannot be removed and stays: %s", what, directory, error.strerror or error)


def _tensors(checkpoint: Path) -> Collection[str]:
    """The names of the tensors in a checkpoint."""
    return FileSystemReader(checkpoint).read_metadata().state_dict_metadata.keys()


def _read_description(path: Path) -> dict[str, Any] | None:
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found


def _bytes_of(state: object) -> int:
    """The bytes of all tensors in a state, those of all ranks together."""
    if isinstance(state, torch.Tensor):  # a sharded one counts its elements on all ranks
        return state.numel() * state.element_size()
    values = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return sum(map(_bytes_of, values))


def sync_to_disk(path: Path) -> None:
    """Blocks until a file, or the list of names of a directory, is on the disk; whoever wrote it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot do it for directories
            raise
    finally:
        os.close(handle)


def _as_reason(error: BaseException) -> str:
    text = str(error).partition("\n")[0] or type(error).__name__
    if isinstance(error, OSError):
        return error.strerror or text
    if "inline_container" in text or "PytorchStreamWriter" in text:  # torch's own writer, which hides the reason
        return f"a file could not be written to its end, most often because the disk is full ({text})"
    return text


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage(checkpoint: Path) -> str:
    """What in a checkpoint is not as it was written; empty when all of it is."""
    try:
        digests: dict[str, str] = json.loads((checkpoint / _MANIFEST_FILE).read_text(encoding="utf-8"))
        changed = [name for name, digest in digests.items() if _sha256(checkpoint / name) != digest]
    except OSError as error:
        return str(error)
    except ValueError as error:  # also where it was cut off
        return f"{_MANIFEST_FILE} is no JSON: {error}"
    sizes = [f"{name} (now {(checkpoint / name).stat().st_size} bytes)" for name in changed]
    return f"changed since it was written: {', '.join(sizes)}" if changed else ""


def _deadline_s(total_bytes: int, collective_s: float) -> float:
    """How long a checkpoint of so many bytes may take until it is on the disk, in seconds.

    Args:
        collective_s: what the learner's ranks wait for one another in a collective; infinite for a single rank.
    """
    return min(_DISK_S + total_bytes / (_DISK_MB_PER_S * 1e6), SHARE_OF_COLLECTIVE * collective_s)
