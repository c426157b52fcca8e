"""The trained policy as an ordinary Hugging Face directory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from learner.train.policy import Policy

log = logging.getLogger("learner.export")


def export(
    policy: Policy, tokenizer: PreTrainedTokenizerBase | None, directory: Path, stop_ids: Sequence[int] = ()
) -> None:
    """Writes the weights in float32, the model's configuration and the tokenizer, if one is given.

    ``stop_ids``, which ended the answers in training, end an answer of the exported model, too: they are added to its
    ``generation_config.json``.

    All ranks call it together: it gathers one tensor at a time, and rank 0 keeps and writes them.
    """
    weights: dict[str, Any] = {}
    for name, value in policy.lm.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if dist.get_rank() == 0:
            weights[name] = whole.cpu()
    if dist.get_rank() == 0:
        _add_stop_ids(policy, stop_ids)
        policy.lm.save_pretrained(directory, state_dict=weights)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
        log.info("exported the policy to %s", directory)


def _add_stop_ids(policy: Policy, stop_ids: Sequence[int]) -> None:
    settings = policy.lm.generation_config
    if settings is not None:
        known = settings.eos_token_id
        ends = [] if known is None else list(known) if isinstance(known, list) else [known]
        ends += [token for token in stop_ids if token not in ends]
        settings.eos_token_id = (ends if len(ends) > 1 else ends[0]) if ends else None
