"""The bandit that picks answer languages: numpy and ``common`` only, no I/O."""

from router.router import Draw, Observation, Router

__all__ = ["Draw", "Observation", "Router"]
