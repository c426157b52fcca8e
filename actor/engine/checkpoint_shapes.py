"""Compares the tensors that the learner sends with those of the checkpoint that the engine started from."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from huggingface_hub import snapshot_download

from actor.engine.tensor_shapes import read_tensor_shapes
from common import wire

log = logging.getLogger("actor.engine")

_INDEX_FILE = "model.safetensors.index.json"  # of a checkpoint in several files: which of them holds which tensor
_MAY_BE_UNSENT = ("lm_head.weight", "rotary_emb.inv_freq")  # a tied head and constants, which some checkpoints hold


def read_checkpoint_shapes(model_path: str) -> dict[str, list[int]]:
    """Reads the names and shapes of the tensors in a checkpoint. Blocks without a deadline.

    Args:
        model_path: a directory, or a name on the hub, whose files are then taken from this machine's cache.

    Returns:
        Name -> shape. Empty if this process cannot read the whole checkpoint: the directory is one of the engine's
        host, say, or a file is missing, closed to this user or damaged. The reason is logged.
    """
    try:
        path, shapes = Path(model_path), dict[str, list[int]]()
        if not path.is_dir():
            path = Path(snapshot_download(model_path, local_files_only=True))
        for file in _files_of(path):
            shapes |= read_tensor_shapes(file)
        return shapes
    except (OSError, ValueError) as error:  # a path that is not here is no name of the hub either: a ValueError
        log.info("cannot read the checkpoint %s from here: %s", model_path, error)
        return {}


def _files_of(directory: Path) -> list[Path]:
    """The files of a checkpoint: those that its index names, also if they are missing, or all where it has none.

    Raises:
        OSError, ValueError: the index cannot be read.
    """
    index = directory / _INDEX_FILE
    if not index.exists():
        return sorted(directory.glob("*.safetensors"))
    content = json.loads(index.read_bytes())
    if not isinstance(content, dict) or not isinstance(content.get("weight_map"), dict):
        raise ValueError(f"{index} has no weight_map")
    return sorted({directory / str(name) for name in content["weight_map"].values()})


def describe_differences(buckets: list[wire.Bucket], checkpoint_shapes: dict[str, list[int]]) -> str:
    """Compares the tensors that the learner sends with those of the engine's checkpoint.

    This must be checked here, because an engine ignores tensors that it does not know and reports success.

    Args:
        buckets: what the learner sends.
        checkpoint_shapes: name -> shape of each tensor in the checkpoint. A tied head may be among them; the learner
            does not send it.

    Returns:
        The first three differences in words, and how many more there are. Empty if there is none.
    """
    sent = {name: shape for bucket in buckets for name, shape in zip(bucket.names, bucket.shapes, strict=True)}
    found = [f"{name} is unknown to the engine" for name in sent if name not in checkpoint_shapes]
    found += [
        f"{name} is not sent" for name in checkpoint_shapes if name not in sent and not name.endswith(_MAY_BE_UNSENT)
    ]
    found += [
        f"{name} is {shape}, the engine's {checkpoint_shapes[name]}"
        for name, shape in sent.items()
        if name in checkpoint_shapes and checkpoint_shapes[name] != shape
    ]
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
