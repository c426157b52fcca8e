"""The bandit that picks answer languages. It imports only numpy and ``common``, and it does no I/O."""

from router.observations import Context, Observation
from router.router import Draw, Router
from router.show import mutual_information

__all__ = ["Context", "Draw", "Observation", "Router", "mutual_information"]
