"""Evaluations, comparisons and baselines."""
