"""Invented groups, requests and steps of a run, for benchmarks and tests."""
