"""Tells the model that a run began with from another one, which a resume would take for it."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from common.process import FatalError


@torch.no_grad()
def model_digest(model: nn.Module) -> str:
    """SHA-256 of names, shapes and, for each parameter, the sum of its bits as integers, after rounding to bfloat16.

    The rounding makes it the same for a model that is loaded in float32 and in bfloat16. A sum of integers does not
    depend on the order, nor on the device.
    """
    digest = hashlib.sha256()
    for name, value in model.named_parameters():
        bits = int(value.bfloat16().view(torch.int16).sum(dtype=torch.int64))
        digest.update(f"{name} {list(value.shape)} {bits}\n".encode())
    return digest.hexdigest()


def check_same_model(saved: str | None, now: str | None, checkpoint: str) -> None:
    """Compares the model that a run began with, which is the reference of its KL, with the one that is loaded now.

    Args:
        saved, now: their digests; None where it is not known, or where nothing depends on it.
        checkpoint: its path, for the error.

    Raises:
        FatalError: they are two.
    """
    if saved is not None and now is not None and saved != now:
        raise FatalError(
            f"cannot resume from {checkpoint}: the model at model.path is another one than the run began with, and the "
            "KL penalty is to that one: give the model the run began with, or another run.dir"
        )
