"""Calibration makes the similarities of different pairs of languages comparable."""
