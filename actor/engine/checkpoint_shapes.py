"""Compares the tensors that the learner sends with those of the checkpoint that the engine started from."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import safe_open

from common import wire

_MAY_BE_UNSENT = ("lm_head.weight", "rotary_emb.inv_freq")  # a tied head and constants, which some checkpoints hold


def read_checkpoint_shapes(model_path: str) -> dict[str, list[int]]:
    """Reads the names and shapes of the tensors in a checkpoint. Blocks without a deadline.

    Args:
        model_path: a directory, or a name on the hub, whose files are then taken from this machine's cache.

    Returns:
        Name -> shape. Empty if this process cannot read the checkpoint.
    """
    path, shapes = Path(model_path), dict[str, list[int]]()
    with suppress(OSError):
        if not path.is_dir():
            path = Path(snapshot_download(model_path, local_files_only=True))
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            shapes.update({name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
    return shapes


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
