"""The trained policy as an ordinary Hugging Face directory, and its adapters as a directory of PEFT."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from common.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from common.process import FatalError
from learner.train.lora import is_adapter, merge, whole_tensor
from learner.train.policy import Policy

log = logging.getLogger("learner.export")

_AGAIN = "the last step is in a checkpoint: mend what the message says, and the same command exports it again"


def export(policy: Policy, tokenizer: PreTrainedTokenizerBase | None, directory: Path) -> None:
    """Writes the weights in float32, the model's configuration and the tokenizer, if one is given.

    Its ``generation_config.json`` has the settings of the model as ``learner.generation_settings`` has mended them.

    Adapters are added to the weights that they adapt. All ranks call it together: it gathers one tensor at a time, and
    rank 0 keeps and writes them.

    Raises:
        FatalError: they cannot be written.
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
        with writing("model", directory):
            policy.lm.save_pretrained(directory, state_dict=weights)
            if policy.adapters is not None:  # transformers has written the dtype of what is frozen
                _set_dtype(policy.lm.config, "float32")
                policy.lm.config.save_pretrained(directory)
            if tokenizer is not None:
                tokenizer.save_pretrained(directory)
        log.info("exported the policy to %s", directory)


def export_adapters(policy: Policy, base_model: str, directory: Path) -> None:
    """Writes the adapters in float32 as PEFT reads them; without adapters it does nothing. All ranks call it together.

    Args:
        base_model: directory or hub name of the model that they adapt.

    Raises:
        FatalError: they cannot be written.
    """
    if policy.adapters is None:
        return
    weights = {name: value.cpu() for name, value in policy.adapters.gather()}
    if dist.get_rank() == 0:
        text = json.dumps(policy.adapters.peft_config(base_model), indent=2, ensure_ascii=False)
        with writing("adapter", directory):
            save_file(weights, directory / WEIGHTS_FILE, metadata={"format": "pt"})
            (directory / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        log.info("exported the adapters to %s", directory)


def _set_dtype(config: PreTrainedConfig, dtype: str) -> None:
    """Says which dtype the weights have, also in the configurations of the parts of a model, as an image encoder's."""
    config.dtype = dtype
    for name in config.sub_configs:
        if (part := getattr(config, name, None)) is not None:
            _set_dtype(part, dtype)


@contextmanager
def writing(what: str, directory: Path, remedy: str = _AGAIN) -> Iterator[None]:
    """Within the block a trained model is written.

    Args:
        what: is written, for the error.
        remedy: what to do where it could not be.

    Raises:
        FatalError: it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)  # transformers writes nothing, and says nothing, to a file's path
        yield
    except (OSError, SafetensorError, ValueError) as error:  # the last by transformers, of settings that it refuses
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise FatalError(f"cannot export the {what} to {directory}: {reason}; {remedy}") from None
