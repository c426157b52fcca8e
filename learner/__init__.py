"""The learner: the work queue, the GRPO step, weight publication, checkpoints and TensorBoard."""
