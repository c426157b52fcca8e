"""The trained policy as an ordinary Hugging Face directory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from learner.train.policy import Policy

log = logging.getLogger("learner.export")


def export(policy: Policy, tokenizer: PreTrainedTokenizerBase | None, directory: Path) -> None:
    """Writes the weights in float32, the model's configuration and the tokenizer, if one is given.

    All ranks call it together: it gathers one tensor at a time, and rank 0 keeps and writes them.
    """
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
