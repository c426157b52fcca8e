"""What TRL, verl and papers call a setting that has another name here, or that is not there for a reason."""

from __future__ import annotations

from collections.abc import Mapping

_WHOLE = (
    "answers are drawn from the whole distribution, as the learner compares log-probabilities of it; only "
    "sampling.temperature changes it"
)

OTHER_NAMES: Mapping[str, str] = {  # their name, or its last part -> our setting
    "learning_rate": "learner.lr",
    "batch_size": "learner.groups_per_step",
    "train_batch_size": "learner.groups_per_step",
    "K": "router.rollouts",
    "n": "router.rollouts",
    "num_generations": "router.rollouts",
    "kl_coef": "learner.kl",
    "kl_loss_coef": "learner.kl",
    "max_prompt_length": "data.max_prompt_tokens",
    "max_response_length": "sampling.max_new_tokens",
    "max_completion_length": "sampling.max_new_tokens",
    "max_tokens": "sampling.max_new_tokens",
    "model.name": "model.path",
    "model_name_or_path": "model.path",
    "tp": "actor.engine_args.tp",
    "tensor_parallel_size": "actor.engine_args.tp",
}
ABSENT: Mapping[str, str] = {"top_p": _WHOLE, "top_k": _WHOLE, "min_p": _WHOLE}  # the last part of a name -> the reason
