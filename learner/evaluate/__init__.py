"""What the policy's answers are worth between and after training."""
