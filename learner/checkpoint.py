"""Checkpoints written beside the training, whole or not at all, and the export as a Hugging Face directory."""

from __future__ import annotations

import json
import logging
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from common.process import FatalError
from learner.policy import Policy

log = logging.getLogger("learner.checkpoint")

_STATE = "run.json"


class Checkpoints:
    """Directories ``step-000010`` under ``root``: sharded model and optimizer, and ``run.json`` with the rest.

    A checkpoint is written under another name and renamed when it is complete, so one that has its name is whole.

    Args:
        root: the directory.
        kept: how many to keep.
    """

    def __init__(self, root: Path, kept: int) -> None:
        self._root, self._kept = root, kept
        self._group = dist.new_group(backend="gloo")  # on the default group a save beside the training deadlocks
        self._writing: tuple[Future[Any], Path] | None = None

    def save(self, policy: Policy, optimizer: torch.optim.Optimizer, step: int, state: dict[str, Any]) -> None:
        """Begins to write; all ranks call it together. ``state`` is JSON, of rank 0."""
        self.wait()
        partial = self._root / f"step-{step:06d}.partial"
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            (partial / _STATE).write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        dist.barrier(group=self._group)
        model, optim = get_state_dict(policy, optimizer)
        future = async_save({"model": model, "optim": optim}, checkpoint_id=partial, process_group=self._group)
        assert isinstance(future, Future)
        self._writing = (future, partial)

    def poll(self) -> None:
        """Gives a finished checkpoint its name; call it once a step."""
        if self._writing is not None and self._writing[0].done():
            self.wait()

    def wait(self) -> None:
        """Until what is being written is whole."""
        if self._writing is None:
            return
        future, partial = self._writing
        self._writing = None
        future.result()
        if dist.get_rank() == 0:  # its part is done last: it writes the metadata when all ranks have finished
            partial.rename(partial.with_suffix(""))
            for old in self._complete()[: -self._kept]:
                shutil.rmtree(old)

    def latest(self) -> dict[str, Any] | None:
        """The state of the newest checkpoint, on all ranks; None when there is none."""
        found = self._complete()
        if not found:
            return None
        state: dict[str, Any] = json.loads((found[-1] / _STATE).read_text(encoding="utf-8"))
        return {**state, "path": str(found[-1])}

    def load(self, path: str, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
        """Fills model and optimizer, on any number of ranks.

        Raises:
            FatalError: the checkpoint is damaged, or of another model.
        """
        model, optim = get_state_dict(policy, optimizer)
        try:
            load_sharded({"model": model, "optim": optim}, checkpoint_id=path)
        except CheckpointException as error:
            causes = sorted({str(cause) for cause, _ in error.failures.values()})
            raise FatalError(
                f"cannot resume from {path}: {'; '.join(causes)}. Is model.path still the model the run began with?"
            ) from None
        set_state_dict(policy, optimizer, model_state_dict=model, optim_state_dict=optim)

    def _complete(self) -> list[Path]:
        return sorted(path for path in self._root.glob("step-*") if path.suffix != ".partial")


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
