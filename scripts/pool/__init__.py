"""Pools of unequal GPUs: planned, simulated, launched."""
