"""The policy under training: a transformers causal LM on packed sequences, sharded with FSDP2."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from common.hub import why
from common.process import FatalError
from learner.train import fused
from learner.train.attention import PACKED_ATTENTION
from learner.train.logprob import LogitTransform, chunked_logp
from learner.train.lora import Adapters, is_adapter, merge, whole_tensor
from learner.train.packing import MicroBatch

_MULTIPLIED = ("hyperclovax",)  # model types whose logits_scaling is a factor; elsewhere it divides


class Policy(nn.Module):
    """A causal LM that computes the log-probabilities of the responses in a micro-batch.

    Backbone and vocabulary projection are one module, so that FSDP2 shards tied embeddings once. What else a model has,
    as an image encoder, takes no part: it is frozen. Whether the policy computes what the model itself does,
    ``learner.train.fidelity`` finds out.

    Args:
        path: Hugging Face directory or hub name.
        temperature: the one of sampling; logits are divided by it, as the engine does.
        head_chunk: rows of logits in memory at a time.
        checkpointing: the share of the layers, from the first on, whose activations are computed again in the backward
            pass instead of being kept. The backward pass begins with the last layers, so that what these keep is freed
            before the first ones are computed again.
        compiled: generate kernels for what happens between products, in the layers and to the logits.
        config: of the model; by default the one that lies beside its weights.
        dtype: of the weights in memory.

    Attributes:
        adapters: what is trained of the model; None where that is all of it.
        base: digest of the model that the run began with, by ``model_digest``; None where no reference policy is kept
            that depends on it, as with adapters, which have their own.

    Raises:
        FatalError: the model cannot be loaded, or is not built as a decoder of layers with attention.
    """

    def __init__(
        self,
        path: str,
        *,
        temperature: float,
        head_chunk: int,
        checkpointing: float = 0.0,
        compiled: bool = False,
        config: PreTrainedConfig | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        model = _load(path, config, dtype)
        self.lm: PreTrainedModel = model
        self.adapters: Adapters | None = None
        self.base: str | None = None
        self.temperature, self.head_chunk, self.compiled = temperature, head_chunk, compiled
        shape: Any = model.config.get_text_config()
        try:
            head_width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
            layers = cast(nn.ModuleList, model.get_decoder().layers)
            self.layers: int = shape.num_hidden_layers
            self.vocabulary: int = model.get_output_embeddings().weight.shape[0]
            self._attention_width: int = self.layers * shape.num_attention_heads * head_width
        except (AttributeError, TypeError) as error:
            raise FatalError(
                f"{path} has the model type {shape.model_type!r}, which the learner does not support: it expects a "
                f"decoder with layers, attention heads and a vocabulary projection ({error}); docs/models.md lists "
                "what is supported"
            ) from None
        model.requires_grad_(False)
        for trained in (model.get_decoder(), model.get_output_embeddings()):
            trained.requires_grad_(True)
        fused.fuse(model, compiled=compiled)
        self.transform = logit_transform(shape)
        self._head_size: int = model.get_output_embeddings().weight.numel()
        self._layers_size: int = sum(parameter.numel() for parameter in layers.parameters())
        if checkpointing:
            self.lm.gradient_checkpointing_enable()
            for layer in layers[: ceil(checkpointing * len(layers))]:
                # transformers checkpoints only layers in training mode. The modules inside a layer stay in evaluation
                # mode, so that none of them applies dropout.
                layer.training = True

    def cost(self, prompt: int, response: int) -> float:
        """Multiply-adds of a forward pass over one sequence: all layers, the head at response tokens, attention.

        Args:
            prompt, response: their lengths in tokens.
        """
        tokens = prompt + response
        return tokens * self._layers_size + response * self._head_size + tokens**2 * self._attention_width

    def forward(
        self, batch: MicroBatch, temperature: float | None = None, *, with_entropy: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of ``batch.targets_R`` and entropies at their positions, each [R] float32, in nats.

        Args:
            temperature: used instead of the one of sampling, if given.
            with_entropy: otherwise there are no entropies, [0].
        """
        hidden_T_D = self.lm.get_decoder()(  # the decoder alone: some models have an image encoder as well
            input_ids=batch.ids_T[None],
            position_ids=batch.positions_T[None],
            attention_mask=None,
            use_cache=False,  # with a cache transformers would let packed sequences see one another
            cu_seq_lens_q=batch.boundaries,
            cu_seq_lens_k=batch.boundaries,
            max_length_q=batch.longest,
            max_length_k=batch.longest,
        ).last_hidden_state.squeeze(0)
        head = cast(nn.Linear, self.lm.get_output_embeddings())
        return chunked_logp(
            hidden_T_D[batch.rows_R],
            head.weight,
            batch.targets_R,
            temperature or self.temperature,
            self.head_chunk,
            bias_V=head.bias,
            transform=self.transform,
            with_entropy=with_entropy,
            compiled=self.compiled,
        )


def logit_transform(shape: Any) -> LogitTransform:
    """What the architecture does to its logits, by the names that transformers' configurations have for it.

    Args:
        shape: the configuration of the text model.
    """
    scale = float(getattr(shape, "logit_scale", None) or 1.0)
    if (factor := getattr(shape, "logits_scaling", None)) is not None:
        scale = scale * factor if shape.model_type in _MULTIPLIED else scale / factor
    return LogitTransform(scale, getattr(shape, "final_logit_softcapping", None))


def read_config(path: str) -> PreTrainedConfig:
    """The configuration of a model.

    Raises:
        FatalError: it cannot be read.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise _cannot_load(path, error) from None
    return config


def _cannot_load(path: str, error: Exception) -> FatalError:
    return FatalError(f"cannot load model.path = {path!r}: {why(path, error)}")


def _load(path: str, config: PreTrainedConfig | None, dtype: torch.dtype) -> PreTrainedModel:
    """The model with our attention, in evaluation mode.

    Raises:
        FatalError: it cannot be loaded.
    """
    kind = ""
    try:
        config = read_config(path) if config is None else config
        kind = config.model_type
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=dtype, attn_implementation=PACKED_ATTENTION
        )
        return model
    except (OSError, ValueError, SafetensorError, ImportError) as error:
        raise _cannot_load(path, error) from None
    except (KeyError, AttributeError, TypeError, NotImplementedError) as error:  # models without an exchangeable one
        raise FatalError(
            f"{path} has the model type {kind!r}, which the learner does not support: its attention cannot be "
            f"exchanged for one that packs sequences ({type(error).__name__}: {error}); docs/models.md lists what is "
            "supported"
        ) from None


def shard(
    policy: Policy, mesh: DeviceMesh, param_dtype: torch.dtype, *, on_cpu: bool = False, stays_gathered: bool = False
) -> Policy:
    """Shards the policy in place with FSDP2, layer by layer and then the rest, and returns it.

    The forward pass computes in ``param_dtype``. Weights are kept in their own dtype, and gradients are reduced in
    float32.

    Args:
        mesh: of one dimension, or of two, (replicas, shards), for hybrid sharding.
        on_cpu: keep the weights in pinned host memory and copy them to the GPU layer by layer when they are used.
        stays_gathered: keep the gathered weights of the layers after a forward pass, for the backward pass, or until
            :func:`drop_gathered`. Otherwise each layer's are gathered again.
    """
    precision = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy() if on_cpu else OffloadPolicy()
    layers = cast(nn.ModuleList, policy.lm.get_decoder().layers)
    for module in [*layers, policy]:
        fully_shard(
            module, mesh=mesh, mp_policy=precision, offload_policy=offload,
            reshard_after_forward=False if stays_gathered else None,
        )  # fmt: skip
    return policy


def drop_gathered(policy: Policy) -> None:
    """Drops the gathered copies of the weights that FSDP keeps after a forward pass without a backward pass.

    Otherwise it would go on using them when the weights have changed.
    """
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def store_weights(policy: Policy, dtype: torch.dtype) -> None:
    """Keeps the weights of a policy that is not trained in ``dtype``, in place; buffers stay as they are.

    In the dtype of the forward pass they take less memory than in float32, and its results are the same to the last
    bit: FSDP rounds each weight before it is used anyway.
    """
    for parameter in policy.parameters():
        parameter.data = parameter.data.to(dtype)


def published_shapes(policy: Policy) -> dict[str, list[int]]:
    """The shape of every published tensor by its name in a Hugging Face checkpoint, in the order of full_weights."""
    shapes: dict[str, list[int]] = {}
    for _, names in _fsdp_units(policy):
        unit = {name: torch.empty(policy.get_parameter(name).shape, device="meta") for name in names}
        shapes |= {name: list(tensor.shape) for name, tensor in _as_in_checkpoint(policy, unit).items()}
    return shapes


def full_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Every weight as a whole tensor, under its name in a Hugging Face checkpoint. A collective of all ranks.

    One FSDP unit after another is gathered, by a single collective each, in the dtype of the forward pass. A tensor is
    valid only until the next one is requested. What an adapter changes comes with the adapter added to it, in float32.
    """
    for unit, names in _fsdp_units(policy):
        unit.reshard()  # so that adapters are gathered from their float32 shards, and not in the dtype of the forward
        adapters = _gathered_adapters(policy, names)
        unit.unshard()
        tensors = {}
        for name in names:
            weight, adapter = policy.get_parameter(name).detach(), adapters.get(name)
            tensors[name] = weight if adapter is None else merge(weight, *adapter)
        yield from _as_in_checkpoint(policy, tensors).items()
        unit.reshard()


def _gathered_adapters(policy: Policy, names: list[str]) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A, B and scale of each of the parameters that has an adapter. A collective of all ranks."""
    if policy.adapters is None:
        return {}
    layers = {f"lm.{name}.weight": layer for name, layer in policy.adapters.layers.items()}
    return {
        name: (whole_tensor(layer.lora_A), whole_tensor(layer.lora_B), layer.scale)
        for name in names
        if (layer := layers.get(name)) is not None
    }


def _as_in_checkpoint(policy: Policy, unit: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an FSDP unit as a checkpoint has them, given as the model has them, by the name in the policy.

    transformers renames the weights of some models when it reads them (of those with an image encoder), and joins those
    of experts.
    """
    tensors = {name.removeprefix("lm."): tensor for name, tensor in unit.items()}
    if not getattr(policy.lm, "_weight_conversions", None):
        return tensors
    converted: dict[str, Tensor] = revert_weight_conversion(policy.lm, tensors)
    return converted


def _fsdp_units(policy: Policy) -> list[tuple[FSDPModule, list[str]]]:
    """The modules that FSDP gathers one at a time, each with the names of its parameters, without those of adapters."""
    units = {name: module for name, module in policy.named_modules() if isinstance(module, FSDPModule)}
    owned: dict[str, list[str]] = {prefix: [] for prefix in units}
    for name in (name for name, _ in policy.named_parameters() if not is_adapter(name)):
        owned[max((p for p in units if not p or name.startswith(p + ".")), key=len)].append(name)
    return [(units[prefix], names) for prefix, names in owned.items()]
