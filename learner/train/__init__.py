"""One GRPO step: samples, packing, policy, loss, optimizer."""
