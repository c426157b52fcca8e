"""The sizes of a small world, laid over a published recipe.

A recipe was published for a large model, long answers and thousands of them in a step. What follows from that comes
from the configuration of the world, and everything else stays as it was published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from common.config import Config

# Taken from the world as they are: model, lengths, groups, steps, actors, and what only decides how fast a run is. Also
# the temperature, at which all policies are measured: it divides logits, whose size is that of a model and warm start.
_TAKEN = (
    "run.languages", "data.max_prompt_tokens", "model.dtype", "model.prompt_style", "router.rollouts",
    "sampling.max_new_tokens", "sampling.temperature", "actor.engine_args", "actor.groups_in_flight",
    "learner.steps", "learner.epochs",
    "learner.groups_per_step", "learner.ranks", "learner.warmup_steps", "learner.param_dtype",
    "learner.microbatch_tokens", "learner.activation_checkpointing", "learner.checkpoint_every", "learner.evaluate",
    "learner.evaluate_every", "learner.evaluate_samples", "learner.evaluate_unseen",
)  # fmt: skip
_ADAPTER_RATE = 10  # times the rate of all weights


def world_sizes(recipe: Config, world: Config) -> list[str]:
    """Flags that give a recipe the sizes of a world.

    * Lengths that are shares of the longest answer, and the questions that may replace others, keep their proportion.
    * The learning rate goes with the size of the model and with the number of steps, so it is the world's, and for LoRA
      ten times that, as docs/lora.md found. It is divided by the optimizer steps that the recipe makes of a batch,
      because AdamW moves a weight by about the rate in each, whatever the gradient. So all recipes move the weights
      about as far. Published rates differ up to 40-fold, which this leaves out of the comparison.
    """
    published, own = _flat(recipe), _flat(world)
    flags = {key: own[key] for key in _TAKEN}
    longest = own["sampling.max_new_tokens"] / published["sampling.max_new_tokens"]
    groups = own["learner.groups_per_step"] / published["learner.groups_per_step"]
    for key, factor in (
        ("learner.aggregation_length", longest),
        ("learner.overlong_limit", longest),
        ("learner.overlong_buffer", longest),
        ("learner.refill", groups),
    ):
        if published[key]:
            flags[key] = max(1, round(published[key] * factor))
    flags["learner.minibatches"] = min(published["learner.minibatches"], own["learner.groups_per_step"])
    rollouts = own["router.rollouts"] / published["router.rollouts"]
    flags["router.own_language"] = min(round(published["router.own_language"] * rollouts), own["router.rollouts"])
    rate = own["learner.lr"] / (flags["learner.minibatches"] * published["learner.passes"])
    rate *= _ADAPTER_RATE if published["lora.rank"] else 1
    flags["learner.lr"] = rate
    flags["learner.min_lr"] = published["learner.min_lr"] / published["learner.lr"] * rate
    return [word for key, value in flags.items() for word in _flags(key, value)]


def _flags(key: str, value: Any) -> list[str]:
    """As ``common.config.load`` reads them: one for each key of a table."""
    if isinstance(value, dict):
        return [word for name, inner in value.items() for word in _flags(f"{key}.{name}", inner)]
    return [f"--{key}", json.dumps(value)]


def _flat(config: Config) -> Mapping[str, Any]:
    """``section.key`` -> value, as JSON has it."""
    return {
        f"{section}.{key}": value
        for section, values in config.model_dump(mode="json").items()
        for key, value in values.items()
    }
