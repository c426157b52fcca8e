"""The trained policy as an ordinary Hugging Face directory, and its adapters as a directory of PEFT."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from common.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from learner.train.lora import is_adapter, merge, whole_tensor
from learner.train.policy import Policy

log = logging.getLogger("learner.export")


def export(
    policy: Policy, tokenizer: PreTrainedTokenizerBase | None, directory: Path, stop_ids: Sequence[int] = ()
) -> None:
    """Writes the weights in float32, the model's configuration and the tokenizer, if one is given.

    ``stop_ids``, which ended the answers in training, end an answer of the exported model, too: they are added to its
    ``generation_config.json``.

    Adapters are added to the weights that they adapt. All ranks call it together: it gathers one tensor at a time, and
    rank 0 keeps and writes them.
    """
    weights: dict[str, Any] = {}
    adapted = {} if policy.adapters is None else policy.adapters.layers
    for name, value in policy.lm.state_dict().items():
        if is_adapter(name):
            continue
        whole = whole_tensor(value)
        if (layer := adapted.get(name.removesuffix(".weight"))) is not None:
            whole = merge(whole, whole_tensor(layer.lora_A), whole_tensor(layer.lora_B), layer.scale)
        if dist.get_rank() == 0:
            weights[name] = whole.cpu() if policy.adapters is None else whole.cpu().float()
    if dist.get_rank() == 0:
        _add_stop_ids(policy, stop_ids)
        policy.lm.save_pretrained(directory, state_dict=weights)
        if policy.adapters is not None:  # transformers has written the dtype of what is frozen
            policy.lm.config.dtype = "float32"
            policy.lm.config.save_pretrained(directory)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
        log.info("exported the policy to %s", directory)


def export_adapters(policy: Policy, base_model: str, directory: Path) -> None:
    """Writes the adapters in float32 as PEFT reads them; without adapters it does nothing. All ranks call it together.

    Args:
        base_model: directory or hub name of the model that they adapt.
    """
    if policy.adapters is None:
        return
    weights = {name: value.cpu() for name, value in policy.adapters.gather()}
    if dist.get_rank() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(weights, directory / WEIGHTS_FILE, metadata={"format": "pt"})
        text = json.dumps(policy.adapters.peft_config(base_model), indent=2, ensure_ascii=False)
        (directory / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        log.info("exported the adapters to %s", directory)


def _add_stop_ids(policy: Policy, stop_ids: Sequence[int]) -> None:
    settings = policy.lm.generation_config
    if settings is not None:
        known = settings.eos_token_id
        ends = [] if known is None else list(known) if isinstance(known, list) else [known]
        ends += [token for token in stop_ids if token not in ends]
        settings.eos_token_id = (ends if len(ends) > 1 else ends[0]) if ends else None
