"""One GRPO step: rewards of the step, samples, micro-batches, the policy, the loss and the optimizer."""
