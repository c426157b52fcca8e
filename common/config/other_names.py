"""What TRL, verl and papers call a setting that has another name here, or that is not there for a reason."""

from __future__ import annotations

from collections.abc import Mapping

_WHOLE = (
    "answers are drawn from the whole distribution, as the learner compares log-probabilities of it; only "
    "sampling.temperature changes it"
)

_BATCH = (
    "a step has learner.groups_per_step questions with router.rollouts answers each, divided over all ranks; "
    "learner.microbatch_tokens says how many tokens are computed at a time"
)

OTHER_NAMES: Mapping[str, str] = {  # their name, or its last part -> our setting
    # The run and its data
    "output_dir": "run.dir",
    "model.name": "model.path",
    "model_name_or_path": "model.path",
    "train_files": "data.train",
    "data.val": "data.heldout",
    "data.eval": "data.heldout",
    "data.test": "data.heldout",
    "data.validation": "data.heldout",
    "val_files": "data.heldout",
    "prompt_key": "data.columns.question",
    "max_prompt_length": "data.max_prompt_tokens",
    # Answers
    "K": "router.rollouts",
    "n": "router.rollouts",
    "num_generations": "router.rollouts",
    "max_response_length": "sampling.max_new_tokens",
    "max_completion_length": "sampling.max_new_tokens",
    "max_tokens": "sampling.max_new_tokens",
    "tp": "actor.engine_args.tp",
    "tensor_parallel_size": "actor.engine_args.tp",
    "reward_funcs": "reward.function",
    "reward_weights": "reward.parts",
    # The length of a run, and its batches
    "num_train_epochs": "learner.epochs",
    "total_epochs": "learner.epochs",
    "max_steps": "learner.steps",
    "total_training_steps": "learner.steps",
    "batch_size": "learner.groups_per_step",
    "train_batch_size": "learner.groups_per_step",
    "num_iterations": "learner.passes",
    "ppo_epochs": "learner.passes",
    "save_steps": "learner.checkpoint_every",
    "save_freq": "learner.checkpoint_every",
    "eval_steps": "learner.evaluate_every",
    "test_freq": "learner.evaluate_every",
    # The optimizer and the loss
    "learning_rate": "learner.lr",
    "lr_scheduler_type": "learner.lr_schedule",
    "gradient_checkpointing": "learner.activation_checkpointing",
    "beta": "learner.kl",
    "kl_coef": "learner.kl",
    "kl_loss_coef": "learner.kl",
    "router.epsilon": "router.exploration",
    "epsilon": "learner.clip_low",
    "clip_ratio_low": "learner.clip_low",
    "epsilon_high": "learner.clip_high",
    "clip_ratio_high": "learner.clip_high",
    "scale_rewards": "learner.advantage_std",
    "loss_type": "learner.aggregation",
    "loss_agg_mode": "learner.aggregation",
    "mask_truncated_completions": "learner.mask_truncated",
    # Adapters
    "lora.r": "lora.rank",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "target_modules": "lora.targets",
}
ABSENT: Mapping[str, str] = {  # the last part of a name -> the reason
    **dict.fromkeys(("top_p", "top_k", "min_p"), _WHOLE),
    **dict.fromkeys(("repetition_penalty", "presence_penalty", "frequency_penalty"), _WHOLE),
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps"), _BATCH),
}
