"""The bandit that picks answer languages: numpy and ``common`` only, no I/O."""

from router.credit import Observation
from router.router import Draw, Router

__all__ = ["Draw", "Observation", "Router"]
