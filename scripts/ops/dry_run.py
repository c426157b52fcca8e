"""Computes what a configuration needs: memory of each GPU, tokens of a step, bytes of a weight update.

    model=configs/models/gemma-3-4b
    python -m scripts.ops.dry_run configs/lrpo.toml $model.toml configs/gpus-4.toml --shape $model.json

All other arguments are configuration files and flags --section.key value. No weights are loaded: the model is built
from its ``config.json`` on PyTorch's meta device, so that parameters are counted and not guessed. The rest is the
arithmetic in ``learner_memory`` and ``engine_memory``. Activations are upper bounds, for full micro-batches. The
allocator's fragmentation, CUDA's context and the workspaces of kernels, together a few GB for each process, are not
counted.

Processes on one GPU are added up: the learner, an engine and the reward process with sync.transport = "shared", or
where ``--gpus`` are fewer than learner and engine need; otherwise an engine and the reward process. An engine takes its
mem_fraction_static of a GPU, whatever it needs. The exit code is 1 if a GPU needs more than ``--gpu-gb``.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from transformers import AutoConfig, AutoModelForCausalLM

from actor.engine.server import adapter_flags
from common.config import Config, load
from common.process import FatalError
from scripts.bench.table import Json, Row, report
from scripts.ops.command_line import command

GB = 1e9
_BYTES = {"float32": 4, "bfloat16": 2}


class ModelShape:
    """The sizes of a model, in parameters.

    Raises:
        FatalError: there is no such config.json, or it does not describe a causal language model.
    """

    def __init__(self, path: str, text: bool = False) -> None:
        try:
            config: Any = AutoConfig.from_pretrained(path)
            with torch.device("meta"):
                model: Any = AutoModelForCausalLM.from_config(config.get_text_config() if text else config)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).partition("\n")[0]
            raise FatalError(f"cannot build a model from {path!r}: {reason}; give its config.json as --shape") from None
        config = config.get_text_config()
        self.kind = type(model).__name__
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        layers = model.get_decoder().layers
        self.layers, self.layer = len(layers), sum(parameter.numel() for parameter in layers[0].parameters())
        self.tied = bool(config.tie_word_embeddings)
        # By name: inputs and outputs of the linear projections inside the layers, added up over all layers.
        self.projections: Counter[str] = Counter()
        for name, module in layers.named_modules():
            if isinstance(module, torch.nn.Linear):
                self.projections[name.rpartition(".")[2]] += module.in_features + module.out_features
        self.body = sum(parameter.numel() for parameter in layers.parameters())
        self.vocabulary, self.hidden = model.get_output_embeddings().weight.shape
        self.kv = config.num_key_value_heads * layers[0].self_attn.head_dim
        # Target -> inputs and outputs of its layers, added up: a LoRA adapter has as many parameters for each rank.
        self.adapted: dict[str, int] = {}
        for name, module in layers.named_modules():
            if type(module) is torch.nn.Linear:
                target = name.rpartition(".")[2]
                self.adapted[target] = self.adapted.get(target, 0) + module.in_features + module.out_features
        self.inner = 2 * config.intermediate_size + 2 * config.num_attention_heads * layers[0].self_attn.head_dim


def adapter_parameters(shape: ModelShape, config: Config) -> int:
    """How many parameters the adapters have; 0 where all weights are trained.

    Raises:
        FatalError: the model has no layer of a name in ``lora.targets``.
    """
    if not config.lora.rank:
        return 0
    if unknown := [target for target in config.lora.targets if target not in shape.adapted]:
        raise FatalError(f"lora.targets has {unknown[0]!r}, and the layers of the model are {sorted(shape.adapted)}")
    return config.lora.rank * sum(shape.adapted[target] for target in config.lora.targets)


def published_bytes(shape: ModelShape, config: Config) -> int:
    """Bytes of a weight update for one engine."""
    sent = adapter_parameters(shape, config) if config.lora.sends_adapters else shape.parameters
    return _BYTES[config.model.dtype] * sent


def learner_memory(shape: ModelShape, config: Config) -> dict[str, float]:
    """Bytes by use on the GPU of rank 0, which needs the most memory of the learner."""
    learner = config.learner
    shards = learner.ranks // learner.replicas  # ranks that the weights are sharded over
    width = _BYTES[learner.param_dtype]
    tokens = learner.microbatch_tokens
    # The activations that a layer keeps for its backward pass.
    inside = tokens * (shape.inner + 2 * shape.kv + 6 * shape.hidden) * width
    between = tokens * shape.hidden * width  # activations between two layers
    activations = shape.layers * between + inside if learner.activation_checkpointing else shape.layers * inside
    # Embeddings and the other weights outside the layers stay gathered for the whole step.
    root = shape.parameters - shape.body
    logits = 3 * 4 * learner.head_chunk * shape.vocabulary
    publish = published_bytes(shape, config)
    if adapters := adapter_parameters(shape, config):
        return {
            "frozen weights": width * shape.parameters / shards,
            "adapters, gradients and Adam": (4 + 4 + 8) * adapters / shards,
            "gathered layers": (2 * (shape.layer + adapters / shape.layers) + root) * width,
            "gathered gradients": adapters / shape.layers * width,
            "activations": activations,
            "vocabulary": logits,
            "copy to publish": publish,
        }
    return {
        "weights, gradients and Adam": (4 + 4 + 8) * shape.parameters / shards,
        "reference": 0 if learner.kl == 0 or learner.reference_on_cpu else 4 * shape.parameters / shards,
        "gathered layers": (2 * shape.layer + root) * width * (2 if learner.kl else 1),
        "gathered gradients": (shape.layer + root) * width,
        "activations": activations,
        "vocabulary": logits + 4 * shape.vocabulary * shape.hidden,
        "copy to publish": publish,
    }


def engine_memory(shape: ModelShape, config: Config) -> dict[str, float]:
    """Bytes of one engine by use, on all GPUs of its tensor-parallel group together."""
    width = _BYTES[config.model.dtype]
    longest = config.data.max_prompt_tokens + config.sampling.max_new_tokens
    held = config.actor.groups_in_flight * config.router.rollouts * longest
    slots = adapter_flags(config)["max-loras-per-batch"] if config.lora.sends_adapters else 0
    return {
        "weights": width * shape.parameters,
        **({"adapters": slots * width * adapter_parameters(shape, config)} if slots else {}),
        "cache of answers in flight": 2 * width * shape.layers * shape.kv * held,
    }


@dataclass(frozen=True)
class Machine:
    """What the processes have, and what is not in the configuration.

    Args:
        gpu_gb: memory of each GPU.
        gpus: how many there are; 0 for as many as the processes need.
        reward_gb: what the reward process takes of a GPU, which depends on its embedder.
    """

    gpu_gb: float
    gpus: int = 0
    reward_gb: float = 2.0


def gpu_rows(needs: dict[str, float], config: Config, machine: Machine) -> list[Row]:
    """What each process needs of a GPU, and what the processes on one GPU need together, compared with its memory.

    Args:
        needs: GB on one GPU of the ``learner`` and of the ``engine``.
    """
    width, ranks = int(config.actor.engine_args.get("tp", 1)), config.learner.ranks
    shares = config.sync.transport == "shared" or 0 < machine.gpus < ranks + width
    fraction = config.actor.engine_args.get("mem_fraction_static")
    reward = 0.0 if config.reward.device == "cpu" else machine.reward_gb
    takes = needs["engine"] if fraction is None else max(needs["engine"], float(fraction) * machine.gpu_gb)
    goal, table = f"< {machine.gpu_gb:g}", list[Row]()

    def compared(what: str, total: float) -> Row:
        return Row(what, total, "GB", goal=goal, ok=total < machine.gpu_gb)

    if fraction is not None:
        room = float(fraction) * machine.gpu_gb
        table.append(
            Row("engine: each GPU, by mem_fraction_static", room, "GB", goal=f"> {needs['engine']:.1f}",
                ok=room > needs["engine"])
        )  # fmt: skip
    if not shares:
        return [
            *table,
            compared("learner: each GPU", needs["learner"]),
            compared("engine: each GPU", takes),
            *([compared("engine and reward process on one GPU", takes + reward)] if reward else []),
        ]
    if fraction is None:
        # Without it SGLang takes nearly all of the memory that is free when it starts.
        table.append(
            Row("actor.engine_args.mem_fraction_static, which a shared GPU needs", 0, "", goal="> 0", ok=False)
        )
    table += [
        Row(f"{name}: each GPU", need, "GB") for name, need in (*needs.items(), ("reward process", reward)) if need
    ]
    together = "learner, engine and reward process" if reward else "learner and engine"
    return [*table, compared(f"{together} on one GPU", needs["learner"] + takes + reward)]


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
    table += gpu_rows(needs, config, machine)
    loaded = _BYTES[learner.param_dtype] if adapters else 4  # bytes of a parameter
    table.append(Row("host memory to load, all ranks", loaded * shape.parameters * learner.ranks / GB, "GB"))
    table.append(Row("answers a step", sequences, ""))
    table.append(Row("tokens a step, at most", tokens / 1e6, "million"))
    share = math.ceil(tokens / (learner.microbatch_tokens * learner.ranks))
    table.append(Row("micro-batches a step and rank, at most", share, ""))
    passes = (4 if adapters else 6) + (2 if learner.activation_checkpointing else 0) + (2 if learner.kl else 0)
    table.append(Row("work of a step in the layers, at most", passes * shape.body * tokens / 1e15, "PFLOP"))
    table.append(Row("weights sent to each engine", published_bytes(shape, config) / GB, "GB"))
    return table


@command(passes_flags_on=True)
def main(
    context: typer.Context,
    *,
    shape: Annotated[
        str, typer.Option(help="A config.json, a directory or a name of the hub; default: that of model.path.")
    ] = "",
    text: Annotated[bool, typer.Option("--text", help="Leave an image encoder out.")] = False,
    gpu_gb: Annotated[float, typer.Option(help="Memory of a GPU in GB.")] = 80,
    gpus: Annotated[int, typer.Option(help="GPUs of the machine; by default as many as the processes need.")] = 0,
    reward_gb: Annotated[float, typer.Option(help="What the reward process takes of a GPU, by its embedder.")] = 2,
    as_json: Json = False,
) -> None:
    config = load(context.args)
    found = rows(ModelShape(shape or config.model.path, text), config, Machine(gpu_gb, gpus, reward_gb))
    report("dry run", found, as_json)
    if any(row.ok is False for row in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
