"""Checkpoints written beside the training, whole or not at all, and the export as a Hugging Face directory."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from common import wire
from common.process import FatalError
from learner.groups import Group
from learner.ranks import broadcast
from learner.train.policy import Policy

log = logging.getLogger("learner.checkpoint")

_STATE, _QUEUED, _MANIFEST = "run.json", "queued.msgpack", "manifest.json"
_DAMAGED = ".damaged"


class Checkpoints:
    """Directories ``step-000010`` under ``root``: sharded model and optimizer, queued groups, ``run.json``: the rest.

    A checkpoint is written under another name and gets its own when it is complete, with a digest of every file. One
    that does not agree with its digests is named in the log, set aside, and the one before it used.

    Args:
        root: the directory.
        kept: how many to keep.
    """

    def __init__(self, root: Path, kept: int) -> None:
        self._root, self._kept = root, kept
        self._group = dist.new_group(backend="gloo")  # on the default group a save beside the training deadlocks
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        step: int,
        state: dict[str, Any],
        queued: Sequence[Group] = (),
        anchor: Policy | None = None,
    ) -> None:
        """Begins to write; all ranks call it together. ``state`` is JSON; it and ``queued`` are of rank 0.

        ``anchor`` is the policy that the KL is taken to, where it is no longer the one the run began with.
        """
        self.wait()
        partial = self._root / f"step-{step:06d}.partial"
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            (partial / _STATE).write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
            (partial / _QUEUED).write_bytes(wire.encode(list(queued)))
        dist.barrier(group=self._group)
        model, optim = get_state_dict(policy, optimizer)
        moved = {} if anchor is None else {"anchor": get_model_state_dict(anchor)}
        future = async_save({"model": model, "optim": optim, **moved}, checkpoint_id=partial, process_group=self._group)
        assert isinstance(future, Future)
        self._writing = self._thread.submit(self._seal, future, partial)

    def _seal(self, future: Future[Any], partial: Path) -> None:
        try:
            future.result()
            if dist.get_rank() == 0:  # its part is done last: it writes the metadata when all ranks have finished
                digests = {path.name: _digest(path) for path in sorted(partial.iterdir())}
                (partial / _MANIFEST).write_text(json.dumps(digests), encoding="utf-8")
                partial.rename(partial.with_suffix(""))
                for old in self._complete()[: -self._kept]:
                    shutil.rmtree(old)
        except (OSError, CheckpointException) as error:
            raise FatalError(f"cannot write the checkpoint {partial}: {error}") from None

    def poll(self) -> None:
        """Raises what went wrong with a checkpoint that was being written; call it once a step."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Until what is being written is whole."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def latest(self) -> dict[str, Any] | None:
        """The state of the newest whole checkpoint, with its ``path`` and the groups ``queued``; None: there is none.

        All ranks call it together.

        Raises:
            FatalError: there are checkpoints, and none is whole.
        """
        path = broadcast(self._newest().encode() if dist.get_rank() == 0 else b"").decode()
        if not path:
            return None
        state: dict[str, Any] = json.loads((Path(path) / _STATE).read_text(encoding="utf-8"))
        return {**state, "path": path, "queued": wire.unpack((Path(path) / _QUEUED).read_bytes(), list[Group])}

    def _newest(self) -> str:
        for partial in self._root.glob("step-*.partial"):
            log.warning("checkpoint %s is half-written: removed", partial)
            shutil.rmtree(partial)
        for path in reversed(self._complete()):
            problem = _problem(path)
            if not problem:
                return str(path)
            aside = path.with_suffix(_DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            log.error("checkpoint %s is damaged, %s: set aside, the one before it is used", path, problem)
        damaged = [str(path) for path in self._root.glob(f"step-*{_DAMAGED}")]
        if damaged:
            raise FatalError(f"no whole checkpoint, only {', '.join(damaged)}: delete {self._root} to begin anew")
        return ""

    def load(self, path: str, policy: Policy, optimizer: torch.optim.Optimizer, anchor: Policy | None = None) -> bool:
        """Fills model and optimizer, on any number of ranks, and the anchor if the checkpoint has one.

        Returns:
            Whether it has, and was given one to fill.

        Raises:
            FatalError: the checkpoint is damaged, or of another model.
        """
        model, optim = get_state_dict(policy, optimizer)
        wanted: dict[str, Any] = {"model": model, "optim": optim}
        saved = FileSystemReader(path).read_metadata().state_dict_metadata
        moved = anchor is not None and any(name.startswith("anchor.") for name in saved)
        if anchor is not None and moved:
            wanted["anchor"] = get_model_state_dict(anchor)
        try:
            load_sharded(wanted, checkpoint_id=path)
        except CheckpointException as error:
            causes = sorted({str(cause) for cause, _ in error.failures.values()})
            raise FatalError(
                f"cannot resume from {path}: {'; '.join(causes)}. Is model.path still the model the run began with?"
            ) from None
        set_state_dict(policy, optimizer, model_state_dict=model, optim_state_dict=optim)
        if anchor is not None and moved:
            set_model_state_dict(anchor, wanted["anchor"])
        return moved

    def _complete(self) -> list[Path]:
        return sorted(path for path in self._root.glob("step-*") if not path.suffix)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _problem(checkpoint: Path) -> str:
    """What in a checkpoint is not as it was written; empty when nothing is."""
    try:
        digests: dict[str, str] = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))
        bad = [name for name, digest in digests.items() if _digest(checkpoint / name) != digest]
    except (OSError, ValueError) as error:
        return str(error)
    return f"changed since it was written: {', '.join(bad)}" if bad else ""


def export(policy: Policy, tokenizer: PreTrainedTokenizerBase | None, directory: Path) -> None:
    """Writes an ordinary Hugging Face directory in float32; all ranks call it together."""
    weights: dict[str, Any] = {}
    for name, value in policy.lm.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if dist.get_rank() == 0:
            weights[name] = whole.cpu()
    if dist.get_rank() == 0:
        policy.lm.save_pretrained(directory, state_dict=weights)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
        log.info("exported the policy to %s", directory)
