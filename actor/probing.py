"""Proves after a weight update that an engine has the learner's weights, by its log-probabilities of the probe."""

from __future__ import annotations

import logging
import math

from actor.engine.adapters import LoadedAdapter
from actor.engine.client import Engine
from actor.engine.errors import EngineError
from common import wire

log = logging.getLogger("actor")


async def prove(
    engine: Engine, probe: wire.Probe, timeout_s: float, what: str, adapter: LoadedAdapter | None = None
) -> float:
    """Returns when the engine's log-probabilities are the learner's. Waits at most ``timeout_s`` seconds.

    Args:
        what: is proved, as in "the weights of version 3".
        adapter: with which the engine computes; None for its own weights alone.

    Returns:
        The mean absolute difference in nats per token.

    Raises:
        EngineError: they are not the learner's, or the engine does not give them.
    """
    try:
        error = await engine.measure_probe_error(probe, timeout_s, adapter)
    except EngineError:
        raise
    except Exception as failure:  # an answer of any other form must not hold the groups back for ever
        raise EngineError(f"the probe failed: {failure!r}") from failure
    if not math.isfinite(error) or error > probe.tolerance:
        raise EngineError(
            f"with {what} the engine's log-probabilities of the probe are {error:.3g} nats from the learner's "
            f"(sync.probe_tolerance = {probe.tolerance:g})"
        )
    log.info("proved %s: the engine's log-probabilities are %.2g nats from the learner's", what, error)
    return error
