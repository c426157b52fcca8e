"""Settings that nothing reads under other settings: given all the same, they are a mistake that no run would show.

:data:`_IDLE` has them in one table: the setting, when it is read, what leaves it unread, and what makes it read. Only a
value that was given and differs from the default is asked for, so a recipe may hold every value of its run, and the
configuration of a run may be read back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from common.config.learner import LearnerConfig
from common.config.lora import LoraConfig
from common.config.sections import Sections


class _Idle(NamedTuple):
    """A setting of the section ``learner``.

    Attributes:
        key: its name.
        is_read: whether its value, which is not the default, matters under the other settings of the section.
        unread: the settings that leave it without effect, as a format of the section.
        cure: what makes it matter.
    """

    key: str
    is_read: Callable[[LearnerConfig], bool]
    unread: str
    cure: str


_NO_KL = "no KL penalty (learner.kl, and kl of the stages, are 0)"

_IDLE: Sequence[_Idle] = (
    _Idle(
        "aggregation_length", lambda c: c.aggregation == "constant", "learner.aggregation = {aggregation!r}",
        "choose learner.aggregation = 'constant'",
    ),
    _Idle(
        "compliance_weight", lambda c: c.advantage == "split", "learner.advantage = {advantage!r}",
        "choose learner.advantage = 'split'",
    ),
    _Idle("std_ddof", lambda c: c.advantage_std, "learner.advantage_std = false", "set learner.advantage_std = true"),
    _Idle(
        "overlong_penalty", lambda c: c.overlong_limit > 0, "learner.overlong_limit = 0",
        "set learner.overlong_limit and learner.overlong_buffer",
    ),
    _Idle(
        "dual_clip", lambda c: c.loss == "ppo" or not c.dual_clip, "learner.loss = {loss!r}",
        "choose learner.loss = 'ppo'",
    ),
    _Idle("kl_form", lambda c: c.has_kl, _NO_KL, "give the KL a weight"),
    _Idle("kl_importance", lambda c: c.has_kl, _NO_KL, "give the KL a weight"),
    _Idle(
        "importance", lambda c: c.proximal == "step" or c.importance == "none",
        "learner.proximal = 'behaviour', in which there is no importance weight and its bounds limit nothing",
        "choose learner.proximal = 'step'",
    ),
    _Idle(
        "checkpointed_layers", lambda c: c.activation_checkpointing, "learner.activation_checkpointing = false",
        "set learner.activation_checkpointing = true",
    ),
    _Idle("weight_decay_on", lambda c: c.weight_decay > 0, "learner.weight_decay = 0", "set learner.weight_decay"),
    _Idle("reference_on_cpu", lambda c: c.has_kl, _NO_KL, "give the KL a weight"),
    _Idle("evaluate_before", lambda c: c.evaluate, "learner.evaluate = false", "set learner.evaluate = true"),
)  # fmt: skip


def settings_have_an_effect(config: Sections) -> Iterator[str]:
    """A line for each setting that was given and that nothing reads."""
    learner = config.learner
    for one in _IDLE:
        if learner.differs(one.key) and not one.is_read(learner):
            value, default = getattr(learner, one.key), type(learner).model_fields[one.key].default
            yield (
                f"learner.{one.key} = {value!r} has no effect with {one.unread.format(**dict(learner))}: {one.cure}, "
                f"or leave it at {default!r}"
            )
    if config.lora.rank and learner.differs("reference_on_cpu"):
        yield (
            f"learner.reference_on_cpu = true has no effect with lora.rank = {config.lora.rank}, whose reference is "
            "the model without its adapters and needs no memory: leave it at False"
        )
    yield from _without_adapters(config.lora)
    yield from _kl_of_the_stages(learner)
    yield from _resets_of_the_stages(learner)


def _without_adapters(lora: LoraConfig) -> Iterator[str]:
    """A rank of 0 that somebody gave switches off the adapters of an earlier file, whose other settings may stay."""
    if lora.rank or lora.gives("rank"):
        return
    for name in type(lora).model_fields:
        if lora.differs(name):
            value, default = getattr(lora, name), type(lora).model_fields[name].default
            yield (
                f"lora.{name} = {value!r} has no effect without lora.rank, whose default 0 trains all weights: set "
                f"lora.rank to train adapters, or leave lora.{name} at {default!r}"
            )


def _kl_of_the_stages(learner: LearnerConfig) -> Iterator[str]:
    """With stages the KL has the weight of the stage, which is 0 where none is named, whatever ``learner.kl`` says."""
    if not learner.stages or not learner.gives("kl"):
        return
    silent = [number for number, stage in enumerate(learner.stages, start=1) if "kl" not in stage.model_fields_set]
    if learner.kl and silent:
        yield (
            f"learner.kl = {learner.kl:g} has no effect with learner.stages: stage {silent[0]} names no kl, so its KL "
            f"has the weight 0. Write kl = {learner.kl:g} or kl = 0.0 into it, and leave learner.kl out"
        )
    elif learner.kl not in [stage.kl for stage in learner.stages]:
        weights = ", ".join(f"{stage.kl:g}" for stage in learner.stages)
        yield (
            f"learner.kl = {learner.kl:g} has no effect with learner.stages, whose kl is {weights}: change it there, "
            "and leave learner.kl out"
        )


def _resets_of_the_stages(learner: LearnerConfig) -> Iterator[str]:
    """A new reference matters where its stage or a later one has a KL."""
    for number, stage in enumerate(learner.stages):
        if stage.reset_anchor and learner.gives("stages") and not any(later.kl for later in learner.stages[number:]):
            yield (
                f"learner.stages: reset_anchor = true of stage {number + 1} has no effect with kl = 0 there and in "
                "later stages: give their KL a weight, or leave reset_anchor out"
            )
