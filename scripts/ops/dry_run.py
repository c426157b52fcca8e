"""Computes what a configuration needs: memory of each GPU, tokens of a step, bytes of a weight update.

    model=configs/models/gemma-3-4b
    python -m scripts.ops.dry_run configs/lrpo.toml $model.toml configs/gpus-4.toml --shape $model.json

All other arguments are configuration files and flags --section.key value. No weights are loaded: the model is built
from its ``config.json`` on PyTorch's meta device, so that parameters are counted and not guessed. The rest is the
arithmetic in ``learner_memory`` and ``engine_memory``. Activations are of full micro-batches. What CUDA, kernels and
the allocator's fragmentation take of a GPU is counted as ``--process-gb`` for each process. Between steps the learner
publishes in the memory that activations have left, so only what publishing needs beyond that is added.

Processes on one GPU are added up: the learner, an engine and the reward process with sync.transport = "shared", or
where ``--gpus`` are fewer than learner and engine need; otherwise the learner and the reward process. An engine takes
what max_total_tokens makes of its cache, or otherwise its mem_fraction_static of a GPU, whatever it needs. The exit
code is 1 if a GPU needs more than ``--gpu-gb``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from transformers import AutoConfig, AutoModelForCausalLM

from actor.engine.server import adapter_flags
from common.config import Config, load
from common.hub import why
from common.process import FatalError
from learner.train.lora import adapted_layers, adapter_size, linear_layers
from learner.weights.leader import buckets_kept, group_backend
from scripts.bench.table import Json, Row, report
from scripts.ops.command_line import command

GB = 1e9
_BYTES = {"float32": 4, "bfloat16": 2}


class ModelShape:
    """The sizes of a model, in parameters.

    Args:
        path: as ``--shape``.
        text: leave an image encoder out.
        layers: pretend that it has so many; 0 for as many as it has.

    Raises:
        FatalError: there is no such config.json, or it does not describe a causal language model.
    """

    def __init__(self, path: str, text: bool = False, layers: int = 0) -> None:
        try:
            config: Any = AutoConfig.from_pretrained(path)
            if layers:
                limit_layers(config, layers)
            with torch.device("meta"):
                model: Any = AutoModelForCausalLM.from_config(config.get_text_config() if text else config)
        except (OSError, ValueError, KeyError) as error:
            raise FatalError(f"cannot build a model from {path!r}: {why(path, error)}") from None
        config = config.get_text_config()
        self.kind = type(model).__name__
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.largest = max(parameter.numel() for parameter in model.parameters())
        stack = model.get_decoder().layers
        self.layers, self.layer = len(stack), sum(parameter.numel() for parameter in stack[0].parameters())
        self.tied = bool(config.tie_word_embeddings)
        self.linear = linear_layers(model)  # on the meta device
        self.body = sum(parameter.numel() for parameter in stack.parameters())
        self.vocabulary, self.hidden = model.get_output_embeddings().weight.shape
        head = stack[0].self_attn.head_dim
        self.kv, self.query = config.num_key_value_heads * head, config.num_attention_heads * head
        self.heads, self.inner = config.num_attention_heads, config.intermediate_size
        # Values for each token that the norms of a layer are applied to, of which some are those of query and key.
        widths = {"q_norm": self.query, "k_norm": self.kv}
        norms = {name.rpartition(".")[2]: type(one).__name__ for name, one in stack[0].named_modules()}
        norms = {name: kind for name, kind in norms.items() if "Norm" in kind}
        self.normed = sum(widths.get(name, self.hidden) for name in norms)
        # Results that no product takes: of norms after attention and MLP, as Gemma has them; of those of query and key.
        after = [name for name in norms if name.startswith("post_")] if "pre_feedforward_layernorm" in norms else []
        self.normed_after = self.hidden * len(after)
        self.normed_heads = sum(width for name, width in widths.items() if name in norms)
        self.norms_in_float32 = any("Gemma" in kind for kind in norms.values())  # learner/train/fused.py says why

    def kept_by_layer(self, width: int, *, compiled: bool, frozen: bool) -> int:
        """Bytes for each token that a layer keeps for its backward pass, in a forward pass of so many bytes a value.

        A norm keeps its input, and its result if a product takes it; those of query and key keep theirs also where they
        are not compiled and their gains are trained. Attention keeps query, key, value and result, and a float32 for
        each head. The gated MLP keeps arrays of its inner width: the gate, the other
        branch, their product, and unless it is compiled the activation of the gate.
        """
        norms = (max(width, 4 if self.norms_in_float32 else 0) + width) * self.normed
        norms -= width * (self.normed_after + self.normed_heads * (frozen or compiled))
        gated = 3 if compiled else 4
        kept: int = norms + width * (2 * self.query + 2 * self.kv + gated * self.inner) + 4 * self.heads
        return kept


def limit_layers(config: Any, layers: int) -> None:
    """Gives a configuration of transformers another number of layers, in place."""
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]


def adapter_parameters(shape: ModelShape, config: Config) -> int:
    """How many parameters the adapters have; 0 where all weights are trained.

    Raises:
        FatalError: the model has no layer of a name in ``lora.targets``.
    """
    if not config.lora.rank:
        return 0
    return adapter_size(adapted_layers(shape.linear, config.lora.targets).values(), config.lora.rank)


def published_bytes(shape: ModelShape, config: Config) -> int:
    """Bytes of a weight update for one engine."""
    sent = adapter_parameters(shape, config) if config.lora.sends_adapters else shape.parameters
    return _BYTES[config.model.dtype] * sent


def all_ranks(config: Config) -> int:
    """How many ranks the learner has, on all its machines together."""
    return config.learner.ranks * config.learner.nodes


def learner_memory(shape: ModelShape, config: Config) -> dict[str, float]:
    """Bytes by use on the GPU of rank 0, which needs the most memory of the learner."""
    step = _step_memory(shape, config)
    if config.sync.transport == "shared" and not config.lora.sends_adapters:
        return {**step, "copy to publish": published_bytes(shape, config)}
    # Training and publishing take turns, and torch gives the one what the other has freed.
    free = sum(_transient_memory(shape, config).values()) - _kept_gathered(shape, config)
    return {**step, "to publish, beyond a step": max(0.0, publishing_memory(shape, config) - free)}


def publishing_memory(shape: ModelShape, config: Config) -> float:
    """Bytes of rank 0's GPU that exist only while it publishes, between two steps.

    They are the layer, or the rest of the model, that is gathered, and buckets of gathered tensors, as many as it keeps
    for an engine that lags behind. Gloo sends buckets from host memory.
    """
    if config.lora.sends_adapters:
        return 0.0
    needed: float = _BYTES[config.learner.param_dtype] * max(shape.layer, shape.parameters - shape.body)
    needed += _BYTES["float32"] * shape.layer if config.lora.rank else 0  # with the adapters added to it
    if config.sync.transport == "shared" or group_backend(config.sync, torch.device("cuda")) == "gloo":
        return needed
    # A tensor larger than sync.bucket_mb has a bucket of its own.
    bucket = max(int(config.sync.bucket_mb * 2**20), _BYTES[config.model.dtype] * shape.largest)
    needed += min(buckets_kept(bucket) * bucket, published_bytes(shape, config))
    return needed


def _kept_gathered(shape: ModelShape, config: Config) -> float:
    """Bytes of gathered weights that stay after a step: those of the reference policy."""
    learner = config.learner
    if not learner.has_kl or config.lora.rank or learner.reference_on_cpu:
        return 0.0
    kept: float = _BYTES[learner.param_dtype] * (shape.parameters - (0 if learner.keep_gathered else shape.body))
    return kept


def peak_memory(shape: ModelShape, config: Config) -> float:
    """Most bytes that a step takes of rank 0's GPU, without what publishing keeps there."""
    return sum(_step_memory(shape, config).values())


def _step_memory(shape: ModelShape, config: Config) -> dict[str, float]:
    """Bytes by use on rank 0's GPU in a step."""
    learner = config.learner
    width = _BYTES[learner.param_dtype]
    shards = all_ranks(config) // learner.replicas  # ranks that the weights are sharded over
    adam = 8 if learner.optimizer == "adamw" else 2 * (1 + 4 / 256)  # in 8 bits 256 values share a scale in float32
    if adapters := adapter_parameters(shape, config):
        kept = {
            "frozen weights": width * shape.parameters / shards,
            "adapters, gradients and Adam": (4 + 4 + adam) * adapters / shards,
        }
    else:
        kept = {
            "weights, gradients and Adam": 0
            if learner.optimizer_on_cpu
            else (4 + 4 + adam) * shape.parameters / shards,
            "reference": 0 if not learner.has_kl or learner.reference_on_cpu else width * shape.parameters / shards,
        }
    return {**kept, **_transient_memory(shape, config)}


def _transient_memory(shape: ModelShape, config: Config) -> dict[str, float]:
    """What exists within a step, at the moment that needs the most of it."""
    learner = config.learner
    width, tokens = _BYTES[learner.param_dtype], learner.microbatch_tokens
    chunk = min(learner.head_chunk, tokens) * shape.vocabulary
    shards = all_ranks(config) // learner.replicas
    root = shape.parameters - shape.body  # embeddings and the last norm, which stay gathered for the whole step
    trained = 0 if config.lora.rank else 1  # what is frozen has no gradient, and no second copy for the reference
    matrix = trained * shape.vocabulary * shape.hidden
    checkpointed = math.ceil(shape.layers * learner.checkpointed_layers) if learner.activation_checkpointing else 0
    inside = tokens * shape.kept_by_layer(width, compiled=learner.compile, frozen=not trained)
    between = tokens * shape.hidden * width
    kept = (shape.layers - checkpointed) * inside + checkpointed * between
    # In the head: logits and their logarithmic softmax, unless that is compiled; in its backward pass logits, their
    # gradient, and the float32 gradient of the matrix.
    head = max((4 if learner.compile else 8) * chunk, (4 + width) * chunk + 4 * matrix)
    # In that of a checkpointed layer: what it keeps; the gradients of its three widest arrays, one of which it keeps no
    # longer by then; the gradient of the layer before, which is being reduced; and that of the matrix.
    gradients = trained * 4 * shape.layer + width * matrix
    layer = inside + 2 * tokens * shape.inner * width + gradients if checkpointed else 0.0
    roots = 2 if learner.has_kl and trained else 1
    # Two layers, twice while they travel between ranks.
    gathered = (2 if shards == 1 else 4) * shape.layer
    if learner.keep_gathered:
        gathered = max(gathered, shape.body * (2 if learner.has_kl and trained and not learner.reference_on_cpu else 1))
    return {
        "gathered weights": (gathered + root * roots) * width,
        "activations": kept,
        # The layers that are not checkpointed are the last ones, and have freed theirs before one is computed again.
        "gradients on the way": max(head, checkpointed * between + layer - kept),
    }


def engine_memory(shape: ModelShape, config: Config) -> dict[str, float]:
    """Bytes of one engine by use, on all GPUs of its tensor-parallel group together.

    The cache is that of ``max_total_tokens`` if it is given, otherwise of the answers that are in flight at once.
    """
    width = _BYTES[config.model.dtype]
    given = config.actor.engine_args.get("max_total_tokens")
    slots = adapter_flags(config)["max-loras-per-batch"] if config.lora.sends_adapters else 0
    return {
        "weights": width * shape.parameters,
        **({"adapters": slots * width * adapter_parameters(shape, config)} if slots else {}),
        "cache of answers in flight": 2 * width * shape.layers * shape.kv * int(given or tokens_in_flight(config)),
    }


def tokens_in_flight(config: Config) -> int:
    """Most tokens of prompts and answers that an actor has in its engine at once."""
    longest = config.data.max_prompt_tokens + config.sampling.max_new_tokens
    return config.actor.groups_in_flight * config.router.rollouts * longest


@dataclass(frozen=True)
class Machine:
    """What the processes have, and what is not in the configuration.

    Args:
        gpu_gb: memory of each GPU.
        gpus: how many there are; 0 for as many as the processes need.
        reward_gb: what the reward process takes of a GPU, which depends on its embedder.
        process_gb: what each process takes of a GPU besides: CUDA's context, kernels and fragmentation.
    """

    gpu_gb: float
    gpus: int = 0
    reward_gb: float = 2.0
    process_gb: float = 2.0


def gpu_rows(needs: dict[str, float], config: Config, machine: Machine) -> list[Row]:
    """What each process needs of a GPU, and what the processes on one GPU need together, compared with its memory.

    Args:
        needs: GB on one GPU of the ``learner`` and of the ``engine``.
    """
    arguments, ranks = config.actor.engine_args, config.learner.ranks
    shares = config.sync.transport == "shared" or 0 < machine.gpus < ranks + int(arguments.get("tp", 1))
    reward = 0.0 if config.reward.device == "cpu" else machine.reward_gb
    learner, engine = (needs[name] + machine.process_gb for name in ("learner", "engine"))
    fraction = arguments.get("mem_fraction_static")
    table = list[Row]()

    def compared(what: str, total: float) -> Row:
        return Row(what, total, "GB", goal=f"< {machine.gpu_gb:g}", ok=total < machine.gpu_gb)

    if (given := arguments.get("max_total_tokens")) is not None:
        wanted = tokens_in_flight(config)
        told = "of prompts and answers in flight"
        table.append(
            Row(f"actor.engine_args.max_total_tokens, {told}", int(given), "", f"{wanted}", int(given) / wanted)
        )
        if shares and fraction is not None:
            # SGLang lets its weights and cache take this share of the memory that is free when it starts.
            room = float(fraction) * (machine.gpu_gb - learner - reward)
            table.append(
                Row("engine: room when the learner has begun, by mem_fraction_static", room, "GB",
                    goal=f"> {needs['engine']:.1f}", ok=room > needs["engine"])
            )  # fmt: skip
    elif fraction is not None:
        room = float(fraction) * machine.gpu_gb
        engine = max(engine, room)
        table.append(
            Row("engine: each GPU, by mem_fraction_static", room, "GB", goal=f"> {needs['engine']:.1f}",
                ok=room > needs["engine"])
        )  # fmt: skip
    if not shares:
        table += [compared("learner: each GPU", learner), compared("engine: each GPU", engine)]
        return [*table, *([compared("learner and reward process on one GPU", learner + reward)] if reward else [])]
    if given is None:
        # Without it the engine's cache depends on what the others have taken of the GPU when it starts.
        table.append(Row("actor.engine_args.max_total_tokens, which a shared GPU needs", 0, "", goal="> 0", ok=False))
    parts = (("learner", learner), ("engine", engine), ("reward process", reward))
    table += [Row(f"{name}: each GPU", need, "GB") for name, need in parts if need]
    together = "learner, engine and reward process" if reward else "learner and engine"
    return [*table, compared(f"{together} on one GPU", learner + engine + reward)]


def least_checkpointing(shape: ModelShape, config: Config, free_gb: float) -> float | None:
    """The smallest ``learner.checkpointed_layers`` with which a step fits, beside what else is on the GPU.

    Args:
        free_gb: memory of a GPU that the learner may take.

    Returns:
        0 if no layer has to be checkpointed, and None if all of them do not suffice.
    """
    for layers in range(shape.layers + 1):
        share = layers / shape.layers
        own = {"activation_checkpointing": layers > 0, "checkpointed_layers": share or 1.0}
        tried = config.model_copy(update={"learner": config.learner.model_copy(update=own)})
        if sum(learner_memory(shape, tried).values()) / GB < free_gb:
            return share
    return None


def rows(shape: ModelShape, config: Config, machine: Machine) -> list[Row]:
    """The table of all figures; the total of a GPU is compared with its memory."""
    learner = config.learner
    sequences = learner.groups_per_step * config.router.rollouts
    tokens = sequences * (config.data.max_prompt_tokens + config.sampling.max_new_tokens)
    table = [Row(f"parameters of {shape.kind}", shape.parameters / 1e9, "billion")]
    if adapters := adapter_parameters(shape, config):
        table.append(Row(f"trained parameters, lora.rank = {config.lora.rank}", adapters / 1e6, "million"))
    needs = {}
    for name, parts in (("learner", learner_memory(shape, config)), ("engine", engine_memory(shape, config))):
        table += [Row(f"{name}: {use}", value / GB, "GB") for use, value in parts.items()]
        width = int(config.actor.engine_args.get("tp", 1)) if name == "engine" else 1
        needs[name] = sum(parts.values()) / GB / width
    table.append(Row("learner: while it publishes, between steps", publishing_memory(shape, config) / GB, "GB"))
    on_gpus = gpu_rows(needs, config, machine)
    table += on_gpus
    # Whole, before it is sharded: in float32, and the reference too; or frozen, in the dtype of the forward pass.
    each = _BYTES[learner.param_dtype] if adapters else 4
    loaded = (2 if learner.has_kl and not adapters else 1) * each * shape.parameters / GB + machine.process_gb
    table.append(Row("learner: while it loads", loaded, "GB", goal=f"< {machine.gpu_gb:g}", ok=loaded < machine.gpu_gb))
    beside = max(row.value for row in on_gpus if row.metric.endswith("one GPU") or row.metric == "learner: each GPU")
    share = least_checkpointing(shape, config, machine.gpu_gb - (beside - needs["learner"]))
    table.append(Row("share of the layers that has to be checkpointed", 1 if share is None else share, ""))
    table.append(Row("host memory to load, all ranks of a machine", each * shape.parameters * learner.ranks / GB, "GB"))
    table.append(Row("answers a step", sequences, ""))
    table.append(Row("tokens a step, at most", tokens / 1e6, "million"))
    micro_batches = math.ceil(tokens / learner.minibatches / (learner.microbatch_tokens * all_ranks(config)))
    updates = learner.minibatches * learner.passes
    table.append(Row("micro-batches a step and rank, at most", updates * micro_batches, ""))
    table.append(Row("work of a step in the layers, at most", _work(shape, config) * tokens / 1e15, "PFLOP"))
    table.append(Row("weights sent to each engine", published_bytes(shape, config) / GB, "GB"))
    return table


def _work(shape: ModelShape, config: Config) -> float:
    """Floating-point operations in the layers for each token of a step: 2 for each parameter and forward pass."""
    learner = config.learner
    again = 2 * learner.checkpointed_layers if learner.activation_checkpointing else 0
    one_pass = (4 if config.lora.rank else 6) + again + (2 if learner.has_kl else 0)
    # The log-probabilities before the first optimizer step, for all mini-batches but the first.
    before = 2 * (1 - 1 / learner.minibatches) if learner.proximal == "step" else 0.0
    work: float = (learner.passes * one_pass + before) * shape.body
    return work


@command(passes_flags_on=True)
def main(
    context: typer.Context,
    *,
    shape: Annotated[
        str, typer.Option(help="A config.json, a directory or a name of the hub; default: that of model.path.")
    ] = "",
    text: Annotated[bool, typer.Option("--text", help="Leave an image encoder out.")] = False,
    gpu_gb: Annotated[float, typer.Option(min=0, help="Memory of a GPU in GB.")] = 80,
    gpus: Annotated[
        int, typer.Option(min=0, help="GPUs of the machine; by default as many as the processes need.")
    ] = 0,
    reward_gb: Annotated[
        float, typer.Option(min=0, help="What the reward process takes of a GPU, by its embedder.")
    ] = 2,
    process_gb: Annotated[
        float, typer.Option(min=0, help="What learner and engine take besides, each: CUDA, kernels.")
    ] = 2,
    as_json: Json = False,
) -> None:
    config = load(context.args)
    try:
        sizes = ModelShape(shape or config.model.path, text)
    except FatalError as error:
        raise FatalError(f"{error}{'' if shape else '; or give its config.json as --shape'}") from None
    found = rows(sizes, config, Machine(gpu_gb, gpus, reward_gb, process_gb))
    report("dry run", found, as_json)
    if any(row.ok is False for row in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
