"""What each option of a verl launch script is here: the table behind ``scripts.ops.from_verl`` and docs/papers.md.

The options are those of LRPO's public launch script (github.com/Guochry/LRPO, a fork of verl) and the ones of verl
itself that scripts for GRPO commonly set. An option is one of four kinds:

* ``Carried``: a setting of ours has the same meaning, and the value is copied.
* ``Computed``: the value goes into a setting together with other options; ``from_verl`` has the rule.
* ``Fixed``: ours always does this, so that one value needs nothing, and any other cannot be carried.
* ``Unneeded``: it does not change what is learned, and has no counterpart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias


def number(text: str) -> float:
    """A finite or infinite number. Raises ValueError."""
    return float(text)


def integer(text: str) -> int:
    """A whole number. Raises ValueError."""
    return int(text)


def boolean(text: str) -> bool:
    """True or False, in any letter case. Raises ValueError."""
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def numbers(text: str) -> list[float]:
    """A list in brackets. Raises ValueError."""
    return [float(part) for part in text.strip("[]() ").split(",")]


@dataclass(frozen=True)
class Carried:
    """The same setting under another name."""

    ours: str
    read: Callable[[str], Any] = str
    default: str = ""  # verl's, where it is written down although the script does not name the option
    unset: tuple[str, ...] = ("null", "None")  # values that mean: not set


@dataclass(frozen=True)
class Computed:
    """Goes into a setting together with other options."""

    ours: str
    how: str
    read: Callable[[str], Any] = str
    default: str = ""


@dataclass(frozen=True)
class Fixed:
    """Ours always has the value ``only``, which is verl's default where ``default`` is empty."""

    only: tuple[str, ...]
    why: str
    default: str = ""


@dataclass(frozen=True)
class Unneeded:
    """Has no counterpart, and does not change what is learned."""

    why: str


Option: TypeAlias = Carried | Computed | Fixed | Unneeded

_MEMORY = "memory and speed alone; sequences are packed into learner.microbatch_tokens"
_ACTOR, _ROLLOUT, _REF = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.ref"
_ROUTED = "unless it is false or no option lang_policy is given: then every answer is in the question's language"

# Where versions of verl keep the penalty for long answers.
OVERLONG = (
    "reward_model.overlong_buffer",
    "reward_model.reward_kwargs.overlong_buffer_cfg",
    "reward.reward_kwargs.overlong_buffer_cfg",
    "custom_reward_function.overlong_buffer",
)

_OVERLONG_ENABLE = Computed("learner.overlong_limit", "data.max_response_length where it is true", boolean, "False")
_OVERLONG_LEN = Computed("learner.overlong_buffer", "as it is, with enable", integer, "0")
_OVERLONG_FACTOR = Computed("learner.overlong_penalty", "as it is, with enable", number, "1.0")

OPTIONS: Mapping[str, Option] = {
    # The router
    "data.dynamic_lang_policy": Computed("router.mode", '"learned" ' + _ROUTED, boolean, "True"),
    "data.lang_policy_alpha": Carried("router.ema", number, "0.1"),
    "data.lang_policy_update_every": Carried("router.interval", integer, "1"),
    "data.lang_policy_temperature": Computed(
        "router.temperature", "where lang_policy_temperature_init is not given", number, "1.0"
    ),
    "data.lang_policy_temperature_init": Computed("router.temperature", "as it is", number),
    "data.lang_policy_temperature_min": Computed(
        "router.temperature_min", "as it is; without it, lang_policy_temperature", number
    ),
    "data.lang_policy_temperature_decay": Carried("router.temperature_decay", number, "1.0"),
    "data.lang_policy_epsilon": Computed(
        "router.exploration",
        "where epsilon does not fall: its schedule is skipped with that of a constant temperature",
        number,
        "0.0",
    ),
    "data.lang_policy_epsilon_init": Computed("router.exploration", "as it is, where epsilon falls", number),
    "data.lang_policy_epsilon_min": Computed("router.exploration_min", "as it is, where epsilon falls", number),
    "data.lang_policy_epsilon_decay": Computed(
        "router.exploration_decay", "as it is, where epsilon falls", number, "1.0"
    ),
    "data.lang_policy_orig_lang_min": Carried("router.own_language", integer, "0"),
    "data.lang_policy_group_norm": Carried("router.group_norm", str, "none"),
    "data.lang_policy_group_norm_eps": Fixed(("1e-6", "1e-06", "0.000001"), "the floor of a deviation is 1e-6"),
    "data.lang_policy_log_every": Unneeded("router.jsonl has a line for about every fifth step"),
    "data.lang_policy_log_max_keys": Unneeded("router.jsonl has up to 200 rows"),
    "data.lang_policy_log_path": Unneeded("router.jsonl lies in run.dir"),
    # Data
    "data.train_files": Computed("data.train", "one file, or a folder of several", str),
    "data.val_files": Computed("data.heldout", "one file, or a folder of several", str),
    "data.train_batch_size": Computed(
        "learner.groups_per_step",
        "divided by rollout.n with an option lang_policy, whose fork counts answers, routed or not; else as it is",
        integer,
        "1024",
    ),
    "data.max_prompt_length": Carried("data.max_prompt_tokens", integer, "512"),
    "data.max_response_length": Carried("sampling.max_new_tokens", integer, "512"),
    "data.filter_overlong_prompts": Fixed(("True", "true"), "rows that are too long are always left out", "False"),
    "data.truncation": Unneeded("prompts that are too long are left out and never cut"),
    "data.shuffle": Fixed(("True", "true"), "every epoch is shuffled"),
    "data.seed": Carried("run.seed", integer),
    # Model
    "actor_rollout_ref.model.path": Carried("model.path"),
    "actor_rollout_ref.model.enable_gradient_checkpointing": Carried(
        "learner.activation_checkpointing", boolean, "True"
    ),
    "actor_rollout_ref.model.use_remove_padding": Unneeded("sequences are always packed without padding"),
    "actor_rollout_ref.model.lora_rank": Carried("lora.rank", integer),
    "actor_rollout_ref.model.lora_alpha": Computed("lora.alpha", "as it is, with lora_rank", number, "16"),
    "actor_rollout_ref.model.target_modules": Fixed(
        ("all-linear",), "lora.targets has the linear layers of common models; name others there"
    ),
    # Optimizer
    f"{_ACTOR}.optim.lr": Carried("learner.lr", number, "1e-6"),
    f"{_ACTOR}.optim.betas": Carried("learner.betas", numbers, "[0.9, 0.999]"),
    f"{_ACTOR}.optim.weight_decay": Carried("learner.weight_decay", number, "0.01"),
    f"{_ACTOR}.optim.lr_warmup_steps": Computed("learner.warmup_steps", "-1 means none", integer, "-1"),
    f"{_ACTOR}.optim.lr_warmup_steps_ratio": Computed(
        "learner.warmup_steps", "times trainer.total_training_steps, where lr_warmup_steps is not given", number, "0"
    ),
    f"{_ACTOR}.optim.lr_scheduler_type": Computed("learner.lr_schedule", "constant or cosine", str, "constant"),
    f"{_ACTOR}.optim.warmup_style": Computed("learner.lr_schedule", "the older name of lr_scheduler_type", str),
    f"{_ACTOR}.optim.min_lr_ratio": Computed("learner.min_lr", "times lr, with cosine", number, "0"),
    f"{_ACTOR}.optim.num_cycles": Fixed(("0.5",), "the cosine falls once"),
    f"{_ACTOR}.grad_clip": Carried("learner.max_grad_norm", number, "1.0"),
    # Loss
    "algorithm.adv_estimator": Computed(
        "learner.advantage", 'grpo is "gated"; gdpo is "decoupled", by hand once the reward has the parts', str, "gae"
    ),
    "algorithm.gdpo_reward_keys": Computed("learner.decoupled_parts", "the names, by hand with gdpo"),
    "algorithm.gdpo_reward_weights": Computed("learner.decoupled_parts", "the weights, by hand with gdpo"),
    "algorithm.norm_adv_by_std_in_grpo": Carried("learner.advantage_std", boolean, "True"),
    "algorithm.use_kl_in_reward": Fixed(("False", "false"), "the KL is in the loss"),
    "algorithm.filter_groups.enable": Computed(
        "learner.refill", "with learner.drop_zero_variance; as many groups as max_num_gen_batches allows", boolean,
        "False",
    ),
    "algorithm.filter_groups.max_num_gen_batches": Computed(
        "learner.refill", "times data.gen_batch_size, less a batch; 10 where there is no limit", integer, "0"
    ),
    "algorithm.filter_groups.metric": Unneeded("groups of equal reward are replaced, without the penalty for length"),
    "data.gen_batch_size": Computed("learner.refill", "see filter_groups.max_num_gen_batches", integer),
    **{f"{name}.enable": _OVERLONG_ENABLE for name in OVERLONG},
    **{f"{name}.len": _OVERLONG_LEN for name in OVERLONG},
    **{f"{name}.penalty_factor": _OVERLONG_FACTOR for name in OVERLONG},
    **{f"{name}.log": Unneeded("the reward is reported without the penalty") for name in OVERLONG},
    "reward_model.reward_kwargs.max_resp_len": Unneeded("data.max_response_length takes its place"),
    "reward.reward_kwargs.max_resp_len": Unneeded("data.max_response_length takes its place"),
    f"{_ACTOR}.ppo_mini_batch_size": Computed(
        "learner.minibatches", "in questions: those of a batch divided by it", integer, "256"
    ),
    f"{_ACTOR}.ppo_epochs": Carried("learner.passes", integer, "1"),
    f"{_ACTOR}.shuffle": Fixed(("False", "false"), "the groups of a batch are divided in their order"),
    f"{_ACTOR}.policy_loss.loss_mode": Computed(
        "learner.loss", 'vanilla is "ppo"; gspo and cispo are the same', str, "vanilla"
    ),
    f"{_ACTOR}.use_kl_loss": Computed("learner.kl", "0 where it is false", boolean, "False"),
    f"{_ACTOR}.kl_loss_coef": Computed("learner.kl", "as it is, with use_kl_loss", number, "0.001"),
    f"{_ACTOR}.kl_loss_type": Computed(
        "learner.kl_form", "low_var_kl and k3 are k3, kl and k1 are k1, mse and k2 are k2, with use_kl_loss", str,
        "low_var_kl",
    ),
    f"{_ACTOR}.entropy_coeff": Carried("learner.entropy_bonus", number, "0"),
    f"{_ACTOR}.clip_ratio": Unneeded("clip_ratio_low and clip_ratio_high take its place"),
    f"{_ACTOR}.clip_ratio_low": Carried("learner.clip_low", number, "0.2"),
    f"{_ACTOR}.clip_ratio_high": Carried("learner.clip_high", number, "0.2"),
    f"{_ACTOR}.clip_ratio_c": Carried("learner.dual_clip", number, "3.0"),
    f"{_ACTOR}.loss_agg_mode": Computed(
        "learner.aggregation",
        'token-mean is "token" (of the whole mini-batch), seq-mean-token-mean is "sequence", seq-mean-token-sum and '
        'seq-mean-token-sum-norm are "constant"; gspo always has "sequence"',
        str,
        "token-mean",
    ),
    f"{_ACTOR}.loss_scale_factor": Computed(
        "learner.aggregation_length", "with seq-mean-token-sum-norm; data.max_response_length where it is not given",
        integer,
    ),
    "algorithm.rollout_correction.bypass_mode": Computed(
        "learner.proximal", '"behaviour" where it is true, else "step"', boolean, "False"
    ),
    "algorithm.rollout_correction.rollout_is": Computed(
        "learner.importance", 'token is "truncate" at rollout_is_threshold', str
    ),
    "algorithm.rollout_correction.rollout_is_threshold": Computed(
        "learner.importance_cap", "as it is, with rollout_is", number, "2.0"
    ),
    f"{_ACTOR}.tis_imp_ratio_cap": Computed(
        "learner.importance", '-1 is "none"; else "truncate" with learner.importance_cap', number, "-1"
    ),
    # Generation
    f"{_ROLLOUT}.n": Carried("router.rollouts", integer, "1"),
    f"{_ROLLOUT}.temperature": Carried("sampling.temperature", number, "1.0"),
    f"{_ROLLOUT}.top_p": Fixed(("1", "1.0"), "the whole distribution is sampled"),
    f"{_ROLLOUT}.top_k": Fixed(("-1",), "the whole distribution is sampled"),
    f"{_ROLLOUT}.name": Unneeded("the engine is SGLang"),
    f"{_ROLLOUT}.mode": Unneeded("actors are always asynchronous; learner.staleness = 0 makes the run synchronous"),
    f"{_ROLLOUT}.tensor_model_parallel_size": Carried("actor.engine_args.tp", integer),
    f"{_ROLLOUT}.gpu_memory_utilization": Unneeded("an engine has its GPUs for itself; configs/gpus-1.toml shares one"),
    f"{_ROLLOUT}.val_kwargs.n": Fixed(("1",), "held-out questions are answered once, greedily"),
    # Memory and speed
    f"{_ACTOR}.ppo_micro_batch_size_per_gpu": Unneeded(_MEMORY),
    f"{_ACTOR}.use_dynamic_bsz": Unneeded(_MEMORY),
    f"{_ACTOR}.ppo_max_token_len_per_gpu": Unneeded(_MEMORY),
    f"{_ROLLOUT}.log_prob_micro_batch_size_per_gpu": Unneeded(_MEMORY),
    f"{_REF}.log_prob_micro_batch_size_per_gpu": Unneeded(_MEMORY),
    f"{_REF}.fsdp_config.param_offload": Carried("learner.reference_on_cpu", boolean),
    f"{_ACTOR}.fsdp_config.param_offload": Carried("learner.optimizer_on_cpu", boolean),
    f"{_ACTOR}.fsdp_config.optimizer_offload": Carried("learner.optimizer_on_cpu", boolean),
    # The reward
    "custom_reward_function.path": Computed(
        "reward.calibration",
        "calibrated_rs.py is the similarity with mean calibration; the reward of another file is to be written anew",
    ),
    "custom_reward_function.name": Unneeded("it goes with the path"),
    "reward_model.reward_manager": Unneeded("the reward process always scores in batches"),
    # The run
    "trainer.total_epochs": Carried("learner.epochs", integer, "30"),
    "trainer.total_training_steps": Carried("learner.steps", integer),
    "trainer.save_freq": Carried("learner.checkpoint_every", integer, "", ("null", "-1", "0")),
    "trainer.test_freq": Computed("learner.evaluate_every", "-1 is 0", integer, "-1"),
    "trainer.val_before_train": Carried("learner.evaluate_before", boolean, "True"),
    "trainer.experiment_name": Computed("run.dir", "runs/NAME", str),
    "trainer.project_name": Unneeded("run.dir names the run"),
    "trainer.logger": Unneeded("TensorBoard, in run.dir"),
    "trainer.log_val_generations": Unneeded("TensorBoard has text samples"),
    "trainer.n_gpus_per_node": Unneeded("configs/gpus-8.toml and its like divide the GPUs between learner and engines"),
    "trainer.nnodes": Fixed(("1",), "set learner.nodes and run.rendezvous (docs/cluster.md)"),
    "trainer.critic_warmup": Unneeded("there is no critic"),
    "trainer.resume_mode": Unneeded("the same command resumes"),
    "trainer.balance_batch": Unneeded("micro-batches are always balanced over the ranks"),
}  # fmt: skip


def markdown_table() -> str:
    """The table for docs/papers.md, a row for each option."""
    rows = ["| verl | here | |", "|---|---|---|"]
    for name, option in OPTIONS.items():
        match option:
            case Carried():
                cells = f"`{option.ours}`", "the same"
            case Computed():
                cells = (f"`{option.ours}`" if option.ours else ""), option.how
            case Fixed():
                cells = "", f"only `{option.only[0]}`: {option.why}"
            case Unneeded():
                cells = "", f"not needed: {option.why}"
        rows.append(f"| `{name}` | {cells[0]} | {cells[1]} |")
    return "\n".join(rows)
