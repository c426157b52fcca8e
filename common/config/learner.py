"""The section ``learner``, and the stages of its rewards."""

from __future__ import annotations

import math
from fractions import Fraction as Exact
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from common.config.section import ConfigError, Fraction, LanguageCode, Section


class StageConfig(Section):
    """A part of the run with its own weights for the parts of the reward; learner/train/stages.py has the equation."""

    until: Fraction = 1.0  # share of the run's steps after which the stage ends
    correctness: float = Field(1.0, ge=0)  # weight of the quality, whatever the language
    compliance: float = Field(0.2, ge=0)  # weight of thinking in the language that was chosen or asked for
    # The weights of selection, diversity and success count only for answers whose language the policy chose.
    selection: float = Field(0.2, ge=0)  # weight of a well-formed header
    diversity: float = Field(0.0, ge=0)  # weight of choosing what few others choose, and keeping to it
    diversity_over: Literal["batch", "group"] = "batch"  # the others are those of the step, or of the same question
    diversity_ema: float = Field(1.0, gt=0, le=1)  # weight of the present choices beside those of earlier steps
    success: float = Field(0.0, ge=0)  # weight of choosing a language in which some answer is right
    # Over which answers success looks. In a large batch every language has a right answer, which tells nothing apart.
    success_over: Literal["batch", "group"] = "group"
    kl: float = Field(0.0, ge=0)  # takes the place of learner.kl
    reset_anchor: bool = False  # from its first step on, the KL is to the policy as it was at that step


class LearnerConfig(Section):
    """The learner: its processes, the GRPO step, admission of groups, checkpoints and evaluation."""

    # Processes
    address: str = "tcp://127.0.0.1:5700"  # where actors connect; tcp://*:PORT listens on every interface
    ranks: int = Field(1, gt=0)  # processes that torchrun starts on this machine
    nodes: int = Field(1, gt=0)  # machines that do so; more than one needs run.rendezvous, as any of them may lead
    torchrun: str = "127.0.0.1:29400"  # HOST:PORT where these machines meet, on one of them
    restarts: int = Field(0, ge=0)  # how often torchrun starts failed ranks again, from the newest checkpoint
    replicas: int = Field(1, gt=0)  # whole copies of the weights, each sharded over its part of the ranks

    # Admission of prompt groups
    # The run ends after so many steps, or when the questions have been asked so often, whichever comes first; 0 means
    # no such end. With epochs alone, steps is 0; with neither, 64.
    steps: int = Field(64, ge=0)
    epochs: float = Field(0.0, ge=0)  # passes over the training questions, of which the last step is a whole one
    groups_per_step: int = Field(256, gt=0)  # questions in a step [P]
    staleness: int = Field(1, ge=0)  # at most (S + 1) P groups are alive [S]; 0 is synchronous and on policy
    # Fewer than this many younger groups may be trained before an unfinished one; 1: strictly oldest first [W].
    window: int = Field(1, gt=0)  # docs/staleness.md
    lease_timeout_s: float = Field(60, gt=0)  # the groups of an actor that is silent for so long go to the others
    # A group is entered as failed when so many attempts have failed for the same cause, and with two machines or all
    # that are there (docs/failures.md). One attempt is enough for what an engine refuses, and an outage is none.
    group_attempts: int = Field(3, gt=0)
    # So many engines may end by themselves while they generate a group. Then it is leased alone, and entered as failed
    # if it was alone when the last of them ended, and those of two machines or of all that are there have.
    group_engines: int = Field(2, gt=0)
    group_timeout_s: float = Field(1800, gt=0)  # the run ends with an error when no group has come for so long

    # Optimizer
    # AdamW with its state in float32, 8 bytes for each parameter; or in 8 bits, 2 bytes, by the package torchao.
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    lr: float = Field(1e-6, gt=0)
    # After the warm-up the rate stays, or falls to min_lr over the steps of the run; learner/train/schedules.py.
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    min_lr: float = Field(0.0, ge=0)  # where "linear" and "cosine" end
    warmup_steps: int = Field(0, ge=0)  # over which the rate rises to lr
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    # What decays: "matrices" leaves out biases and the gains of norms, which decay would pull from 1 towards 0; "all"
    # is every parameter, as in verl and plain AdamW.
    weight_decay_on: Literal["matrices", "all"] = "matrices"
    max_grad_norm: float = Field(1.0, gt=0)
    # Keep weights, gradients and the state of the optimizer in host memory, and make its step there: slower, for large
    # models on few GPUs. Without effect on a CPU.
    optimizer_on_cpu: bool = False
    # Optimizer steps for a batch: its groups are divided into so many mini-batches, which are gone through so often.
    # With more than one step in all, the ratio of the policy to the one at the beginning of the batch is not always 1.
    minibatches: int = Field(1, gt=0)
    passes: int = Field(1, gt=0)

    # Advantages; learner/train/advantages.py has the equations
    # "gated" takes the reward as it is; "split" compares quality among answers in their language, compliance apart;
    # "decoupled" normalises each part of the reward alone (GDPO).
    advantage: Literal["gated", "split", "decoupled"] = "gated"
    advantage_std: bool = True  # divide by the group's standard deviation, as LRPO does; false as in Dr. GRPO
    std_ddof: Literal[0, 1] = 1  # that of a sample, Σ(r − mean)² / (K − 1), as in verl and TRL; 0: of a population, / K
    # Leave out groups whose answers all have the same reward; otherwise their tokens count in the mean and in the KL.
    drop_zero_variance: bool = True
    # At most so many groups of a step are set aside because their answers all have the same reward or may not carry
    # gradient, and others are asked in their place (DAPO's dynamic sampling); 0 trains on the rest. docs/losses.md
    refill: int = Field(0, ge=0)
    compliance_weight: float = Field(1.0, ge=0)  # of the compliance term of "split"
    # Of "decoupled": the terms of reward.terms, or parts of reward.parts, with their weights. "reward", "quality" and
    # "compliance" are also parts.
    decoupled_parts: dict[str, float] = {}
    step_reward: str = ""  # "FILE.py:NAME", rewards or advantages of a whole step by one's own rule; docs/rewards.md
    stages: tuple[StageConfig, ...] = ()  # rewards that change over the run; without any, quality where compliant
    # The penalty of DAPO for long answers: it is taken from the reward, grows over the last overlong_buffer tokens
    # before overlong_limit from 0 to overlong_penalty, and stays there. A limit of 0 means no penalty. With "decoupled"
    # it is a part of the reward, which grows from 0 to 1, with overlong_penalty as its weight.
    overlong_limit: int = Field(0, ge=0)  # tokens of an answer; usually sampling.max_new_tokens
    overlong_buffer: int = Field(0, ge=0)  # tokens
    overlong_penalty: float = Field(1.0, gt=0)
    mask_truncated: bool = False  # answers that hit the length limit carry no gradient, but count in their group

    # Loss; learner/train/surrogates.py and learner/train/objective.py have the equations
    loss: Literal["ppo", "gspo", "cispo"] = "ppo"  # clip of each token's ratio; of the answer's; of the gradient weight
    # What the loss is a mean over, learner/train/aggregation.py. "constant" divides the sum of an answer's tokens by
    # aggregation_length, whatever its length (Dr. GRPO).
    aggregation: Literal["token", "sequence", "fertility", "constant"] = "token"
    aggregation_length: int = Field(0, ge=0)  # tokens; usually sampling.max_new_tokens
    # The ratio is clipped to [1 − clip_low, 1 + clip_high]. Without effect on "ppo" and "gspo" while a batch is one
    # optimizer step on policy, as the ratio is 1 then.
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.2, gt=0)
    dual_clip: float = Field(3.0, ge=0)  # of "ppo": bounds the loss of a token with negative advantage; 0: no bound
    # What the ratio is taken against: the policy at the beginning of the step, so that the age of an answer is left to
    # the importance weight (decoupled PPO); or the policy that generated the token, and then there is no such weight.
    proximal: Literal["step", "behaviour"] = "step"
    kl: float = Field(0.001, ge=0)  # weight of the KL to the initial policy; 0 loads no reference
    kl_form: Literal["k1", "k2", "k3"] = "k3"  # the estimator of the KL, as in joschu.net/blog/kl-approx.html
    kl_importance: bool = False  # weight the KL of a token by ratio and importance weight, for an unbiased gradient
    entropy_bonus: float = Field(0.0, ge=0)  # weight of the entropy of the policy, which is then made larger
    # Keep the initial policy in host memory: slower, for large models on few GPUs. With LoRA it needs no memory anyway.
    reference_on_cpu: bool = False
    # What happens to tokens whose importance weight (learner / behaviour) is out of bounds.
    importance: Literal["truncate", "mask", "none"] = "truncate"  # "none" leaves the weight out
    importance_cap: float = Field(2.0, gt=0)
    importance_floor: float = Field(0.5, ge=0)  # "mask" alone uses it; the share of tokens outside is always reported

    # Computation
    microbatch_tokens: int = Field(16384, gt=0)  # of prompts and answers together; longer sequences are cut to this
    head_chunk: int = Field(1024, gt=0)  # rows of logits that exist at a time
    param_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the forward pass; master weights are float32
    # Compute activations again in the backward pass instead of keeping them: a third more work, far less memory.
    activation_checkpointing: bool = False
    checkpointed_layers: float = Field(1.0, gt=0, le=1)  # share of the layers that do so; dry_run finds one
    # Keep whole weights in param_dtype on every GPU, from the forward to the backward pass, and those of the reference
    # for good, instead of gathering each layer again: faster, where there is memory for them.
    keep_gathered: bool = False
    # Generate kernels with torch.compile for what happens between products, in the layers and to the logits: faster on
    # a GPU, and with fewer activations. The first step takes longer.
    compile: bool = False

    # Measure every so many steps how much of the gradient is noise, by that of each prompt group; 0 means never.
    gradient_noise_every: int = Field(0, ge=0)

    # Checkpoints and records
    checkpoint_every: int = Field(10, gt=0)  # steps
    checkpoints_kept: int = Field(2, gt=0)
    record: Path | None = None  # a directory where every trained group is kept, for python -m learner.replay DIR

    # Evaluation
    evaluate: bool = True  # greedy answers before the first and after the last step
    evaluate_before: bool = True  # before the first as well; without, where what is trained has been evaluated already
    evaluate_every: int = Field(0, ge=0)  # and after every so many steps, while finished groups wait; 0 means not
    evaluate_questions: int = Field(64, gt=0)  # at most this many of each set, evenly spread
    evaluate_samples: int = Field(0, ge=0)  # with "select", sampled answers to a question: free, and as asked for
    evaluate_unseen: tuple[LanguageCode, ...] = ()  # languages outside the run that are asked for in these samples

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ends = [stage.until for stage in self.stages]
        if ends and (ends != sorted(set(ends)) or ends[-1] != 1 or ends[0] == 0):
            raise ValueError(f"stages: until = {ends} must increase from above 0 to 1")
        if ends and self.advantage != "gated":
            raise ValueError("stages weigh compliance themselves: advantage must be 'gated'")
        if 0 < self.dual_clip <= 1:
            raise ValueError(f"dual_clip = {self.dual_clip:g} must be above 1, or 0 for no bound")
        return self

    @model_validator(mode="before")
    @classmethod
    def _epochs_alone(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("epochs") and "steps" not in values:
            return {**values, "steps": 0}
        return values

    def steps_with(self, questions: int) -> int:
        """The number of steps with so many training questions: the smaller of ``steps`` and ⌊epochs · questions / P⌋.

        Raises:
            ConfigError: that is 0.
        """
        if not self.epochs:
            return self.steps
        by_epochs = math.floor(_exact(self.epochs) * questions / self.groups_per_step)
        if not by_epochs:
            raise ConfigError(
                f"learner.epochs = {self.epochs:g} of {questions} questions are less than one step of "
                f"learner.groups_per_step = {self.groups_per_step}: raise the one or lower the other"
            )
        return min(self.steps, by_epochs) if self.steps else by_epochs

    @property
    def has_kl(self) -> bool:
        """Whether some step has a KL penalty, so that a reference policy is needed."""
        return max([stage.kl for stage in self.stages] or [self.kl]) > 0

    def stage_ends(self) -> list[int]:
        """The number of steps after which each stage ends, ⌈until · steps⌉; the run's number of steps must be known."""
        return [math.ceil(_exact(stage.until) * self.steps) for stage in self.stages]

    def stage_number(self, step: int) -> int | None:
        """The number of the stage of a step, both counted from 0; None where the run has no stages, or has ended."""
        return next((number for number, end in enumerate(self.stage_ends()) if step < end), None)

    def stage(self, step: int) -> StageConfig | None:
        """The stage of a step, which is counted from 0; None where the run has no stages."""
        number = self.stage_number(step)
        return None if number is None else self.stages[number]


def _exact(value: float) -> Exact:
    """The number as it was written: 0.07 · 100 is 7, but in floating point it is 7.000000000000001."""
    return Exact(str(value))
