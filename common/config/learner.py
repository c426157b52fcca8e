"""The section ``learner``, and the stages of its rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.config.section import Fraction, LanguageCode, Section


class StageConfig(Section):
    """A part of the run with its own weights of the reward's parts; learner/train/stages.py has the equation."""

    until: Fraction = 1.0  # share of the steps after which it ends
    correctness: float = Field(1.0, ge=0)  # of the quality, whatever the language
    compliance: float = Field(0.2, ge=0)  # of thinking in the language chosen or asked for
    selection: float = Field(0.2, ge=0)  # of a well-formed header; this and the next two for who chose alone
    diversity: float = Field(0.0, ge=0)  # of choosing what few others choose, and keeping to it
    diversity_over: Literal["batch", "group"] = "batch"  # the others are those of the step, or of the same question
    diversity_ema: float = Field(1.0, gt=0, le=1)  # weight of the present choices beside those of earlier steps
    success: float = Field(0.0, ge=0)  # of choosing a language in which some answer is right
    success_over: Literal["batch", "group"] = "group"  # in a large batch every language has one: it tells nothing apart
    kl: float = Field(0.0, ge=0)  # in place of learner.kl
    reset_anchor: bool = False  # from its first step on, the KL is to the policy as it was then


class LearnerConfig(Section):
    address: str = "tcp://127.0.0.1:5700"  # the work queue; actors connect here. tcp://*:PORT: on every interface
    ranks: int = Field(1, gt=0)  # processes torchrun starts on this machine
    nodes: int = Field(1, gt=0)  # machines that start them; any may lead, so beyond one there must be a run.rendezvous
    torchrun: str = "127.0.0.1:29400"  # HOST:PORT where these meet, on one of them
    restarts: int = Field(0, ge=0)  # of learners that fail, by torchrun, from the newest checkpoint
    replicas: int = Field(
        1, gt=0
    )  # > 1: that many whole copies of the weights, each sharded over its part of the ranks
    steps: int = Field(64, gt=0)
    groups_per_step: int = Field(256, gt=0)  # P: questions a step
    staleness: int = Field(1, ge=0)  # S: (S + 1) P groups alive; 0 is synchronous and on policy
    window: int = Field(1, gt=0)  # W: a step may overtake the oldest group by fewer than this many; docs/staleness.md
    lr: float = Field(1e-6, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    advantage: Literal["gated", "split"] = "gated"  # split: quality among answers in their language, compliance apart
    advantage_std: bool = True  # divide by the group's standard deviation, as LRPO does
    compliance_weight: float = Field(1.0, ge=0)  # of the term for compliance when split
    stages: tuple[StageConfig, ...] = ()  # rewards one after the other; none: quality where compliant, else 0
    aggregation: Literal["token", "sequence", "fertility"] = "token"  # of the loss; learner/train/grpo.py
    mask_truncated: bool = False  # answers that hit the length limit carry no gradient, yet count in their group
    clip_low: float = Field(0.2, gt=0)  # inert while a batch is one optimizer step, as then the ratio is 1
    clip_high: float = Field(0.2, gt=0)
    dual_clip: float = Field(3.0, gt=1)  # bounds the loss of a token with negative advantage, where the ratio is large
    kl: float = Field(0.001, ge=0)  # weight of the k3 estimator against the initial policy; 0 loads no reference
    reference_on_cpu: bool = False  # the initial policy rests in host memory; slower, for large models on few GPUs
    importance: Literal["truncate", "mask"] = "truncate"  # of tokens whose weight learner/behaviour is out of bounds
    importance_cap: float = Field(2.0, gt=0)
    importance_floor: float = Field(0.5, ge=0)  # for mask alone
    microbatch_tokens: int = Field(16384, gt=0)  # a longer sequence is cut to this
    head_chunk: int = Field(1024, gt=0)  # rows of logits alive at a time
    param_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the forward pass; master weights are float32
    activation_checkpointing: bool = False
    lease_timeout_s: float = Field(60, gt=2)  # a silent actor's groups go to the others; it beats every 2 s
    group_attempts: int = Field(3, gt=0)  # a group handed back this often is entered as failed
    batch_timeout_s: float = Field(1800, gt=0)  # without P finished groups for this long the run ends with an error
    checkpoint_every: int = Field(10, gt=0)
    checkpoints_kept: int = Field(2, gt=0)
    record: Path | None = None  # a directory: keeps every trained group there, for python -m learner.replay DIR
    evaluate: bool = True  # greedy answers before the first and after the last step
    evaluate_every: int = Field(0, ge=0)  # and after every so many steps, while finished groups wait; 0: not
    evaluate_questions: int = Field(64, gt=0)  # at most this many of each set, evenly spread
    evaluate_samples: int = Field(0, ge=0)  # select: sampled answers to a question, free and in languages asked for
    evaluate_unseen: tuple[LanguageCode, ...] = ()  # of these samples, languages that are not of the run

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ends = [stage.until for stage in self.stages]
        if ends and (ends != sorted(set(ends)) or ends[-1] != 1 or ends[0] == 0):
            raise ValueError(f"stages: until = {ends} must increase from above 0 to 1")
        if ends and self.advantage != "gated":
            raise ValueError("stages weigh compliance themselves: advantage must be 'gated'")
        return self

    def stage(self, step: int) -> StageConfig | None:
        """Of a step, counted from 0; None where there are no stages."""
        return next((stage for stage in self.stages if step < stage.until * self.steps), None)
