"""LoRA (arXiv 2106.09685): a frozen matrix W computes as W + (alpha / rank) · B · A, and only A and B are trained.

The adapters are parameters of the layers that they adapt, so that FSDP2 shards and gathers them with these layers. They
are kept in float32; what is frozen has the dtype of the forward pass. With them the reference policy of the KL costs no
memory: it is the same model without its adapters, or with those of an earlier step (``reset_anchor``).

Names and the format of files are those of the PEFT library, which is not needed to train.

Shape suffixes: O outputs of a linear layer, I its inputs, r rank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from common.config import LoraConfig
from common.process import FatalError
from learner.train.model_digest import model_digest

T = TypeVar("T")
# Last parts of the parameters' names, in checkpoints too; those of the reference policy are called anchor there.
_TRAINED, _REFERENCE = ("lora_A", "lora_B"), ("anchor_A", "anchor_B")


@dataclass
class _Switch:
    """Which adapters the layers of one model compute with; they share this object."""

    reference: bool = False  # those of the reference policy, not those that are trained


class LoraLinear(nn.Linear):
    """A linear layer with frozen weights and an adapter: y = x Wᵀ + bias + (alpha / rank) · dropout(x) Aᵀ Bᵀ.

    Never made by its constructor: :class:`Adapters` turns the layers of a loaded model into it, so that their weights
    keep their names. Dropout applies where gradients are computed.

    Attributes:
        lora_A: [r, I] float32; lora_B: [O, r] float32; trained.
        anchor_A, anchor_B: those of the reference policy, frozen; None where it has no adapters.
        scale: alpha / rank.
        dropout: probability that an input of the adapter is zero.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    anchor_A: nn.Parameter | None
    anchor_B: nn.Parameter | None
    scale: float
    dropout: float
    switch: _Switch

    def forward(self, input: Tensor) -> Tensor:
        """[…, I] -> […, O]."""
        output = F.linear(input, self.weight, self.bias)
        a_r_I, b_O_r = (self.anchor_A, self.anchor_B) if self.switch.reference else (self.lora_A, self.lora_B)
        if a_r_I is None or b_O_r is None:
            return output
        adapted = input.to(a_r_I.dtype)
        if self.dropout and torch.is_grad_enabled():
            adapted = F.dropout(adapted, self.dropout)
        adapted = F.linear(adapted, a_r_I).to(output.dtype)
        # One product adds to the output, where product, scale and sum would each read and write an array as large.
        flat = output.flatten(0, -2)
        added = torch.addmm(flat, adapted.flatten(0, -2), b_O_r.to(output.dtype).T, alpha=self.scale)
        return added.view_as(output)


class Adapters:
    """The adapters of one model. Made after the weights are loaded and before FSDP shards them.

    All ranks make the same ones: A is drawn from ``seed`` as PEFT does, uniform in ±1/√I, and B is zero, so that
    the policy begins as the model it was.

    Attributes:
        config: the section ``lora``.
        layers: the adapted layers by their names in the model, in its order.
        base: digest of the frozen weights, the same however they are sharded and in which dtype they were loaded.
        reference_moves: as given.

    Args:
        model: whose linear layers get adapters, in place. All its other parameters are frozen.
        config: its ``rank`` is above 0.
        seed: of A.
        reference_moves: whether the reference policy may get adapters of its own, by :meth:`reset_reference`.

    Raises:
        FatalError: a name in ``targets`` belongs to no linear layer of the decoder.
    """

    def __init__(self, model: PreTrainedModel, config: LoraConfig, seed: int, *, reference_moves: bool = False) -> None:
        self.config, self.reference_moves = config, reference_moves
        self._switch = _Switch()
        self.base = model_digest(model)
        model.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        self.layers: dict[str, LoraLinear] = {}
        for name, layer in adapted_layers(linear_layers(model), config.targets).items():
            self.layers[name] = self._adapt(layer, generator, reference_moves)

    def _adapt(self, layer: nn.Linear, generator: torch.Generator, reference_moves: bool) -> LoraLinear:
        rank, device = self.config.rank, layer.weight.device
        bound = 1 / math.sqrt(layer.in_features)  # of PEFT's Kaiming initialization with a = √5
        a_r_I = torch.empty(rank, layer.in_features).uniform_(-bound, bound, generator=generator).to(device)
        b_O_r = torch.zeros(layer.out_features, rank, device=device)
        layer.__class__ = LoraLinear
        adapted = cast(LoraLinear, layer)
        adapted.lora_A, adapted.lora_B = nn.Parameter(a_r_I), nn.Parameter(b_O_r)
        adapted.scale, adapted.dropout = self.config.alpha / rank, self.config.dropout
        adapted.switch = self._switch
        for name, value in zip(_REFERENCE, (a_r_I, b_O_r), strict=True):
            reference = nn.Parameter(value.clone(), requires_grad=False) if reference_moves else None
            adapted.register_parameter(name, reference)
        return adapted

    @property
    def parameters(self) -> int:
        """How many numbers are trained, of all ranks together."""
        return adapter_size(self.layers.values(), self.config.rank)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within the block the model computes as the reference policy. Gradients may not be computed in it."""
        self._switch.reference = True
        try:
            yield
        finally:
            self._switch.reference = False

    @torch.no_grad()
    def reset_reference(self) -> None:
        """Makes the present policy the reference. The sharded parameters are copied, so nothing is communicated.

        Raises:
            ValueError: the adapters were made without ``reference_moves``.
        """
        for layer in self.layers.values():
            if layer.anchor_A is None or layer.anchor_B is None:
                raise ValueError("these adapters were made without reference_moves")
            layer.anchor_A.copy_(layer.lora_A)
            layer.anchor_B.copy_(layer.lora_B)

    def gather(self) -> Iterator[tuple[str, Tensor]]:
        """A and B of every layer as whole tensors in float32, under the names of PEFT's files. A collective."""
        for name, layer in self.layers.items():
            for part in _TRAINED:
                yield f"base_model.model.{name}.{part}.weight", whole_tensor(getattr(layer, part))

    def peft_config(self, base_model: str) -> dict[str, Any]:
        """What PEFT's ``adapter_config.json`` says of these adapters.

        Args:
            base_model: directory or hub name of the model that they were trained on.
        """
        alpha = self.config.alpha
        return {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_model,
            "inference_mode": True, "r": self.config.rank, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "target_modules": sorted(self.config.targets), "lora_dropout": self.config.dropout, "bias": "none",
            "fan_in_fan_out": False, "use_rslora": False, "use_dora": False, "modules_to_save": None,
        }  # fmt: skip

    def description(self) -> dict[str, Any]:
        """What must be the same where a checkpoint of these adapters is read; JSON."""
        targets = sorted(self.config.targets)
        return {"rank": self.config.rank, "alpha": self.config.alpha, "targets": targets, "base": self.base}


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers inside the decoder's layers by their names in the model: what an adapter can be made for.

    The model may be on the meta device.
    """
    decoder = cast(nn.ModuleList, model.get_decoder().layers)
    inside = {id(module) for module in decoder.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) in inside and type(module) is nn.Linear  # what computes otherwise has another class
    }


def adapted_layers(linear: Mapping[str, nn.Linear], targets: Sequence[str]) -> dict[str, nn.Linear]:
    """Those of ``linear_layers`` that get an adapter, in the order of the model.

    Args:
        targets: ``lora.targets``, last parts of their names.

    Raises:
        FatalError: a target is the last part of no name.
    """
    known = sorted({_last(name) for name in linear})
    if unknown := [target for target in targets if target not in known]:
        raise FatalError(f"lora.targets has {unknown[0]!r}, and the linear layers of the model are {known}")
    return {name: layer for name, layer in linear.items() if _last(name) in targets}


def adapter_size(layers: Iterable[nn.Linear], rank: int) -> int:
    """How many parameters the adapters of these layers have: rank · (inputs + outputs) each."""
    return rank * sum(layer.in_features + layer.out_features for layer in layers)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter, and not to the model that is adapted."""
    return _last(name) in _TRAINED + _REFERENCE


def is_reference(name: str) -> bool:
    """Whether a parameter of this name belongs to the adapters of the reference policy."""
    return _last(name) in _REFERENCE


def merge(weight_O_I: Tensor, a_r_I: Tensor, b_O_r: Tensor, scale: float) -> Tensor:
    """W + scale · B A in float32, in memory of its own: [O, I]. To round it to another dtype is up to the caller."""
    return weight_O_I.float() + (b_O_r.float() @ a_r_I.float()) * scale


def whole_tensor(value: Tensor) -> Tensor:
    """The tensor that a sharded one is a part of; a collective of all ranks that share it. Others as they are."""
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach()


def saved_parameters(parameters: Mapping[str, T], adapters: Adapters | None) -> dict[str, T]:
    """Those that belong into a checkpoint: all, or with adapters these alone."""
    return {name: value for name, value in parameters.items() if adapters is None or is_adapter(name)}


def check_same_adapters(saved: Mapping[str, Any] | None, adapters: Adapters | None, checkpoint: str) -> None:
    """Compares the adapters of a checkpoint with those of this run.

    Args:
        saved: what ``Adapters.description`` gave when the checkpoint was written; None where it has all weights.
        adapters: of this run; None where it trains all weights.
        checkpoint: its path, for the error.

    Raises:
        FatalError: the one cannot go on as the other.
    """
    now = None if adapters is None else adapters.description()
    if saved == now:
        return
    if saved is None or now is None:
        found, wanted = ("all weights", "adapters alone") if saved is None else ("adapters alone", "all weights")
        raise FatalError(
            f"cannot resume from {checkpoint}: it holds {found}, and with lora.rank = "
            f"{0 if adapters is None else adapters.config.rank} the run trains {wanted}: give lora.rank as it was, "
            "or another run.dir"
        )
    different = [key for key in now if saved.get(key) != now[key]]
    if different == ["base"]:
        raise FatalError(
            f"cannot resume from {checkpoint}: its adapters were trained on another model than model.path is now: give "
            "the model the run began with, or another run.dir"
        )
    listed = ", ".join(
        f"lora.{key} = {json.dumps(saved.get(key))} (now {json.dumps(now[key])})" for key in different if key != "base"
    )
    raise FatalError(
        f"cannot resume from {checkpoint}: its adapters have {listed}: give the settings as they were, or another "
        "run.dir"
    )
