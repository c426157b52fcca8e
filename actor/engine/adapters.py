"""A LoRA adapter on its way into an engine: its files, and whether they fit the engine's model.

An engine believes what it is given. It loads an adapter of a wrong shape with success and ends when it first uses it,
and what is missing it takes for zero. So everything is compared here, before it is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from actor.engine.tensor_shapes import read_tensor_shapes
from common import wire
from common.adapter_files import CONFIG_FILE, WEIGHTS_FILE

_PREFIX, _PARTS = "base_model.model.", ("lora_A", "lora_B")
_SHOWN = 3  # differences that an error names


class DamagedAdapterError(ValueError):
    """What arrived is not what the learner sent."""


@dataclass(eq=False)
class LoadedAdapter:
    """An adapter that an engine has, or is about to load.

    Args:
        name: by which requests ask for it; never used twice.
        version: of the policy.
        sha256: of its file.
        directory: holds its two files until it is unloaded.
    """

    name: str
    version: int
    sha256: str
    directory: Path
    in_flight: int = 0  # requests under way that use it

    @contextmanager
    def used(self) -> Iterator[None]:
        """Surrounds a request that uses it."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1


def write_adapter(order: wire.LoadAdapter, directory: Path) -> dict[str, list[int]]:
    """Writes the adapter as a directory that an engine can load. Blocks while it does.

    Returns:
        The shape of every tensor by its name.

    Raises:
        DamagedAdapterError: the file has another digest than the learner's, or is no safetensors file.
        OSError: it cannot be read or written.
    """
    data = order.data or Path(order.path).read_bytes()
    if hashlib.sha256(data).hexdigest() != order.sha256:
        raise DamagedAdapterError(f"the adapter of version {order.version} arrived damaged")
    directory.mkdir(parents=True)
    (directory / CONFIG_FILE).write_text(order.config, encoding="utf-8")
    (directory / WEIGHTS_FILE).write_bytes(data)
    try:
        return read_tensor_shapes(directory / WEIGHTS_FILE)
    except ValueError as error:
        raise DamagedAdapterError(f"the adapter of version {order.version} cannot be read: {error}") from None


def describe_misfit(config: str, adapter: Mapping[str, list[int]], checkpoint: Mapping[str, list[int]]) -> str:
    """Compares an adapter with its own configuration and with the engine's model.

    Args:
        config: PEFT's ``adapter_config.json``.
        adapter: the shape of every tensor by its name.
        checkpoint: the same of the engine's checkpoint; empty if it cannot be read, and then it is not compared.

    Returns:
        The first three differences in words, and how many more there are. Empty if it fits.
    """
    settings = json.loads(config)
    rank, targets = settings["r"], set(settings["target_modules"])
    found: list[str] = []
    shapes: dict[str, dict[str, list[int]]] = {}  # layer -> part -> shape
    adapted: dict[str, list[int]] = {}  # name within the decoder -> the shape of the weights that it is made for
    for name, shape in adapter.items():
        layer, _, part = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        if part not in _PARTS or not name.startswith(_PREFIX) or layer.rpartition(".")[2] not in targets:
            found.append(f"{name} is no part of an adapter of {sorted(targets)}")
        else:
            shapes.setdefault(layer, {})[part] = shape
    for layer, parts in shapes.items():
        if missing := [part for part in _PARTS if part not in parts]:
            found.append(f"{layer} has no {missing[0]}")
            continue
        (a_rank, inputs), (outputs, b_rank) = (_matrix(parts[part]) for part in _PARTS)
        if not a_rank == b_rank == rank:
            found.append(f"{layer} has the rank {a_rank} or {b_rank} and not {rank}")
        adapted[_within_decoder(layer)] = [outputs, inputs]
    if checkpoint:
        own = _decoder_layers(checkpoint, targets, adapted)
        for layer, shape in adapted.items():
            if layer not in own:
                found.append(f"{layer} is unknown to the engine")
            elif own[layer] != shape:
                found.append(f"{layer} is made for {shape}, the engine's is {own[layer]}")
        found += [f"{layer} has no adapter" for layer in own if layer not in adapted]
    return "; ".join(found[:_SHOWN]) + (f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")


def _within_decoder(layer: str) -> str:
    """The name from ``layers.N`` on. What is before it may be called otherwise in a checkpoint than in the model."""
    return f"layers.{layer.partition('.layers.')[2]}"


def _decoder_layers(
    checkpoint: Mapping[str, list[int]], targets: set[str], adapted: Mapping[str, list[int]]
) -> dict[str, list[int]]:
    """The shapes of the checkpoint's layers that have a name in ``targets``, by their names within the decoder.

    A checkpoint with an image encoder has layers of the same names in two places; those of the adapter are meant.
    """
    places: dict[str, dict[str, list[int]]] = {}
    for name, shape in checkpoint.items():
        layer = name.removesuffix(".weight")
        if layer != name and layer.rpartition(".")[2] in targets and ".layers." in layer:
            places.setdefault(layer.partition(".layers.")[0], {})[_within_decoder(layer)] = shape
    return max(places.values(), key=lambda own: sum(own.get(k) == v for k, v in adapted.items()), default={})


def _matrix(shape: list[int]) -> tuple[int, int]:
    """Rows and columns; (-1, -1), which fits nothing, for what is no matrix."""
    return (shape[0], shape[1]) if len(shape) == 2 else (-1, -1)
